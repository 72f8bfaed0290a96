from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monai_pipelines.data import read_medmnist
from monai_pipelines.phantoms import write_pathmnist
from monai_pipelines.phantoms.histology import Stain, histology_tile

QUIET = {"num_workers": 1, "progress": False}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pathmnist(tmp_path_factory.mktemp("pathmnist") / "data", 10, seed=3, tiles_per_class=1, **QUIET)


def test_is_read_as_pathmnist_and_split_by_slide(file: Path) -> None:
    dataset = read_medmnist("pathmnist", file.parent)
    assert [len(getattr(dataset, split)) for split in ("train", "validation", "test")] == [63, 9, 18]
    assert np.bincount(dataset.test.labels).tolist() == [2] * 9


def test_tiles_are_area_means_and_follow_the_seed(file: Path, tmp_path: Path) -> None:
    with np.load(file) as made:
        first = made["train_images"][0]
    stain_seed, seed, *_ = np.random.SeedSequence(3).spawn(10)[0].spawn(10)
    tile = histology_tile(seed, "ADI", 224, Stain.draw(np.random.default_rng(stain_seed))).astype(float)
    expected = [[tile[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].mean(axis=(0, 1)) for c in range(28)] for r in range(28)]
    np.testing.assert_allclose(first, expected, atol=0.5)
    for seed_, same in ((3, True), (4, False)):
        with np.load(write_pathmnist(tmp_path / str(seed_), 10, seed=seed_, tiles_per_class=1, **QUIET)) as other:
            assert np.array_equal(other["train_images"][0], first) == same


def test_too_few_slides_to_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted 10 slides and 1 tile or more, got 9, 4"):
        write_pathmnist(tmp_path, 9)
