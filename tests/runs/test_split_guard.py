"""Nobody is tested on whom the training has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.data import Cohort, read_cohort
from monai_pipelines.runs.trained import check_split

FRACTIONS = (0.6, 0.2, 0.2)


def _table(folder: Path, *lines: str) -> Path:
    for k in range(24):
        (folder / f"{k}.png").touch()
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


@pytest.fixture
def split(tmp_path: Path) -> dict[str, Any]:
    """Of a training on 24 images of 12 patients."""
    lines = [f"{k}.png,{k // 2 % 2},p{k // 2}" for k in range(24)]
    return read_cohort(_table(tmp_path, "image,label,patient", *lines), fractions=FRACTIONS).split_card


def _parts(cohort: Cohort) -> list[list[dict[str, Any]]]:
    return [cohort.train, cohort.validation, cohort.test]


def test_same_split_passes_and_so_do_other_patients(split: dict[str, Any], tmp_path: Path) -> None:
    check_split(split, read_cohort(tmp_path / "table.csv", fractions=FRACTIONS))
    lines = [f"{k}.png,{k // 2 % 2},q{k // 2}" for k in range(24)]
    other = _table(tmp_path, "image,label,patient", *lines).rename(tmp_path / "other.csv")
    parts = [[{**item, "name": f"new {item['name']}"} for item in part] for part in _parts(read_cohort(other))]
    check_split(split, Cohort(*parts, ("a", "b"), seed=7))


def test_another_seed_is_refused(split: dict[str, Any], tmp_path: Path) -> None:
    cohort = read_cohort(tmp_path / "table.csv", seed=1, fractions=FRACTIONS)
    trained = _parts(read_cohort(tmp_path / "table.csv", fractions=FRACTIONS))[:2]
    seen = {item["patient"] for part in trained for item in part}
    both = [item for item in cohort.test if item["patient"] in seen]
    num = len(both) + len({item["patient"] for item in both})
    with pytest.raises(ValueError, match=rf"^{num} names or patients .* been seen .*\(split_seed 0 there, 1 here\)"):
        check_split(split, cohort)


def test_other_patients_of_the_same_images_are_refused(split: dict[str, Any], tmp_path: Path) -> None:
    """As if a patient_pattern is forgotten: every image a patient."""
    table = _table(tmp_path, "image,label", *(f"{k}.png,{k // 2 % 2}" for k in range(24)))
    with pytest.raises(ValueError, match=r"patient_pattern of the training \(the data differ\)"):
        check_split(split, read_cohort(table, fractions=FRACTIONS))


def test_one_more_image_of_a_trained_patient_is_refused(split: dict[str, Any], tmp_path: Path) -> None:
    patient = read_cohort(tmp_path / "table.csv", fractions=FRACTIONS).train[0]["patient"]
    new = {"name": "new.png", "patient": patient, "label": 0}
    with pytest.raises(ValueError, match=r"^1 names or patients"):
        check_split(split, Cohort([], [], [new], ("a", "b")))


def test_an_unknown_split_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    check_split(None, Cohort([], [], [], ("a", "b")))
    assert "does not say what it was trained on" in caplog.text
