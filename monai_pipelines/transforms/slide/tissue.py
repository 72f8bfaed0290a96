"""Where the tissue of a slide is: a mask on a thumbnail."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from numpy.typing import NDArray
from PIL import Image, ImageStat
from scipy import ndimage
from skimage.filters import threshold_otsu

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide


class Ink(NamedTuple):
    """Colours of a pen in HSV: hue from one angle up to another, degrees, and the least saturation."""

    from_deg: float
    to_deg: float
    saturation: float


# Stained tissue has hues of 255 to 350 degrees, DAB 15 to 45, haematoxylin alone about 230, but paler than a pen.
PENS = {"green": Ink(70, 195, 0.2), "blue": Ink(195, 245, 0.5), "red": Ink(352, 12, 0.7)}
INKS = (*PENS, "black")
PEN_REACH_UM = 50.0  # how far the pale edge of a stroke may reach
HIGHEST_THRESHOLD = 0.1  # where there is no glass, Otsu's lies between pale and dark tissue
DARK, GREY = 0.35, 0.12  # black: brightest channel below the one, channels no further apart than the other
GLASS, TINT = 0.7, 0.14  # bare glass: darkest channel above the one, channels no further apart than the other
FLAT = 10  # grey levels among 3 x 3 pixels of glass; pale tissue has texture
PADDING = 253 / 255  # what is brighter was never scanned
MIN_GLASS = 0.01  # share of the thumbnail
LOGARITHMS = np.log2(1 + np.arange(256))


class Regions(NamedTuple):
    """Masks (h, w) of what a thumbnail shows. What is in none of them is dirt, or hard to tell."""

    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    dark: NDArray[np.bool_]
    glass: NDArray[np.bool_]


class SegmentTissue(Transform):
    """Find the tissue of a slide in brightfield, on a thumbnail: pen marks, black and white borders and dirt left out.

    Colours are balanced so that bare glass is white. Tissue is what is more saturated (HSV) than Otsu's threshold on
    the logarithm of saturation, kept between ``min_saturation``, so that an empty slide does not turn noise into
    tissue, and 0.1, so that a slide without glass keeps its pale tissue. Left out are pen marks, told by hues that
    stained tissue does not have (green, blue, pure red), with their pale edges, and what is black (ink, borders);
    where ink lies on tissue, its hue may not tell it. The mask is closed and opened with 3 x 3 pixels, its holes are
    filled and specks dropped by their area; glass that touches the frame is no hole.

    Args:
        mpp: resolution of the thumbnail, micrometres per pixel.
        min_saturation: floor of the threshold, 0..0.1.
        min_tissue_mm2: smaller pieces are dropped, mm2.
        max_hole_mm2: holes up to this area are filled (glands, vessels, ink specks), mm2.
        inks: of green, blue, red, black: what to leave out. Fewer where the stain has such a colour: blue and green
            in trichrome, red in Sirius red, black in silver.

    Returns:
        `MetaTensor` (1, h, w) uint8 in {0, 1}; ``affine`` maps row and column of the mask to the centre (y, x) in
        level 0 pixels. ``meta``: ``downsample`` (level 0 pixels per mask pixel), ``thumbnail`` (h, w, 3) uint8 numpy.

    Raises:
        ScanError: no tissue (says what there is instead), or a dark background (fluorescence).

    Example:
        >>> rgb = np.full((50, 80, 3), 245, np.uint8)
        >>> rgb[10:40, 20:60] = 200, 120, 180
        >>> int(SegmentTissue().regions(rgb, mpp=8).tissue.sum())
        1200

    Reference: Otsu, IEEE SMC 9 (1979) 62-66. Saturation finds tissue in CLAM too (Lu et al., 2021), by a fixed or
    Otsu's threshold, without balance, floor or pens.
    """

    def __init__(
        self,
        mpp: float = 8.0,
        min_saturation: float = 0.04,
        min_tissue_mm2: float = 0.05,
        max_hole_mm2: float = 0.05,
        inks: Sequence[str] = INKS,
    ) -> None:
        if mpp <= 0:
            raise ValueError(f"SegmentTissue: mpp must be positive, got {mpp}")
        if not 0 <= min_saturation <= HIGHEST_THRESHOLD:
            raise ValueError(f"SegmentTissue: min_saturation must lie in 0..{HIGHEST_THRESHOLD}, got {min_saturation}")
        if min_tissue_mm2 < 0 or max_hole_mm2 < 0:
            raise ValueError(
                "SegmentTissue: min_tissue_mm2 and max_hole_mm2 must not be negative, "
                f"got {min_tissue_mm2}, {max_hole_mm2}"
            )
        if isinstance(inks, str) or not set(inks) <= set(INKS):
            raise ValueError(f"SegmentTissue: inks must be a list out of {', '.join(INKS)}, got {inks!r}")
        self.mpp, self.min_saturation, self.inks = mpp, min_saturation, tuple(inks)
        self.min_tissue_mm2, self.max_hole_mm2 = min_tissue_mm2, max_hole_mm2

    def __call__(self, slide: Slide) -> MetaTensor:
        thumbnail, downsample = slide.thumbnail(self.mpp)
        regions = self.regions(thumbnail, downsample * slide.mpp)
        tissue, pen, dark, glass = (region.mean() for region in regions)
        if glass < MIN_GLASS and dark > 0.5:
            raise ScanError(slide.path, f"{dark:.0%} of it is dark (fluorescence?); wanted tissue in bright field")
        if not tissue:
            raise ScanError(
                slide.path,
                f"no tissue found ({glass:.0%} bare glass, {pen:.0%} pen, {dark:.0%} dark); leave the slide out if it "
                f"is empty, else lower min_saturation ({self.min_saturation:g}) or min_tissue_mm2 "
                f"({self.min_tissue_mm2:g}), or take the colour of the stain out of inks",
            )
        affine = torch.diag(torch.tensor([downsample, downsample, 1, 1], dtype=torch.float64))
        affine[:2, 3] = (downsample - 1) / 2
        mask = torch.from_numpy(regions.tissue[None].astype(np.uint8))
        return MetaTensor(mask, affine=affine, meta={"downsample": downsample, "thumbnail": thumbnail})

    def regions(self, rgb: NDArray[np.uint8], mpp: float) -> Regions:
        """What a thumbnail (h, w, 3) of ``mpp`` micrometres per pixel shows where."""
        image = Image.fromarray(rgb)
        red, green, blue = (np.asarray(channel) for channel in image.split())
        darkest, brightest = (pick(pick(red, green), blue) for pick in (np.minimum, np.maximum))
        chroma = brightest - darkest
        glass, dark = (darkest > 255 * GLASS) & (chroma < 255 * TINT), brightest < 255 * DARK
        flat = _of_3x3(np.maximum, darkest) - _of_3x3(np.minimum, darkest) <= FLAT
        hue, saturation = _hue_and_saturation(image, glass & flat & (darkest < 255 * PADDING))
        pen = np.zeros(hue.shape, bool)
        for name in self.inks:
            if name != "black":
                pen |= _strokes(hue, saturation, PENS[name], max(1, round(PEN_REACH_UM / mpp)))
        ink = pen | (dark & (chroma < 255 * GREY)) if "black" in self.inks else pen
        saturation = np.where(ink, 0, saturation).astype(np.uint8)
        tissue = saturation > self._threshold(saturation)
        for pick in (np.maximum, np.minimum, np.minimum, np.maximum):  # closed, then opened
            tissue = _of_3x3(pick, tissue)
        pixel_mm2 = (mpp / 1000) ** 2
        tissue = _without_holes(tissue, self.max_hole_mm2 / pixel_mm2)
        return Regions(_without_small(tissue, self.min_tissue_mm2 / pixel_mm2), pen, dark, glass)

    def _threshold(self, saturation: NDArray[np.uint8]) -> float:
        """Otsu's on the logarithm: the step from glass to pale tissue counts as much as that to dark tissue."""
        counts = np.bincount(saturation.ravel(), minlength=256)
        several = np.count_nonzero(counts) > 1
        otsu = 2 ** threshold_otsu(hist=(counts, LOGARITHMS)) - 1 if several else 0
        return 255 * float(np.clip(otsu / 255, self.min_saturation, HIGHEST_THRESHOLD))


class SegmentTissued(MapTransform):
    """`SegmentTissue` for dictionaries: the mask of the slide goes to ``mask_key``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "tissue",
        mpp: float = 8.0,
        min_saturation: float = 0.04,
        min_tissue_mm2: float = 0.05,
        max_hole_mm2: float = 0.05,
        inks: Sequence[str] = INKS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"SegmentTissued: wanted one key, got {self.keys}: a mask belongs to one slide")
        self.mask_key = mask_key
        self.segment = SegmentTissue(mpp, min_saturation, min_tissue_mm2, max_hole_mm2, inks)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.mask_key] = self.segment(d[key])
        return d


def _hue_and_saturation(image: Image.Image, glass: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of HSV, in 255ths of a turn and of 1, after colours are balanced so that glass is white."""
    if glass.mean() >= MIN_GLASS:
        light = ImageStat.Stat(image, Image.fromarray(glass)).median
        table = np.clip(np.rint(np.outer(255 / np.array(light), np.arange(256))), 0, 255)
        image = image.point(table.astype(int).ravel().tolist())
    hue, saturation, _ = (np.asarray(channel) for channel in image.convert("HSV").split())
    return hue, saturation


def _of_3x3(pick: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
    """Extreme of each pixel and its neighbours; scipy's filter takes several times as long."""
    padded = np.pad(values, 1, mode="edge")
    rows = pick(pick(padded[:-2], padded[1:-1]), padded[2:])
    return pick(pick(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _strokes(hue: NDArray[np.uint8], saturation: NDArray[np.uint8], pen: Ink, reach_px: int) -> NDArray[np.bool_]:
    """Of one pen, with their pale edges."""
    start, end = (deg * 255 / 360 for deg in (pen.from_deg, pen.to_deg))
    coloured = (hue >= start) & (hue <= end) if start < end else (hue >= start) | (hue <= end)
    near = coloured & (saturation >= 255 * pen.saturation)
    if near.any():
        for _ in range(reach_px):
            near = _of_3x3(np.maximum, near)
    return coloured & near


def _without_holes(tissue: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """Filled where up to so many pixels (8 neighbours) are surrounded; what touches the frame goes on beyond it."""
    labels, _ = ndimage.label(~tissue, np.ones((3, 3)))
    small = np.bincount(labels.ravel()) <= pixels
    small[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    return tissue | small[labels]


def _without_small(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """Without the components (8 neighbours) of up to so many pixels."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    large = np.bincount(labels.ravel()) > pixels
    large[0] = False
    return large[labels]
