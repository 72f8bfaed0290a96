"""Tissue masks of synthetic and real thumbnails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import open_slide
from monai_pipelines.transforms import SegmentTissue, SegmentTissued
from tests.transforms.slide.slide_files import GLASS, disc, stained, write_slide

SHAPE = (150, 200)
TISSUE = disc(SHAPE, (75, 90), 45) & ~disc(SHAPE, (70, 100), 4) & ~disc(SHAPE, (85, 75), 15)
FILLED = TISSUE | disc(SHAPE, (70, 100), 4.5)  # the hole of 0.003 mm2, not that of 0.045
PENS = {
    "green": (30, 140, 80),
    "teal": (50, 160, 180),
    "blue": (40, 60, 180),
    "red": (205, 35, 45),
    "black": (40, 40, 45),
}


def tissue_of(rgb: np.ndarray, **args: Any) -> np.ndarray:
    return SegmentTissue(**args).regions(rgb, 8.0).tissue


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def stroke(rgb: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
    """A wide line down the right side and one across a corner, with soft edges."""
    ink = Image.new("RGB", rgb.shape[1::-1], "white")
    draw = ImageDraw.Draw(ink)
    draw.line([(175, 5), (165, 60), (185, 140)], fill=color, width=9, joint="curve")
    draw.line([(2, 40), (40, 2)], fill=color, width=5)
    soft = np.asarray(ink.filter(ImageFilter.GaussianBlur(1)))
    return (rgb * (soft / 255)).astype(np.uint8)


@pytest.mark.parametrize("light", [GLASS, (250, 250, 250), (240, 230, 212), (228, 236, 240)])
@pytest.mark.parametrize("density", [0.5, 1, 2])
def test_dark_and_pale_tissue_on_glass_of_any_tint(light: tuple[int, ...], density: float) -> None:
    assert overlap(tissue_of(stained(TISSUE, light, density), max_hole_mm2=0.02), FILLED) > 0.99


def _reference_tissue(rgb: np.ndarray) -> np.ndarray:
    """Without pens and color balance: floating-point thresholds, areas by scikit-image; at 8 um per pixel."""
    saturation = rgb2hsv(rgb)[..., 1]
    otsu = np.exp(threshold_otsu(np.log(1 / 255 + saturation), nbins=1000)) - 1 / 255
    mask = (saturation > np.clip(otsu, 0.04, 0.1)).astype(np.uint8)
    mask = ndimage.grey_opening(ndimage.grey_closing(mask, 3, mode="nearest"), 3, mode="nearest") > 0
    pixels = 0.05 / 0.008**2
    surrounded = ndimage.binary_fill_holes(mask, np.ones((3, 3)))
    filled = remove_small_holes(mask, max_size=pixels, connectivity=2) & surrounded
    return remove_small_objects(filled, max_size=pixels, connectivity=2)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.standard_normal((300, 260)), 8)
    rgb = stained(blobs > rng.uniform(0, 0.6) * blobs.std(), (254, 254, 254), rng.uniform(0.6, 1.5), seed)
    expected = _reference_tissue(rgb)
    assert 0.1 < expected.mean() < 0.9
    assert (tissue_of(rgb) == expected).mean() > 0.995


@pytest.mark.parametrize("pen", PENS)
def test_pen_marks_are_not_tissue(pen: str) -> None:
    rgb = stained(TISSUE)
    clean = tissue_of(rgb)
    marked = stroke(rgb, PENS[pen])
    assert overlap(tissue_of(marked), clean) > 0.99
    assert not tissue_of(stroke(stained(np.zeros(SHAPE, bool)), PENS[pen])).any()
    if pen != "black":
        color = "green" if pen == "teal" else pen
        tissue = tissue_of(marked, inks=[ink for ink in ("green", "blue", "red", "black") if ink != color])
        assert tissue[:, 160:].sum() > 800, "without that ink it is a stain"


def test_borders_and_padding_are_not_tissue() -> None:
    rgb = stained(TISSUE)
    clean = tissue_of(rgb)
    rgb[:8], rgb[:, -6:], rgb[-9:] = 12, (10, 8, 14), 255
    rgb[:, :30] = (190, 190, 192)  # gray, as the rim of a bubble
    assert overlap(tissue_of(rgb), clean) > 0.99


def test_stain_that_looks_like_ink_over_most_of_the_tissue() -> None:
    """Trichrome: blue collagen."""
    rgb = np.full((*SHAPE, 3), GLASS, np.uint8)
    rgb[TISSUE] = (60, 90, 190)
    assert not tissue_of(rgb).any()
    assert overlap(tissue_of(rgb, inks=["black"], max_hole_mm2=0.02), FILLED) > 0.99


def test_noise_of_an_empty_slide_is_not_tissue() -> None:
    rng = np.random.default_rng(0)
    for light in (GLASS, (240, 230, 212), (255, 255, 255)):
        for std in (0, 1, 3):
            rgb = np.clip(np.array(light) + rng.normal(0, std, (*SHAPE, 3)), 0, 255).astype(np.uint8)
            assert not tissue_of(rgb).any()


def test_slide_full_of_tissue() -> None:
    full = np.ones(SHAPE, bool)
    assert tissue_of(stained(full, density=0.8)).all()
    assert tissue_of(np.full((*SHAPE, 3), (200, 150, 180), np.uint8)).all()


def test_areas_are_in_mm2() -> None:
    """A square piece of 40 x 40 pixels with a square hole of 20 x 20, at 8 um: 0.1024 and 0.0256 mm2."""
    rgb = np.full((*SHAPE, 3), 245, np.uint8)
    rgb[50:90, 50:90] = (200, 120, 180)
    rgb[60:80, 60:80] = 245
    for mpp, scale in ((8.0, 1), (4.0, 0.25)):

        def area(hole: float, piece: float, mpp: float = mpp, scale: float = scale) -> int:
            step = SegmentTissue(max_hole_mm2=scale * hole, min_tissue_mm2=scale * piece)
            return int(step.regions(rgb, mpp).tissue.sum())

        assert area(0.0256, 0.05) == 40**2
        assert area(0.0255, 0.05) == 40**2 - 20**2
        assert area(0.05, 0.1023) == 40**2
        assert area(0.05, 0.1025) == 0


def test_glass_at_the_frame_is_not_a_hole() -> None:
    bare = np.zeros(SHAPE, bool)
    bare[:12, :12] = bare[60:72, -10:] = bare[-8:, 80:100] = True
    hole = np.zeros(SHAPE, bool)
    hole[70:80, 70:80] = True
    mask = tissue_of(stained(~(bare | hole)))
    assert not mask[bare].any()
    assert mask[~bare].all()


# ---- on slides


def slide_of(folder: Path, rgb: np.ndarray, zoom: int = 8, mpp: float = 1.0) -> str:
    return write_slide(folder / "slide.tif", [rgb.repeat(zoom, 0).repeat(zoom, 1)], mpp)


@pytest.mark.parametrize(("zoom", "mpp", "grid"), [(8, 1.0, 8.0), (8, 0.999, 8.0), (6, 0.7, 8.0), (8, 1.0, 12.0)])
def test_mask_lies_on_level_0(tmp_path: Path, zoom: int, mpp: float, grid: float) -> None:
    tissue = disc(SHAPE, (60, 120), 40)
    slide = open_slide(slide_of(tmp_path, stained(tissue), zoom, mpp))
    mask = SegmentTissue(grid)(slide)
    assert mask.dtype == torch.uint8
    downsample = mask.meta["downsample"]
    assert downsample == round(grid / mpp)
    assert mask.shape == (1, SHAPE[0] * zoom // downsample, SHAPE[1] * zoom // downsample)
    assert mask.meta["thumbnail"].shape == (*mask.shape[1:], 3)
    inside = np.argwhere(mask[0].numpy())
    center = inside.mean(axis=0) @ mask.affine[:2, :2].numpy() + mask.affine[:2, 3].numpy()
    expected = np.argwhere(tissue.repeat(zoom, 0).repeat(zoom, 1)).mean(axis=0)
    assert np.abs(center - expected).max() < downsample / 2
    assert len(inside) * downsample**2 == pytest.approx(tissue.sum() * zoom**2, rel=0.06)


def test_dictionary_twin(tmp_path: Path) -> None:
    slide = open_slide(slide_of(tmp_path, stained(TISSUE)))
    item = {"image": slide, "label": 1}
    out = SegmentTissued("image", mask_key="where", max_hole_mm2=0)(item)
    expected = SegmentTissue(max_hole_mm2=0)(slide)
    assert list(out) == ["image", "label", "where"]
    assert torch.equal(out["where"].as_tensor(), expected.as_tensor())
    assert not torch.equal(expected.as_tensor(), SegmentTissue()(slide).as_tensor())
    with pytest.raises(ValueError, match=r"SegmentTissued: wanted one key, got \('image', 'other'\)"):
        SegmentTissued(["image", "other"])


EMPTY = stained(np.zeros(SHAPE, bool))


@pytest.mark.parametrize(
    ("rgb", "message"),
    [
        (
            EMPTY,
            r"no tissue found \(100% bare glass, 0% pen, 0% dark\); exclude the slide .* min_saturation \(0.04\)",
        ),
        (stroke(EMPTY, PENS["green"]), r"no tissue found \(9\d% bare glass, 9% pen, 0% dark\)"),
        (np.full((*SHAPE, 3), (40, 60, 180), np.uint8), r"no tissue found \(0% bare glass, 100% pen, 0% dark\)"),
        (stroke(EMPTY, PENS["black"]), r"no tissue found \(9\d% bare glass, 0% pen, 4% dark\)"),
        (
            np.where(disc(SHAPE, (75, 90), 40)[..., None], (20, 40, 220), (0, 0, 9)).astype(np.uint8),
            r"wanted a bright-field slide, got 8\d% dark pixels \(fluorescence\?\)",
        ),
    ],
)
def test_slide_without_tissue(tmp_path: Path, rgb: np.ndarray, message: str) -> None:
    slide = open_slide(slide_of(tmp_path, rgb))
    with pytest.raises(ScanError, match=r"slide\.tif: " + message):
        SegmentTissue()(slide)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"mpp": 0}, "mpp must be positive, got 0"),
        ({"min_saturation": 0.2}, r"min_saturation must lie in 0..0.1, got 0.2"),
        ({"min_tissue_mm2": -1}, r"min_tissue_mm2 and max_hole_mm2 must not be negative, got -1, 0.05"),
        ({"inks": ["pink"]}, r"inks must be a list from green, blue, red, black, got \['pink'\]"),
        ({"inks": "red"}, "inks must be a list .* got 'red'"),
    ],
)
def test_wrong_arguments(args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"SegmentTissue: {message}"):
        SegmentTissue(**args)


# ---- real slides


def test_real_slides(shared_data: Path) -> None:
    """Bounds from visually checked masks."""
    skin = SegmentTissue()(open_slide(shared_data / "wsi" / "CMU-1-Small-Region.svs"))
    assert 0.37 < skin.float().mean() < 0.42
    assert not skin[0, :, :30].any(), "dirt and haze on the glass"
    assert not skin[0, :, 125:].any(), "dirt on the glass"
    assert skin[0, 120:, 75:95].all(), "the dermis"
    tumor = SegmentTissue()(open_slide(shared_data / "wsi" / "TCGA-CR-7395-01A-01-TS1.svs", mpp=0.5))
    assert 0.62 < tumor.float().mean() < 0.66
    with pytest.raises(ScanError, match="fluorescence"):
        SegmentTissue()(open_slide(shared_data / "wsi" / "test3-DAPI-2-_387_.ndpi"))
