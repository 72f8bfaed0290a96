"""Slides, grids of tiles, samples of them and their pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import ImageCms

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide, Tiles, open_slide
from monai_pipelines.transforms import LoadSlide, LoadSlided, RandSampleTiles, ReadTiles, TileSlide
from tests.transforms.slide.slide_files import disc, pyramid, stained, write_slide


def slide_of(width: int, height: int, mpp: float = 0.5, downsamples: tuple[float, ...] = (1.0,)) -> Slide:
    """Without a file, as far as the grid needs it."""
    sizes = tuple((int(width / d), int(height / d)) for d in downsamples)
    return Slide("none.svs", mpp, (width, height), sizes, downsamples, "aperio", "openslide")


def mask_of(tissue: np.ndarray, downsample: float) -> MetaTensor:
    affine = np.diag([downsample, downsample, 1, 1.0])
    affine[:2, 3] = (downsample - 1) / 2
    return MetaTensor(torch.from_numpy(tissue[None].astype(np.uint8)), affine=torch.from_numpy(affine))


def pixels(height: int, width: int) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return np.stack([rows % 256, columns % 256, (rows // 3 + columns // 5) % 256], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif", [pixels(500, 700)], 0.25)


# ---- load


def test_load(path: str) -> None:
    assert LoadSlide()(path) == open_slide(path)
    assert LoadSlide(0.5)(Path(path)) == open_slide(path, 0.5)
    item = {"image": path, "label": 1}
    assert LoadSlided("image")(item) == {"image": open_slide(path), "label": 1}
    assert item == {"image": path, "label": 1}


@pytest.mark.parametrize("mpp", [0.4, "0.4", " 0.4 ", np.float64(0.4)])
def test_resolution_of_the_item_takes_precedence(path: str, mpp: Any) -> None:
    assert LoadSlided("image", slide_mpp=0.3)({"image": path, "mpp": mpp})["image"].mpp == 0.4
    assert LoadSlided("image", mpp_key="um")({"image": path, "um": mpp, "mpp": 1})["image"].mpp == 0.4


@pytest.mark.parametrize("mpp", [None, "", " ", float("nan")])
def test_empty_resolution_is_ignored(path: str, mpp: Any) -> None:
    assert LoadSlided("image", slide_mpp=0.3)({"image": path, "mpp": mpp})["image"].mpp == 0.3
    assert LoadSlided("image")({"image": path, "mpp": mpp})["image"].mpp == pytest.approx(0.25)


def test_load_errors(path: str, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="lost"):
        LoadSlide()("lost.svs")
    with pytest.raises(ScanError, match="slide_mpp"):
        LoadSlide()(write_slide(tmp_path / "unknown.tif", [pixels(100, 100)], None))
    with pytest.raises(ValueError, match=r"LoadSlide: slide_mpp must lie in 0.1..2 um per pixel, got 0.0001"):
        LoadSlide(1e-4)
    for mpp in ("twenty", "1e-4", 40):
        with pytest.raises(ScanError, match=f"slide.tif: wanted 0.1 to 2 um per pixel in 'mpp', got {mpp!r}"):
            LoadSlided("image")({"image": path, "mpp": mpp})


# ---- grid


def _reference_grid(
    slide: Slide, tissue: np.ndarray, zoom: int, step0: int, side0: int, least: float
) -> list[list[int]]:
    """Tile by tile, on the mask enlarged to level 0."""
    full = np.zeros(slide.size[::-1], bool)
    large = tissue.repeat(zoom, 0).repeat(zoom, 1)
    full[: large.shape[0], : large.shape[1]] = large[: full.shape[0], : full.shape[1]]
    corners = []
    for y in range(0, slide.size[1] - side0 + 1, step0):
        for x in range(0, slide.size[0] - side0 + 1, step0):
            if full[y : y + side0, x : x + side0].sum() >= least * side0**2:
                corners.append([x, y])
    return corners


@pytest.mark.parametrize("downsamples", [(1.0,), (1.0, 4.0, 16.0)])
@pytest.mark.parametrize(
    ("mpp", "tile_px", "level0_px"), [(0.5, 64, 64), (1.0, 50, 100), (2.0, 32, 128), (3.0, 20, 120)]
)
@pytest.mark.parametrize("overlap", [0, 0.5, 0.3])
@pytest.mark.parametrize("min_tissue", [0, 0.3, 0.5, 1])
def test_grid_agrees_with_counting_pixels(
    downsamples: tuple[float, ...], mpp: float, tile_px: int, level0_px: int, overlap: float, min_tissue: float
) -> None:
    rng = np.random.default_rng(0)
    tissue = disc((37, 48), (15, 20), 13) | (rng.random((37, 48)) < 0.3)
    slide = slide_of(790, 600, downsamples=downsamples)
    tiles = TileSlide(mpp, tile_px, overlap, min_tissue)(slide, mask_of(tissue, 16))
    level = int(downsamples[tiles.size.level])
    step = round(tiles.size.level_px * (1 - overlap)) * level
    assert tiles.size.level0_px == level0_px
    assert tiles.coords.dtype == np.int64
    assert tiles.coords.tolist() == _reference_grid(slide, tissue, 16, step, level0_px, min_tissue)
    assert not (tiles.coords % level).any()
    assert tiles.slide is slide


def test_tissue_fractions_on_a_mask_of_any_scale() -> None:
    """17.3 level-0 pixels per mask pixel, against the mask at 0.1 level-0 pixels."""
    tissue = disc((20, 30), (9, 14), 7)
    slide = slide_of(519, 346)
    at_level_0 = np.repeat(np.repeat(tissue, 173, 0), 173, 1)  # in tenths of a pixel
    for least in (0.2, 0.5, 0.8):
        corners = [
            [x, y]
            for y in range(0, 346 - 31, 32)
            for x in range(0, 519 - 31, 32)
            if at_level_0[10 * y : 10 * y + 320, 10 * x : 10 * x + 320].mean() >= least
        ]
        assert TileSlide(0.5, 32, 0, least)(slide, mask_of(tissue, 17.3)).coords.tolist() == corners


def test_level_with_fractional_downsample() -> None:
    slide = slide_of(1000, 800, 0.25, (1.0, 2.53))
    tiles = TileSlide(mpp=0.7, tile_px=64, min_tissue=0)(slide, mask_of(np.ones((100, 125)), 8))
    size = tiles.size
    assert (size.level, size.level_px) == (1, 71)
    in_level = tiles.coords / 2.53
    assert np.abs(in_level - np.rint(in_level)).max() <= 0.5 / 2.53
    assert sorted(set(np.rint(in_level[:, 0]).astype(int).tolist())) == [0, 71, 142, 213, 284]  # 355 + 71 > 395
    assert sorted(set(np.rint(in_level[:, 1]).astype(int).tolist())) == [0, 71, 142, 213]


def test_plain_mask_is_at_level_0() -> None:
    slide, tissue = slide_of(64, 48), np.zeros((1, 48, 64), np.uint8)
    tissue[:, 16:, 32:] = 1
    expected = [[32, 16], [48, 16], [32, 32], [48, 32]]
    for mask in (tissue, torch.from_numpy(tissue), MetaTensor(torch.from_numpy(tissue))):
        assert TileSlide(tile_px=16)(slide, mask).coords.tolist() == expected


def test_grid_errors() -> None:
    slide, tissue = slide_of(640, 480), np.zeros((60, 80), bool)
    tissue[:16, :16] = True
    with pytest.raises(ScanError, match=r"none.svs: none of 2 tiles has 50% tissue, the best has 25.0%; lower min_"):
        TileSlide()(slide, mask_of(tissue, 8))
    assert TileSlide(min_tissue=0.25)(slide, mask_of(tissue, 8)).coords.tolist() == [[0, 0]]
    with pytest.raises(ScanError, match="640 x 480 pixels, smaller than a tile of 512"):
        TileSlide(tile_px=512)(slide, mask_of(tissue, 8))
    with pytest.raises(ScanError, match=r"0\.25"):
        TileSlide(mpp=0.25)(slide, mask_of(tissue, 8))
    for wrong in (mask_of(tissue, 4), mask_of(tissue.T, 8), tissue):
        with pytest.raises(ValueError, match=r"TileSlide: wanted a mask \(1, h, w\) of the whole slide, 640 x 480 pix"):
            TileSlide()(slide, wrong)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"mpp": 0}, "mpp must be positive, got 0"),
        ({"tile_px": 0}, "tile_px must be a whole number of pixels, got 0"),
        ({"tile_px": 2.5}, "tile_px must be a whole number of pixels, got 2.5"),
        ({"overlap": 1}, r"overlap must lie in 0..<1 \(a fraction of the side\), got 1"),
        ({"min_tissue": 50}, r"min_tissue must lie in 0..1, got 50"),
    ],
)
def test_wrong_grid_arguments(args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"TileSlide: {message}"):
        TileSlide(**args)


# ---- sample


def tiles_of(num: int) -> Tiles:
    slide = slide_of(64 * num, 64)
    return Tiles(slide, np.stack([np.arange(num) * 64, np.zeros(num, np.int64)], 1), slide.tile_size(64, 0.5))


def test_sample_without_replacement_in_order_and_uniformly() -> None:
    tiles, step = tiles_of(20), RandSampleTiles(5).set_random_state(0)
    draws = np.array([step(tiles).coords[:, 0] // 64 for _ in range(2000)])
    assert (np.diff(draws, axis=1) > 0).all()
    counts = np.bincount(draws.ravel(), minlength=20)
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)
    assert len({tuple(draw) for draw in draws}) > 1500


def test_sample_of_all() -> None:
    tiles = tiles_of(4)
    for num in (None, 4, 9):
        assert RandSampleTiles(num)(tiles) is tiles
    assert len(RandSampleTiles(3)(tiles)) == 3
    with pytest.raises(ValueError, match="RandSampleTiles: num_tiles must be 1 or more, or None for all, got 0"):
        RandSampleTiles(0)


# ---- read


def _reference_mean(region: np.ndarray, side: int) -> np.ndarray:
    """Means of areas, one axis after the other, by differences of the cumulative sum."""
    for axis in (0, 1):
        num = region.shape[axis]
        sums = np.insert(np.cumsum(region, axis=axis, dtype=np.float64), 0, 0, axis=axis)
        edges = np.linspace(0, num, side + 1)
        at = np.apply_along_axis(lambda line, n=num, e=edges: np.interp(e, np.arange(n + 1), line), axis, sums)
        region = np.diff(at, axis=axis) * side / num
    return region


@pytest.mark.parametrize("levels", [(1,), (1, 4), (1, 2, 4, 8)])
@pytest.mark.parametrize(
    ("slide_mpp", "mpp", "tile_px"), [(0.499, 0.5, 64), (0.2525, 0.5, 48), (0.25, 1.0, 40), (0.25, 0.6, 40)]
)
def test_pixels_are_reduced_from_level_0(
    tmp_path: Path, levels: tuple[int, ...], slide_mpp: float, mpp: float, tile_px: int
) -> None:
    full = stained(disc((520, 640), (250, 300), 200), seed=1)
    slide = open_slide(write_slide(tmp_path / "slide.tif", pyramid(full, levels), slide_mpp))
    tiles = TileSlide(mpp, tile_px, overlap=0.25, min_tissue=0)(slide, np.ones((1, 520, 640)))
    bag = ReadTiles()(tiles)
    side = tiles.size.level0_px
    assert side == pytest.approx(tile_px * mpp / slide_mpp, rel=0.011)
    assert bag.meta["mpp"] == pytest.approx(side * slide.mpp / tile_px)
    assert bag.shape == (len(tiles), 3, tile_px, tile_px)
    worst = []
    for (x, y), tile in zip(tiles.coords, bag.numpy(), strict=True):
        at_level = _reference_mean(full[y : y + side, x : x + side], tiles.size.level_px)
        worst.append(np.abs(_reference_mean(at_level, tile_px).transpose(2, 0, 1) - tile).max())
    assert max(worst) <= 1.01


def test_bag(path: str) -> None:
    slide = open_slide(path)
    tiles = Tiles(slide, np.array([[512, 64], [0, 0], [128, 256]]), slide.tile_size(64, 0.5))
    bag = ReadTiles()(tiles)
    assert bag.dtype == torch.uint8
    assert bag.shape == (3, 3, 64, 64)
    assert bag.as_tensor().is_contiguous(memory_format=torch.channels_last)
    expected = {"mpp": 0.5, "slide_mpp": 0.25, "tile_px": 64, "level0_px": 128}
    assert {key: bag.meta[key] for key in expected} == pytest.approx(expected)
    assert bag.meta["coords"] is tiles.coords
    assert not any("slide.tif" in str(value) for value in bag.meta.values())
    assert torch.equal(ReadTiles(num_threads=3)(tiles).as_tensor(), bag.as_tensor())
    assert ReadTiles("srgb")(tiles[:0]).shape == (0, 3, 64, 64)


def test_color_profile(tmp_path: Path) -> None:
    """A profile with red and blue swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = (profile.index(tag, 128) for tag in (b"rXYZ", b"bXYZ"))
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    assert ImageCms.ImageCmsProfile(BytesIO(bytes(profile)))
    full = pixels(200, 300)
    slide = open_slide(write_slide(tmp_path / "swapped.tif", [full], iccprofile=bytes(profile)))
    tiles = Tiles(slide, np.array([[0, 0], [100, 50]]), slide.tile_size(100, 0.5))
    stored = ReadTiles()(tiles).numpy().astype(int)
    srgb = ReadTiles("srgb")(tiles)
    assert np.abs(srgb.numpy() - stored[:, ::-1]).max() <= 2
    assert srgb.as_tensor().is_contiguous(memory_format=torch.channels_last)
    plain = open_slide(write_slide(tmp_path / "plain.tif", [full]))
    same = Tiles(plain, tiles.coords, tiles.size)
    assert np.array_equal(ReadTiles("srgb")(same).numpy(), stored)
    broken = open_slide(write_slide(tmp_path / "broken.tif", [full], iccprofile=b"no profile" * 30))
    with pytest.raises(ScanError, match=r"broken.tif: unusable ICC profile .*; read it with color 'none'"):
        ReadTiles("srgb")(Tiles(broken, tiles.coords, tiles.size))


def test_wrong_reading_arguments() -> None:
    with pytest.raises(ValueError, match="ReadTiles: color must be 'none' or 'srgb', got 'icc'"):
        ReadTiles("icc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ReadTiles: num_threads must be 1 or more, got 0"):
        ReadTiles(num_threads=0)
