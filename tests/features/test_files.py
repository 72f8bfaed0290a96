"""Files of features: written and read, also those of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from monai_pipelines.data import feature_file, make_loader
from monai_pipelines.errors import ScanError
from monai_pipelines.features import FeatureBag, FeatureBags, read_features, write_features
from tests.features.small_slides import NUM_FEATURES, small_backbone, small_chain

Item = dict[str, Any]


def _foreign(file: Path, features: np.ndarray, coords: np.ndarray | None = None, **attributes: Any) -> Path:
    with h5py.File(file, "w") as out:
        out["features"] = features
        if coords is not None:
            out["coords"] = coords
            out["coords"].attrs.update(attributes)
    return file


GRID = np.array([[0, 0], [512, 0], [0, 512]])


@pytest.mark.parametrize(
    ("attributes", "level0_px"),
    [
        ({}, 512),  # CLAM's features: from the grid
        ({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}, 1024),  # CLAM's patches
        ({"patch_size": 256, "patch_size_level0": 500, "overlap": 0}, 500),  # TRIDENT
    ],
)
def test_features_of_other_tools(tmp_path: Path, attributes: Item, level0_px: int) -> None:
    bag = read_features(_foreign(tmp_path / "a.h5", np.ones((1, 3, 8), np.float16), GRID, **attributes))
    assert (bag.features.shape, bag.features.dtype) == ((3, 8), np.float32)
    np.testing.assert_array_equal(bag.coords, GRID)
    assert (bag.level0_px, bag.mpp, bag.thumbnail) == (level0_px, None, None)


def _grid(x: int, y: int, columns: int, rows: int, step: int = 256) -> np.ndarray:
    return np.array([[x + column * step, y + row * step] for row in range(rows) for column in range(columns)])


@pytest.mark.parametrize(
    ("coords", "level0_px"),
    [
        ([_grid(0, 0, 3, 3), _grid(1007, 13, 2, 4), _grid(1900, 2000, 3, 1)], 256),  # contours with different origins
        ([_grid(0, 0, 3, 3), _grid(900, 0, 3, 3)], 256),  # two contours in one row
        ([_grid(5, 7, 1, 1), _grid(900, 100, 1, 1)], None),  # no neighbors
        ([_grid(0, 0, 2, 1), _grid(0, 900, 2, 1, 300)], None),  # 256 once, 300 once
        ([_grid(0, 0, 2, 1), _grid(0, 0, 2, 1)], 256),  # listed twice
    ],
)
def test_side_of_a_tile_from_its_neighbors(tmp_path: Path, coords: list[np.ndarray], level0_px: int | None) -> None:
    reversed_coords = np.concatenate(coords)[::-1]
    file = _foreign(tmp_path / "a.h5", np.ones((len(reversed_coords), 2)), reversed_coords)
    assert read_features(file).level0_px == level0_px


def test_bags_of_other_tools(tmp_path: Path) -> None:
    _foreign(tmp_path / "a.h5", np.ones((3, NUM_FEATURES)), GRID)
    _foreign(tmp_path / "b.h5", np.ones((5, NUM_FEATURES)))
    items = [{"image": f"gone/{name}.svs", "name": f"{name}.svs", "label": 0} for name in "ab"]
    dataset = FeatureBags(items, small_chain(), small_backbone(), features_dir=tmp_path)
    assert [len(dataset[n]["bag"]) for n in (0, 1)] == [3, 5]
    assert dataset[1]["coords"] is None
    assert dataset[0]["image"].shape == (3, 32, 32)
    torch.testing.assert_close(dataset[1]["shortcut"]["number of tiles"], torch.tensor([5.0]).log())
    assert next(iter(make_loader(dataset, 2)))["mask"].sum() == 8


@pytest.mark.parametrize(
    ("features", "coords", "message"),
    [
        (np.full((2, 3), np.nan), None, "NaN"),
        (np.ones((0, 3)), None, r"shape \(0, 3\)"),
        (np.ones(3), None, r"shape \(3,\)"),
        (np.ones((2, 3)), GRID, "one per tile"),
    ],
)
def test_unusable_features(tmp_path: Path, features: np.ndarray, coords: np.ndarray | None, message: str) -> None:
    with pytest.raises(ScanError, match=message):
        read_features(_foreign(tmp_path / "a.h5", features, coords))


def test_unreadable_files(tmp_path: Path) -> None:
    for content in (b"", b"no HDF5 at all", _foreign(tmp_path / "a.h5", np.ones((9, 9))).read_bytes()[:300]):
        (tmp_path / "b.h5").write_bytes(content)
        with pytest.raises(ScanError, match="delete it"):
            read_features(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as out:
        out["feats"] = np.ones((2, 3))
    with pytest.raises(ScanError, match="features"):
        read_features(tmp_path / "c.h5")
    with pytest.raises(ScanError, match="No such file"):
        read_features(tmp_path / "d.h5")


def test_written_features_are_read(tmp_path: Path) -> None:
    bag = FeatureBag(np.float32([[0.5, 1], [2, 3]]), GRID[:2], 512, 256, 0.5, 0.25, (2000, 1000))
    write_features(tmp_path / "deep" / "a.h5", bag, {"source": "drawn"}, "float16")
    read = read_features(tmp_path / "deep" / "a.h5")
    np.testing.assert_array_equal(read.features, bag.features)
    np.testing.assert_array_equal(read.coords, bag.coords)
    assert (read.level0_px, read.mpp, read.slide_size, read.tissue) == (512, 0.5, (2000, 1000), None)
    with pytest.raises(ValueError, match="float16"):
        write_features(tmp_path / "b.h5", FeatureBag(np.float32([[1e6]]), GRID[:1]), {}, "float16")
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]


def test_feature_files_are_inside_the_folder(tmp_path: Path) -> None:
    for name in ("/data/a.svs", "../../a.svs", "./a.SVS"):
        assert tmp_path in feature_file(tmp_path, name).resolve().parents
    outside = ("..", "", "/data/a.svs", "/other/a.svs", "../a.svs", "b/../a.svs", "a.svs")
    files = [feature_file(tmp_path, name) for name in outside]
    assert len(set(files)) == len(outside)
    assert all(file.parent == tmp_path for file in files), "no folders of the machine"
    assert feature_file(tmp_path, "../a.svs").name.startswith("a-")
    assert feature_file(tmp_path, "1.2.840.1").name == "1.2.840.1.h5", "a folder's number is no suffix"
