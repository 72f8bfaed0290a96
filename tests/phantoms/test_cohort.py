from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from monai_pipelines.phantoms import SCANNERS, write_lung_ct_cohort
from tests.phantoms.written_files import read_rows

SMALL = {"matrix": 32, "slice_mm": 20, "progress": False}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lung_ct_cohort(tmp_path_factory.mktemp("cohort"), 16, seed=3, num_workers=1, **SMALL)


def test_table(cohort: Path) -> None:
    rows = read_rows(cohort)
    assert cohort.name == "table.csv"
    assert list(rows[0]) == ["image", "label", "patient", "scanner"]
    label = {row["patient"]: row["label"] for row in rows}
    assert sorted(label.values()) == ["0"] * 8 + ["1"] * 8
    assert list(label.values()) != ["0", "1"] * 8
    assert all(row["label"] == label[row["patient"]] for row in rows)
    assert len(rows) == 18
    assert {row["scanner"] for row in rows} == {scanner.name for scanner in SCANNERS}
    for row in rows:
        assert (cohort.parent / row["image"]).is_dir()
    for patient in label:
        scanners = [row["scanner"] for row in rows if row["patient"] == patient]
        assert len(set(scanners)) == len(scanners)


def test_truth(cohort: Path) -> None:
    lesions = read_rows(cohort.parent / "truth/lesions.csv")
    assert list(lesions[0]) == ["image", "kind", "x_mm", "y_mm", "z_mm", "diameter_mm"]
    rows = read_rows(cohort)
    assert {row["image"] for row in lesions} == {row["image"] for row in rows if row["label"] == "1"}
    for row in rows:
        mask = nib.load(cohort.parent / "truth" / f"{Path(row['image']).name}_lungs.nii.gz")
        assert mask.get_data_dtype() == np.uint8
        voxels = np.asarray(mask.dataobj)
        assert set(np.unique(voxels)) == {0, 1}
        files = [pydicom.dcmread(path) for path in (cohort.parent / row["image"]).iterdir()]
        assert mask.shape == (files[0].Columns, files[0].Rows, len(files))
        lowest = min(files, key=lambda file: file.ImagePositionPatient[2])
        np.testing.assert_allclose(mask.affine[:3, 3] * [-1, -1, 1], lowest.ImagePositionPatient, atol=1e-3)
        assert files[0].PatientID == row["patient"]
        assert files[0].ManufacturerModelName == row["scanner"]


def test_second_scan_has_the_same_lesions(cohort: Path) -> None:
    rows = read_rows(cohort)
    lesions = read_rows(cohort.parent / "truth/lesions.csv")
    twice = {row["patient"] for row in rows if row["image"].endswith("_2")}
    assert len(twice) == 2
    for patient in twice:
        first, second = (
            [{**row, "image": ""} for row in lesions if row["image"] == f"scans/{patient}_{number}"]
            for number in (1, 2)
        )
        assert first == second


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lung_ct_cohort(tmp_path, 2, num_workers=1, matrix=32, slice_mm=20)
    assert "100%" in capsys.readouterr().out


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_patients must be at least 2, one per class, got 1"):
        write_lung_ct_cohort(tmp_path / "a", 1)
    with pytest.raises(ValueError, match=r"lesion_mm must rise from above 0, got \(40, 20\) \(swapped\?\)"):
        write_lung_ct_cohort(tmp_path / "a", lesion_mm=(40, 20))
    assert not (tmp_path / "a").exists()
