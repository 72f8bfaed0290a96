"""Tissue mask of a slide, on a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray
from PIL import Image, ImageStat
from scipy import ndimage

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide
from monai_pipelines.transforms.keyed import EachKeyd


class Ink(NamedTuple):
    """Colors of a pen in HSV: range of hue, degrees, and least saturation."""

    from_deg: float
    to_deg: float
    saturation: float


# Hues of stained tissue: 255 to 350 degrees, DAB 15 to 45, hematoxylin alone about 230, but paler than a pen.
PENS = {"green": Ink(70, 195, 0.2), "blue": Ink(195, 245, 0.5), "red": Ink(352, 12, 0.7)}
INKS = (*PENS, "black")
PEN_REACH_UM = 50.0  # width of a stroke's pale edge
HIGHEST_THRESHOLD = 0.1  # without glass, Otsu's threshold separates pale from dark tissue
DARK, GRAY = 0.35, 0.12  # black: limits of the brightest channel and of the difference between channels
GLASS, TINT = 0.7, 0.14  # bare glass: limits of the darkest channel and of the difference between channels
FLAT = 10  # range of gray levels in 3 x 3 pixels of glass; pale tissue has texture
PADDING = 253 / 255  # brighter areas were never scanned
MIN_GLASS = 0.01  # fraction of the thumbnail
LOGARITHMS = np.log2(1 + np.arange(256))


class Regions(NamedTuple):
    """Masks (h, w) of a thumbnail's regions; pixels in none of them are dirt or unclear."""

    tissue: NDArray[np.bool_]
    pen: NDArray[np.bool_]
    dark: NDArray[np.bool_]
    glass: NDArray[np.bool_]


class SegmentTissue(Transform):
    """Segment the tissue of a bright-field slide on a thumbnail, without pen marks, black and white borders and dirt.

    Colors are balanced so that bare glass is white. Tissue is more saturated (HSV) than Otsu's threshold on the
    logarithm of saturation, clipped to ``min_saturation`` (noise of an empty slide is not tissue) and 0.1 (a slide
    without glass keeps its pale tissue). Pen marks with their pale edges are excluded by hues that stained tissue does
    not have (green, blue, pure red), and so are black areas (ink, borders); ink on tissue may escape by its mixed hue.
    The mask is closed and opened with 3 x 3 pixels, its holes are filled and specks removed by area; glass that touches
    the frame is no hole.

    Args:
        mpp: resolution of the thumbnail, micrometers per pixel.
        min_saturation: lower limit of the threshold, 0..0.1.
        min_tissue_mm2: smaller pieces are removed, mm2.
        max_hole_mm2: holes up to this area are filled (glands, vessels, ink specks), mm2.
        inks: of green, blue, red, black: excluded as pen marks. Omit colors of the stain: blue and green in trichrome,
            red in Sirius red, black in silver.

    Returns:
        `MetaTensor` (1, h, w) uint8 in {0, 1}; ``affine`` maps row and column of a mask pixel to its center (y, x) in
        level-0 pixels. ``meta``: ``downsample`` (level-0 pixels per mask pixel), ``thumbnail`` (h, w, 3) uint8 numpy.

    Raises:
        ScanError: no tissue (says what there is instead), or a dark background (fluorescence).

    Example:
        >>> rgb = np.full((50, 80, 3), 245, np.uint8)
        >>> rgb[10:40, 20:60] = 200, 120, 180
        >>> int(SegmentTissue().regions(rgb, mpp=8).tissue.sum())
        1200

    Reference: Otsu, IEEE SMC 9 (1979) 62-66. CLAM (Lu et al., 2021) uses saturation too, with a fixed or Otsu's
    threshold, without color balance, limits or pens.
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
            raise ValueError(f"SegmentTissue: inks must be a list from {', '.join(INKS)}, got {inks!r}")
        self.mpp, self.min_saturation, self.inks = mpp, min_saturation, tuple(inks)
        self.min_tissue_mm2, self.max_hole_mm2 = min_tissue_mm2, max_hole_mm2

    def __call__(self, slide: Slide) -> MetaTensor:
        thumbnail, downsample = slide.thumbnail(self.mpp)
        regions = self.regions(thumbnail, downsample * slide.mpp)
        tissue, pen, dark, glass = (region.mean() for region in regions)
        if glass < MIN_GLASS and dark > 0.5:
            raise ScanError(slide.path, f"wanted a bright-field slide, got {dark:.0%} dark pixels (fluorescence?)")
        if not tissue:
            raise ScanError(
                slide.path,
                f"no tissue found ({glass:.0%} bare glass, {pen:.0%} pen, {dark:.0%} dark); exclude the slide if it is "
                f"empty, else lower min_saturation ({self.min_saturation:g}) or min_tissue_mm2 "
                f"({self.min_tissue_mm2:g}), or remove the stain's color from inks",
            )
        affine = torch.diag(torch.tensor([downsample, downsample, 1, 1], dtype=torch.float64))
        affine[:2, 3] = (downsample - 1) / 2
        mask = torch.from_numpy(regions.tissue[None].astype(np.uint8))
        return MetaTensor(mask, affine=affine, meta={"downsample": downsample, "thumbnail": thumbnail})

    def regions(self, rgb: NDArray[np.uint8], mpp: float) -> Regions:
        """Regions of a thumbnail (h, w, 3) at ``mpp`` micrometers per pixel."""
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
        ink = pen | (dark & (chroma < 255 * GRAY)) if "black" in self.inks else pen
        saturation = np.where(ink, 0, saturation).astype(np.uint8)
        tissue = saturation > self._threshold(saturation)
        for pick in (np.maximum, np.minimum, np.minimum, np.maximum):  # closed, then opened
            tissue = _of_3x3(pick, tissue)
        pixel_mm2 = (mpp / 1000) ** 2
        tissue = _without_holes(tissue, self.max_hole_mm2 / pixel_mm2)
        return Regions(_without_small(tissue, self.min_tissue_mm2 / pixel_mm2), pen, dark, glass)

    def _threshold(self, saturation: NDArray[np.uint8]) -> float:
        """Otsu's threshold on the logarithm: glass to pale tissue counts as much as pale to dark tissue."""
        from skimage.filters import threshold_otsu

        counts = np.bincount(saturation.ravel(), minlength=256)
        otsu = 2 ** threshold_otsu(hist=(counts, LOGARITHMS)) - 1 if np.count_nonzero(counts) > 1 else 0
        return 255 * float(np.clip(otsu / 255, self.min_saturation, HIGHEST_THRESHOLD))


class SegmentTissued(EachKeyd):
    """`SegmentTissue` for dictionaries: the mask goes to ``mask_key``."""

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
        step = SegmentTissue(mpp, min_saturation, min_tissue_mm2, max_hole_mm2, inks)
        super().__init__(keys, step, allow_missing_keys, out_key=mask_key)
        if len(self.keys) != 1:
            raise ValueError(f"SegmentTissued: wanted one key, got {self.keys}: a mask belongs to one slide")


def _hue_and_saturation(image: Image.Image, glass: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """HSV hue and saturation, in 255ths of a turn and of 1, after balancing colors so that glass is white."""
    if glass.mean() >= MIN_GLASS:
        light = ImageStat.Stat(image, Image.fromarray(glass)).median
        table = np.clip(np.rint(np.outer(255 / np.array(light), np.arange(256))), 0, 255)
        image = image.point(table.astype(int).ravel().tolist())
    hue, saturation, _ = (np.asarray(channel) for channel in image.convert("HSV").split())
    return hue, saturation


def _of_3x3(pick: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
    """Extreme of each pixel and its neighbors; several times faster than scipy's filter."""
    padded = np.pad(values, 1, mode="edge")
    rows = pick(pick(padded[:-2], padded[1:-1]), padded[2:])
    return pick(pick(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _strokes(hue: NDArray[np.uint8], saturation: NDArray[np.uint8], pen: Ink, reach_px: int) -> NDArray[np.bool_]:
    """Strokes of one pen with their pale edges."""
    start, end = (deg * 255 / 360 for deg in (pen.from_deg, pen.to_deg))
    colored = (hue >= start) & (hue <= end) if start < end else (hue >= start) | (hue <= end)
    near = colored & (saturation >= 255 * pen.saturation)
    if near.any():
        for _ in range(reach_px):
            near = _of_3x3(np.maximum, near)
    return colored & near


def _without_holes(tissue: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """Holes of up to `pixels` (8 neighbors) filled; glass that touches the frame is no hole."""
    labels, _ = ndimage.label(~tissue, np.ones((3, 3)))
    small = np.bincount(labels.ravel()) <= pixels
    small[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    return tissue | small[labels]


def _without_small(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """Components (8 neighbors) of up to `pixels` removed."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    large = np.bincount(labels.ravel()) > pixels
    large[0] = False
    return large[labels]
