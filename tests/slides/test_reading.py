"""Pixels equal OpenSlide's, or means of them, wherever a tile lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from openslide import OpenSlide
from PIL import Image

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide, close_slides, open_slide
from monai_pipelines.slides.handles import open_reader
from monai_pipelines.slides.readers import Reader
from monai_pipelines.slides.segments import JpegSegments
from tests.slides.slide_files import RGB, YCBCR, levels, pixels, write_lossless, write_slide


def _reader(slide: Slide) -> Reader:
    return open_reader(slide.path, slide.backend, slide.stamp)


def _reference_region(path: Path | str, x: int, y: int, width: int, height: int, level: int = 0) -> np.ndarray:
    """OpenSlide's region, on white."""
    with OpenSlide(path) as slide:
        region = slide.read_region((x, y), level, (width, height))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", region.size, "white"), region))[..., :3]


def _reference_shrunk(region: np.ndarray, factor: int) -> np.ndarray:
    height, width, _ = region.shape
    return region.reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("tables", [False, True], ids=["whole", "tables"])
@pytest.mark.parametrize(
    ("photometric", "subsampling"), [(YCBCR, "444"), (YCBCR, "422"), (YCBCR, "420"), (YCBCR, "440"), (RGB, "444")]
)
def test_raw_tiles_equal_openslide(tmp_path: Path, photometric: int, subsampling: str, tables: bool) -> None:
    pyramid = levels(300, 400, (1, 2, 4))
    path = write_slide(tmp_path / "slide.tif", pyramid, photometric=photometric, subsampling=subsampling, tables=tables)
    slide = open_slide(path)
    assert all(isinstance(segments, JpegSegments) for segments in _reader(slide)._segments)
    rng = np.random.default_rng(0)
    for level, (width, height) in enumerate(slide.level_sizes):
        whole = slide.read_region(0, 0, width, height, level)
        assert np.abs(whole.astype(int) - pyramid[level]).mean() < 5  # the colors are right, not only equal
        for x, y in [(0, 0), (64, 128), *rng.integers(-60, [width, height], (10, 2)).tolist()]:
            at = x * 2**level, y * 2**level
            for size in [(64, 64), (90, 71)]:
                assert np.array_equal(
                    slide.read_region(*at, *size, level), _reference_region(path, *at, *size, level)
                ), (at, size, level)


def test_tiles_of_the_real_slide_equal_openslide(shared_data: Path) -> None:
    """Tiles of 240 px, RGB labeled as YCbCr, shared tables."""
    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    slide = open_slide(path)
    assert (slide.mpp, slide.size, slide.vendor) == (0.499, (2220, 2967), "aperio")
    assert isinstance(_reader(slide)._segments[0], JpegSegments)
    whole = _reference_region(path, 0, 0, 2560, 3200)
    for side in (240, 256):
        coords = [(x, y) for y in range(0, 2967, side) for x in range(0, 2220, side)]
        size = slide.tile_size(side, 0.5)
        assert size == (side, 0.499, 0, side, side)
        tiles = slide.read_tiles(coords, size)
        assert all(
            np.array_equal(tile, whole[y : y + side, x : x + side]) for tile, (x, y) in zip(tiles, coords, strict=True)
        )
        assert np.array_equal(slide.read_tiles(coords, size, num_threads=3), tiles)


@pytest.mark.parametrize("mpp", [0.499, 0.2525])
@pytest.mark.parametrize("downsamples", [(1,), (1, 4), (1, 2, 4, 8, 16, 32, 64)], ids=len)
def test_tile_is_the_mean_of_its_level0_region(tmp_path: Path, downsamples: tuple[int, ...], mpp: float) -> None:
    pyramid = levels(1100, 1300, downsamples)
    slide = open_slide(write_lossless(tmp_path / "slide.tif", pyramid, mpp=mpp))
    assert slide.level_downsamples == downsamples
    assert slide.mpp == pytest.approx(mpp, rel=1e-4)
    for wanted in (0.5, 1.0, 4.0):
        size = slide.tile_size(32, wanted)
        assert size.mpp == pytest.approx(wanted, rel=0.0101)
        assert size.mpp == pytest.approx(size.level0_px * slide.mpp / 32)
        coords = np.random.default_rng(0).integers(0, [1300 - size.level0_px, 1100 - size.level0_px], (20, 2))
        coords -= coords % int(slide.level_downsamples[size.level])
        for tile, (x, y) in zip(slide.read_tiles(coords, size), coords, strict=True):
            region = pyramid[0][y : y + size.level0_px, x : x + size.level0_px]
            assert np.abs(tile - _reference_shrunk(region, size.level0_px // 32)).max() <= 1.01


def test_tile_of_a_fractional_ratio(tmp_path: Path) -> None:
    pyramid = [pixels(600, 600)]
    slide = open_slide(write_lossless(tmp_path / "slide.tif", pyramid, mpp=0.3))
    size = slide.tile_size(100, 0.5)
    assert (size.level_px, size.level0_px, size.mpp) == (167, 167, pytest.approx(0.501, rel=1e-4))
    (tile,) = slide.read_tiles([(50, 70)], size)
    edges = np.arange(101) * 1.67
    overlap = np.clip(
        np.minimum(edges[1:, None], np.arange(1, 168)) - np.maximum(edges[:-1, None], np.arange(167)), 0, 1
    )
    mean = np.einsum("ai,bj,ijc->abc", overlap, overlap, pyramid[0][70:237, 50:217], optimize=True) / 1.67**2
    assert np.abs(tile - mean).max() <= 0.51


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_while_decoding_is_near_the_mean(shared_data: Path, factor: int) -> None:
    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    slide = open_slide(path)
    size = slide.tile_size(120, 0.499 * factor)
    assert size.level_px == 120 * factor
    inside = [(0, 0), (240, 480), (80, 1000), (1000, 1600)]
    for tile, xy in zip(slide.read_tiles(inside, size), inside, strict=True):
        mean = _reference_shrunk(_reference_region(path, *xy, size.level_px, size.level_px), factor)
        assert np.abs(tile - mean).mean() < 1
    odd = [(factor + 1, 0), (2220 - size.level_px // 2, 0), (-8, -8)]  # where it is not possible: the exact mean
    for tile, xy in zip(slide.read_tiles(odd, size), odd, strict=True):
        mean = _reference_shrunk(_reference_region(path, *xy, size.level_px, size.level_px), factor)
        assert np.abs(tile - mean).max() <= 0.51


def test_white_beyond_the_edge_and_for_missing_tiles(tmp_path: Path) -> None:
    pyramid = levels(300, 400)
    path = write_slide(tmp_path / "slide.tif", pyramid)
    for region in [(-500, -500, 64, 64), (400, 0, 64, 64), (1000, 1000, 100, 64)]:
        assert (open_slide(path).read_region(*region) == 255).all()
    with tifffile.TiffFile(path, mode="r+") as file:
        sizes = file.pages[0].tags["TileByteCounts"]
        sizes.overwrite([0, *sizes.value[1:]])
    sparse = open_slide(path)
    assert _reader(sparse)._segments == [None]
    region = sparse.read_region(0, 0, 200, 150)
    assert (region[:64, :64] == 255).all()
    assert np.array_equal(region, _reference_region(path, 0, 0, 200, 150))


def test_white_for_missing_tiles_by_tifffile(tmp_path: Path) -> None:
    pyramid = levels(300, 400, (1, 2))
    path = write_slide(tmp_path / "slide.tif", pyramid, sub_ifds=True)
    with tifffile.TiffFile(path, mode="r+") as file:
        sizes = file.pages[0].tags["TileByteCounts"]
        sizes.overwrite([0, *sizes.value[1:]])
    slide = open_slide(path)
    assert slide.backend == "tifffile"
    region = slide.read_region(0, 0, 200, 150)
    assert (region[:64, :64] == 255).all()
    assert np.abs(region[64:] - pyramid[0][64:150, :200].astype(int)).mean() < 5


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("layout", [{}, {"compression": "zlib", "rowsperstrip": 16}], ids=["plain", "zlib"])
def test_transparent_is_white(tmp_path: Path, alpha: str, layout: dict) -> None:
    rgb = pixels(150, 200)
    opacity = np.random.default_rng(0).integers(0, 256, (150, 200, 1), dtype=np.uint8)
    opacity[:50], opacity[50:90] = 0, 255
    share = opacity / 255
    stored = np.rint(rgb * share).astype(np.uint8) if alpha == "assocalpha" else rgb
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.dstack([stored, opacity]), photometric="rgb", extrasamples=[alpha], **layout)
    slide = open_slide(path, mpp=0.5)
    assert slide.backend == "tifffile"
    expected = rgb if alpha == "unspecified" else rgb * share + 255 * (1 - share)
    assert np.abs(slide.read_region(0, 0, 200, 150) - expected).max() <= 0.51


def test_rows_are_read_from_a_plain_strip(tmp_path: Path) -> None:
    rgb = pixels(1000, 200)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", rowsperstrip=1000)
    slide = open_slide(path, mpp=0.5)
    assert np.array_equal(slide.read_region(20, 500, 100, 10), rgb[500:510, 20:120])
    (segments,) = _reader(slide)._segments
    assert sum(rows.nbytes for rows in segments._decoded.values()) == 64 * 200 * 3
    assert np.array_equal(slide.read_region(0, 0, 200, 1000), rgb)


def test_huge_strip_raises_and_large_one_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = pixels(150, 200)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", compression="zlib", rowsperstrip=150)
    slide = open_slide(path, mpp=0.5)
    monkeypatch.setattr("monai_pipelines.slides.segments.CACHE_BYTES", rgb.nbytes - 1)
    for _ in range(2):
        assert np.array_equal(slide.read_region(20, 50, 100, 10), rgb[50:60, 20:120])
        assert not _reader(slide)._segments[0]._decoded
    monkeypatch.setattr("monai_pipelines.slides.segments.MAX_SEGMENT_BYTES", rgb.nbytes - 1)
    with pytest.raises(ScanError, match=r"segments of 200 x 150 pixels, too large .*; convert it to a tiled TIFF"):
        open_slide(path, mpp=0.5)


def test_huge_tile_never_reaches_openslide(tmp_path: Path) -> None:
    """OpenSlide aborts the process when it gets no memory."""
    path = write_lossless(tmp_path / "slide.tif", levels(300, 400), mpp=0.5)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["TileWidth"].overwrite(2**28)
    with pytest.raises(ScanError, match=r"segments of 268435456 x 64 pixels, too large .*; convert it to a tiled TIFF"):
        open_slide(path)


def test_levels_that_do_not_divide_have_whole_downsamples(shared_data: Path) -> None:
    """OpenSlide divides sizes, gets 2.0005, and blurs regions that start between two pixels."""
    slide = open_slide(shared_data / "wsi" / "TCGA-CR-7395-01A-01-TS1.svs", mpp=0.5)
    assert slide.level_downsamples == (1, 2)
    assert slide.color_profile is not None
    far = (3600, 2800)
    mean = _reference_shrunk(slide.read_region(*far, 400, 400), 2)
    ours = np.abs(slide.read_region(*far, 200, 200, level=1) - mean).mean()
    openslides = np.abs(_reference_region(slide.path, *far, 200, 200, level=1) - mean).mean()
    assert ours < openslides


def test_thumbnail(tmp_path: Path, shared_data: Path) -> None:
    pyramid = levels(1100, 1303, (1, 4))
    slide = open_slide(write_lossless(tmp_path / "slide.tif", pyramid, mpp=0.499))
    small, downsample = slide.thumbnail(8)
    assert (small.shape, downsample) == ((68, 81, 3), 16)
    assert np.abs(small - _reference_shrunk(pyramid[0][:1088, :1296], 16)).max() <= 1.01
    assert slide.thumbnail(0.1)[1] == 1
    assert slide.thumbnail(4000)[0].shape == (1, 1, 3)  # no smaller than a pixel
    real = open_slide(shared_data / "wsi" / "CMU-1-Small-Region.svs")  # of one level: tiles are shrunk while decoded
    small, downsample = real.thumbnail(8)
    assert (small.shape, downsample) == ((185, 138, 3), 16)
    whole = _reference_region(real.path, 0, 0, 138 * 16, 185 * 16)
    assert np.abs(small - _reference_shrunk(whole, 16)).mean() < 0.5


def test_threads_share_a_slide(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "slide.tif", levels(1000, 1000)))
    coords = np.random.default_rng(0).integers(0, 940, (200, 2))
    size = slide.tile_size(60, 0.5)
    one = slide.read_tiles(coords, size)
    close_slides()
    assert np.array_equal(slide.read_tiles(coords, size, num_threads=8), one)
    assert slide.read_tiles([], size, num_threads=2).shape == (0, 60, 60, 3)


def test_cache_of_decoded_tiles_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_pipelines.slides.segments.CACHE_BYTES", 3 * 64 * 64 * 3)
    path = write_slide(tmp_path / "slide.tif", levels(640, 640))
    slide = open_slide(path)
    assert np.array_equal(slide.read_region(3, 3, 600, 600), _reference_region(path, 3, 3, 600, 600))
    (segments,) = _reader(slide)._segments
    assert isinstance(segments, JpegSegments)
    assert len(segments._decoded) == 3


@pytest.mark.parametrize("broken", [slice(10, 200), slice(-900, None)])
def test_corrupt_tile_raises_and_others_are_read(tmp_path: Path, broken: slice) -> None:
    path = write_slide(tmp_path / "slide.tif", levels(300, 400))
    before = open_slide(path).read_region(0, 0, 400, 300)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        begin, length = file.pages[0].dataoffsets[9], file.pages[0].databytecounts[9]
    tile = data[begin : begin + length]
    tile[broken] = bytes(len(tile[broken]))
    data[begin : begin + length] = tile
    path.write_bytes(data)
    slide = open_slide(path)
    size = slide.tile_size(64, 0.5)
    with pytest.raises(ScanError, match=rf"{path}: corrupt at level 0, row 1, column 2 of its tiles .*; copy it again"):
        slide.read_tiles([(0, 0), (128, 64)], size)
    with pytest.raises(ScanError, match="row 1, column 2"):
        slide.thumbnail(8)
    assert np.array_equal(slide.read_tiles([(192, 64)], size)[0], before[64:128, 192:256])


def test_openslide_errors_are_raised(tmp_path: Path) -> None:
    path = write_lossless(tmp_path / "slide.tif", levels(300, 400), mpp=0.5)
    with tifffile.TiffFile(path) as file:
        begin, length = file.pages[0].dataoffsets[9], file.pages[0].databytecounts[9]
    data = bytearray(path.read_bytes())
    data[begin : begin + length] = bytes(length)
    path.write_bytes(data)
    slide = open_slide(path)
    for _ in range(2):  # an error ends OpenSlide's handle: it is reopened
        with pytest.raises(ScanError, match=r"OpenSlide cannot read level 0 at its pixel \(128, 64\)"):
            slide.read_region(128, 64, 32, 32)
        assert slide.read_region(0, 0, 32, 32).shape == (32, 32, 3)


def test_arguments(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "slide.tif", levels(300, 400)))
    size = slide.tile_size(64, 0.5)
    with pytest.raises(ValueError, match=r"read_region: level must lie in 0..0, got 1"):
        slide.read_region(0, 0, 10, 10, level=1)
    with pytest.raises(ValueError, match="read_region: width and height must be 1 or more, got 0 and 10"):
        slide.read_region(0, 0, 0, 10)
    with pytest.raises(ValueError, match=r"read_tiles: coords must be \(N, 2\), got shape \(2,\)"):
        slide.read_tiles([0, 0], size)
    with pytest.raises(ValueError, match="read_tiles: num_threads must be 1 or more, got 0"):
        slide.read_tiles([(0, 0)], size, num_threads=0)
    with pytest.raises(ValueError, match="tile_size: tile_px and mpp must be above 0, got 0 and 1"):
        slide.tile_size(0, 1)
    with pytest.raises(ValueError, match="thumbnail: mpp must be above 0, got 0"):
        slide.thumbnail(0)
    with pytest.raises(ScanError, match=r"wanted tiles of 0.4 um per pixel, the slide has 0.5 .* ask for 0.5 or more"):
        slide.tile_size(64, 0.4)
