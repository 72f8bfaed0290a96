from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_pipelines.phantoms import histology_tile, write_histology_tiles
from monai_pipelines.phantoms.fields import cells, grid, noise, scattered, streaks, strokes
from monai_pipelines.phantoms.histology import Stain
from monai_pipelines.phantoms.tissue import TISSUES, Tissue

SMALL = {"size": 64, "num_slides": 3, "progress": False}


def _drawn(name: str, seed: int, size: int = 160) -> Tissue:
    tissue = Tissue(np.random.default_rng(seed), size)
    TISSUES[name](tissue)
    return tissue


def test_folders_names_and_pixels(tmp_path: Path) -> None:
    folder = write_histology_tiles(tmp_path / "tiles", 4, num_workers=1, **SMALL)
    assert sorted(path.name for path in folder.iterdir()) == sorted(TISSUES)
    assert len(TISSUES) == 9
    for name in TISSUES:
        tiles = sorted((folder / name).iterdir())
        slides = Counter(path.stem.split("_")[0] for path in tiles)
        assert slides == {"slide-0000": 2, "slide-0001": 1, "slide-0002": 1}
        with Image.open(tiles[0]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))


def test_counts_of_some_classes(tmp_path: Path) -> None:
    folder = write_histology_tiles(tmp_path / "tiles", {"LYM": 20, "TUM": 1}, num_workers=1, **SMALL)
    assert {path.name: len(list(path.iterdir())) for path in folder.iterdir()} == {"LYM": 20, "TUM": 1}


def test_color_follows_beer_and_lambert() -> None:
    tissue = Tissue(np.random.default_rng(0), 8)
    tissue.blue[:, 4:], tissue.pink[:] = 0.8, 0.5
    light, blue_od, pink_od = np.array([240.0, 230, 235]), np.array([1.0, 0.9, 0.4]), np.array([0.1, 0.6, 0.3])
    stain = Stain(blue_od, pink_od, light, blur_px=0.01, noise=0.0)
    rgb = stain.color(tissue, np.random.default_rng(7))
    thickness = np.random.default_rng(7).uniform(0.6, 1.45)
    np.testing.assert_allclose(rgb[0, 0], light * np.exp(-thickness * 0.5 * pink_od), atol=0.5)
    np.testing.assert_allclose(rgb[0, 7], light * np.exp(-thickness * (0.8 * blue_od + 0.5 * pink_od)), atol=0.5)
    assert rgb.dtype == np.uint8


def _reference_coherence(image: np.ndarray) -> float:
    """How much the gradients of an image share one direction: 0 none, 1 all."""
    down, along = np.gradient(image)
    tensor = np.array([[(down**2).mean(), (down * along).mean()], [(down * along).mean(), (along**2).mean()]])
    low, high = np.linalg.eigvalsh(tensor)
    return float((high - low) / (high + low))


def test_tissues_have_their_typical_structure() -> None:
    drawn = {name: [_drawn(name, seed) for seed in range(4)] for name in TISSUES}
    dark = {name: np.mean([(one.blue > 0.5).mean() for one in made]) for name, made in drawn.items()}
    assert min(dark["LYM"], dark["TUM"], dark["NORM"]) > 2 * max(dark[n] for n in ("ADI", "BACK", "MUC", "MUS"))
    empty = {name: np.mean([(one.pink + one.blue < 0.2).mean() for one in made]) for name, made in drawn.items()}
    assert empty["ADI"] > 0.5
    assert empty["ADI"] > 3 * max(empty[name] for name in ("LYM", "MUS", "TUM", "DEB"))
    streaked = {name: np.mean([_reference_coherence(one.pink) for one in made]) for name, made in drawn.items()}
    assert streaked["MUS"] > 0.5
    assert streaked["MUS"] > streaked["STR"] > streaked["DEB"]
    assert all(one.blue.min() > -0.5 and one.pink.max() < 2.5 for made in drawn.values() for one in made)


def test_nuclei_have_their_size() -> None:
    tissue = Tissue(np.random.default_rng(0), 200)
    centers = np.stack(np.meshgrid([20, 60, 100, 140, 180], [20, 60, 100, 140, 180]), axis=-1).reshape(-1, 2)
    tissue.nuclei(centers, 6.0, elongation=2.0, angle=0.0)
    rows, columns = np.nonzero(tissue.blue > 0.4)
    assert len(rows) / 25 == pytest.approx(np.pi * 6 * 12, rel=0.25)
    spread = [np.abs(axis - np.rint((axis - 20) / 40) * 40 - 20).max() for axis in (rows, columns)]
    assert spread[1] > 1.3 * spread[0]


@pytest.mark.parametrize("length", [2.2, 6.0, 15.0])
def test_noise_has_unit_std_and_its_length(length: float) -> None:
    field = np.stack([noise(np.random.default_rng(seed), 120, length) for seed in range(40)])
    assert abs(field.mean()) < 0.1
    assert 0.8 < field.std() < 1.15
    near = int(np.ceil(length / 4))
    shifted = [np.corrcoef(field[:, step:].ravel(), field[:, :-step].ravel())[0, 1] for step in (near, int(4 * length))]
    assert shifted[0] > 0.5
    assert abs(shifted[1]) < 0.3


def test_streaks_run_along_their_longer_length() -> None:
    field = streaks(np.random.default_rng(0), *grid(100), 4, 40)
    assert np.abs(np.diff(field, axis=0)).mean() > 4 * np.abs(np.diff(field, axis=1)).mean()


def test_cells_by_comparing_all_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 30, (9, 2))
    gap, nearest = cells(points, *grid(30))
    rows, columns = np.mgrid[:30, :30]
    distance = np.sort(np.hypot(rows[..., None] - points[:, 0], columns[..., None] - points[:, 1]), axis=-1)
    np.testing.assert_allclose(gap, distance[..., 1] - distance[..., 0], atol=1e-4)
    assert set(np.unique(nearest)) <= set(range(9))


def test_scattered_points_fill_the_square_and_keep_apart() -> None:
    points = scattered(np.random.default_rng(0), 200, 20, jitter=0.1)
    inside = points[((points >= 0) & (points < 200)).all(axis=1)]
    assert len(inside) == pytest.approx(100, rel=0.15)
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + 1e3 * np.eye(len(points))
    assert apart.min() > 12
    corners = np.array([[0, 0], [0, 200], [200, 0], [200, 200]])
    assert np.linalg.norm(corners[:, None] - points, axis=-1).min(axis=1).max() < 20


def test_strokes_have_their_thickness() -> None:
    image = strokes(60, np.array([[30.0, 10.0]]), np.array([[0.0, 40.0]]), np.array([3.0]))
    assert image[:, 30].sum() == pytest.approx(6, rel=0.1)
    assert image[30, :6].max() == 0
    assert image[30, 15:45].min() == 1


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tissue must be one of ADI, .* got 'FAT'"):
        histology_tile(0, "FAT")
    with pytest.raises(ValueError, match=r"unknown classes \['FAT'\], wanted some of ADI"):
        write_histology_tiles(tmp_path / "a", {"FAT": 3})
    with pytest.raises(ValueError, match="at least 1 tile per class and 1 slide"):
        write_histology_tiles(tmp_path / "a", {"ADI": 0})
    assert not (tmp_path / "a").exists()
