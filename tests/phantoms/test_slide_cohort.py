from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation, binary_erosion

from monai_pipelines.phantoms import write_pyramid, write_slides
from monai_pipelines.phantoms.slide_canvas import CELL_PX, INKS, draw_slide
from monai_pipelines.phantoms.slide_cohort import _features, _plan
from monai_pipelines.phantoms.slide_layout import GLASS, STROMA, TUMOUR, SlideLayout, draw_layout
from tests.phantoms.written_files import hash_files, read_rows

SMALL = {"size_mm": (0.7, 0.5), "tumour_fraction": (0.1, 0.2), "progress": False}


def _mask(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / "masks" / f"{name}.png") as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 4, seed=3, num_workers=1, **SMALL).parent


def test_table_and_files(cohort: Path) -> None:
    rows = read_rows(cohort / "table.csv")
    assert [row["patient"] for row in rows] == [f"phantom-{index:04d}" for index in range(4)]
    assert [row["image"] for row in rows] == [f"slides/slide-{index:04d}.tif" for index in range(4)]
    assert sorted(row["label"] for row in rows) == ["normal"] * 2 + ["tumour"] * 2
    annotated = {row["annotation"] for row in rows} - {""}
    assert annotated == {f"annotations/{path.name}" for path in (cohort / "annotations").iterdir()}
    for row in rows:
        name = Path(row["image"]).stem
        assert row["annotation"] == (f"annotations/{name}.geojson" if row["label"] == "tumour" else "")
        assert set(np.unique(_mask(cohort, name))) == ({0, 128, 255} if row["label"] == "tumour" else {0, 128})


def test_slides_open_with_their_resolution_and_levels(cohort: Path) -> None:
    scanners: dict[str, list[float]] = {"normal": [], "tumour": []}
    for row in read_rows(cohort / "table.csv"):
        with openslide.OpenSlide(cohort / row["image"]) as slide:
            mpp = float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
            assert mpp == pytest.approx(float(slide.properties[openslide.PROPERTY_NAME_MPP_Y]))
            assert slide.level_downsamples == pytest.approx((1, 4, 16), rel=0.02)
            assert np.array(slide.dimensions) * mpp / 1000 == pytest.approx((0.7, 0.5), abs=0.001)
            assert slide.properties["openslide.level[0].tile-width"] == "256"
            assert slide.properties[openslide.PROPERTY_NAME_VENDOR] == "generic-tiff"
            cell_px = 8 if mpp > 0.4 else 16
            assert (
                tuple(-(-side // cell_px) for side in slide.dimensions)
                == _mask(cohort, Path(row["image"]).stem).shape[::-1]
            )
        scanners[row["label"]].append(round(mpp, 4))
    assert sorted(scanners["normal"]) == sorted(scanners["tumour"]) == [0.2525, 0.499]


def test_another_seed_is_another_slide(cohort: Path) -> None:
    assert len(set(hash_files(cohort / "slides").values())) == 4
    assert _plan(2, 3, (0.1, 0.2))[0].tumour_fraction != _plan(2, 4, (0.1, 0.2))[0].tumour_fraction


def test_levels_are_means_of_the_first(cohort: Path) -> None:
    with openslide.OpenSlide(cohort / "slides/slide-0000.tif") as slide:
        level0 = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
        for level, times in ((1, 4), (2, 16)):
            size = slide.level_dimensions[level]
            got = np.asarray(slide.read_region((0, 0), level, size).convert("RGB"), dtype=float)
            wanted = np.asarray(level0.reduce(times), dtype=float)[: size[1], : size[0]]
            assert np.abs((got - wanted).mean()) < 1
            shifted = [np.abs(got - np.roll(wanted, 1, axis)).mean() for axis in (0, 1)]
            assert np.abs(got - wanted).mean() < 0.5 * min(shifted)


def test_masks_lie_on_the_tissue(cohort: Path) -> None:
    for row in read_rows(cohort / "table.csv"):
        tissue = _mask(cohort, Path(row["image"]).stem) > 0
        with openslide.OpenSlide(cohort / row["image"]) as slide:
            image = slide.read_region((0, 0), 0, slide.dimensions).convert("L").resize(tissue.shape[::-1])
        gray = np.asarray(image, dtype=float)
        glass = ~binary_dilation(tissue, iterations=2)
        light = np.median(gray[glass])
        assert light > 215
        assert np.mean(gray[binary_erosion(tissue, iterations=2)] < light - 12) > 0.7
        assert np.mean(np.abs(gray[glass] - light) < 8) > 0.7  # others are pen and dust


def _reference_rasterized(features: list[dict], cell_px: int, shape: tuple[int, int]) -> np.ndarray:
    """Cells whose center lies in a polygon and in none of its holes."""
    image = Image.new("1", (cell_px * shape[1], cell_px * shape[0]))
    draw = ImageDraw.Draw(image)
    for feature in features:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            draw.polygon([tuple(point) for point in ring], fill=int(number == 0))
    return np.array(image)[cell_px // 2 :: cell_px, cell_px // 2 :: cell_px]


def test_annotations_are_the_masks_in_pixels_of_level_0(cohort: Path) -> None:
    paths = sorted((cohort / "annotations").iterdir())
    for path in paths:
        outlines = json.loads(path.read_text())
        assert outlines["type"] == "FeatureCollection"
        for feature in outlines["features"]:
            assert feature["geometry"]["type"] == "Polygon"
            assert feature["properties"]["classification"]["name"] == "Tumor"
            assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])
        tumour = _mask(cohort, path.stem) == 255
        with openslide.OpenSlide(cohort / "slides" / f"{path.stem}.tif") as slide:
            cell_px = 8 if slide.dimensions[0] < 2000 else 16
        drawn = _reference_rasterized(outlines["features"], cell_px, tumour.shape)
        assert (drawn & tumour).sum() / (drawn | tumour).sum() > 0.95
        assert np.argwhere(drawn).mean(axis=0) == pytest.approx(np.argwhere(tumour).mean(axis=0), abs=0.15)


@pytest.mark.parametrize("tumour", [True, False])
def test_islands_cover_their_share_of_the_same_tissue(tumour: bool) -> None:
    for seed in range(4):
        share = (0.01, 0.2)[seed % 2]
        layout = draw_layout(np.random.default_rng(seed), (200, 260), share, tumour, pen=False)
        other = draw_layout(np.random.default_rng(seed), (200, 260), share, not tumour, pen=False)
        tissue = layout.kinds != GLASS
        assert (layout.kinds == TUMOUR).sum() / tissue.sum() == pytest.approx(share * tumour, rel=0.05)
        np.testing.assert_array_equal(tissue, other.kinds != GLASS)
        assert 0.2 < tissue.mean() < 0.45
        assert not tissue[[0, -1]].any()
        assert not tissue[:, [0, -1]].any()
        assert len(np.unique(layout.kinds)) >= 5
        assert not layout.pen.any()


def test_every_tumour_is_large_enough_to_see() -> None:
    for seed in range(8):
        kinds = draw_layout(np.random.default_rng(seed), (125, 125), 1e-4, tumour=True, pen=False).kinds
        assert (kinds == TUMOUR).sum() >= 16
        assert _features(kinds == TUMOUR, CELL_PX), "has an outline"


def test_only_the_tissue_reveals_the_class() -> None:
    plans = _plan(36, seed=0, tumour_fraction=(0.01, 0.2))
    for part in ("scanner", "ink"):
        kinds = [sorted(str(getattr(plan, part)) for plan in plans if plan.label == label) for label in (0, 1)]
        assert kinds[0] == kinds[1]
    inks = [plan.ink for plan in plans]
    assert {ink: inks.count(ink) for ink in INKS} == {"blue": 4, "green": 4, "black": 4}
    assert all(0.01 <= plan.tumour_fraction <= 0.2 for plan in plans)


def test_kinds_and_pen_are_drawn_where_they_lie() -> None:
    kinds = np.full((64, 64), GLASS, dtype=np.uint8)
    kinds[:, 20:40], kinds[:, 40:] = STROMA, TUMOUR
    pen = np.zeros(kinds.shape, dtype=bool)
    pen[24:40, :12] = True
    slide = np.asarray(draw_slide(np.random.default_rng(2), SlideLayout(kinds, pen), "green"), dtype=float)
    assert slide.shape == (CELL_PX * 64, CELL_PX * 64, 3)
    inside = {
        "glass": np.s_[:160, 20:130],
        "pen": np.s_[210:300, 10:80],
        "STR": np.s_[:, 180:300],
        "TUM": np.s_[:, 340:],
    }
    color = {name: slide[window].mean(axis=(0, 1)) for name, window in inside.items()}
    assert color["glass"].min() > 215
    assert color["pen"] == pytest.approx(
        0.9 * np.array(INKS["green"]) * color["glass"] / 255 + 0.1 * color["glass"], abs=6
    )
    assert color["TUM"][0] < color["STR"][0] < color["glass"][0] - 15


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("tile_px", [64, 240])
def test_pyramid_keeps_pixels_and_has_its_tags(tmp_path: Path, subsampling: tuple[int, int], tile_px: int) -> None:
    rows, columns = np.mgrid[:290, :410]
    pixels = np.stack([250 - rows / 2, columns / 2, 60 + (rows + columns) / 5], axis=-1).astype(np.uint8)
    path = tmp_path / "slide.tif"
    write_pyramid(path, [pixels, pixels[::2, ::2]], 0.25, tile_px=tile_px, quality=95, subsampling=subsampling)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((410, 290), (205, 145))
        for level, wanted in enumerate((pixels, pixels[::2, ::2])):
            got = slide.read_region((0, 0), level, slide.level_dimensions[level])
            assert np.asarray(got)[..., 3].min() == 255
            difference = np.asarray(got.convert("RGB"), dtype=float) - wanted
            assert np.abs(difference).max() < 8
            assert np.abs(difference.mean(axis=(0, 1))).max() < 1
    with tifffile.TiffFile(path) as file:
        first, second = file.pages
        assert (first.is_tiled, first.is_reduced, second.is_reduced) == (True, False, True)
        assert (first.photometric.name, first.compression.name) == ("YCBCR", "JPEG")
        assert first.tags["YCbCrSubSampling"].value == subsampling
        assert first.resolutionunit.name == "CENTIMETER"
        assert first.resolution == pytest.approx((40_000, 40_000))
        assert second.resolution == pytest.approx((20_000, 20_000))
        assert len(first.dataoffsets) == -(-290 // tile_px) * -(-410 // tile_px)
        file.filehandle.seek(first.dataoffsets[1])
        tile = file.filehandle.read(first.databytecounts[1])
    color = {(1, 1): "444", (2, 1): "422", (2, 2): "420"}[subsampling]
    assert simplejpeg.decode_jpeg_header(tile)[:4] == (tile_px, tile_px, "YCbCr", color)
    decoded = simplejpeg.decode_jpeg(tile).astype(float)[:, : min(tile_px, 410 - tile_px)]
    assert np.abs(decoded - pixels[:tile_px, tile_px : 2 * tile_px]).max() < 8


def test_command_line_writes_the_same_bytes_for_any_workers(tmp_path: Path) -> None:
    options = ["--slides", "2", "--size-mm", "0.5", "0.6", "--tumour-fraction", "0.1", "0.2", "--workers", "2"]
    command = [sys.executable, "-m", "monai_pipelines", "phantoms", "slides", str(tmp_path / "new"), "--seed", "5"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"wrote {tmp_path / 'new/table.csv'}"
    table = write_slides(
        tmp_path / "same", 2, 5, size_mm=(0.5, 0.6), tumour_fraction=(0.1, 0.2), num_workers=1, progress=False
    )
    assert hash_files(table.parent) == hash_files(tmp_path / "new")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_slides must be at least 2, got 1"):
        write_slides(tmp_path / "a", 1)
    with pytest.raises(ValueError, match=r"size_mm must be at least 0.5 x 0.5, got \(2, 0.1\)"):
        write_slides(tmp_path / "a", size_mm=(2, 0.1))
    with pytest.raises(ValueError, match=r"tumour_fraction must rise within \(0, 1\), got \(0.2, 0.1\)"):
        write_slides(tmp_path / "a", tumour_fraction=(0.2, 0.1))
    assert not (tmp_path / "a").exists()
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"write_pyramid: subsampling must be one of .*, got \(4, 1\)"):
        write_pyramid(tmp_path / "x.tif", [pixels], 0.5, subsampling=(4, 1))
    with pytest.raises(ValueError, match="write_pyramid: tile_px must be a multiple of 16, got 100"):
        write_pyramid(tmp_path / "x.tif", [pixels], 0.5, tile_px=100)
    assert not (tmp_path / "x.tif").exists()
