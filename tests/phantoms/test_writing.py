"""What all cohort writers have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from monai_pipelines import phantoms
from tests.phantoms.written_files import hash_files

WRITERS: dict[Callable, tuple[int, dict]] = {  # number of patients or tiles, options
    phantoms.write_lung_ct_cohort: (4, {"matrix": 32, "slice_mm": 20}),
    phantoms.write_fundus_cohort: (4, {"size": 96}),
    phantoms.write_chest_xray_cohort: (4, {"size": 64}),
    phantoms.write_histology_tiles: (4, {"size": 64, "num_slides": 3}),
}


@pytest.mark.parametrize("write", WRITERS)
def test_same_seed_same_bytes_for_any_workers(write: Callable, tmp_path: Path) -> None:
    num, options = WRITERS[write]
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed, num_workers in zip(folders, (3, 3, 4), (1, 2, 1), strict=True):
        write(folder, num, seed, num_workers=num_workers, progress=False, **options)
    one, two, other = map(hash_files, folders)
    assert one == two
    assert len(set(one.values())) == len(one)
    assert set(one.values()).isdisjoint(other.values())


@pytest.mark.parametrize("write", [*WRITERS, phantoms.write_pathmnist, phantoms.write_slides])
def test_folder_with_content_is_refused(write: Callable, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=rf"{write.__name__}: .* must be new or empty"):
        write(tmp_path)
