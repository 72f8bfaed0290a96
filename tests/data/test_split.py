"""The split card: what a split was made from, and who was seen in training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_pipelines.data import ArrayDataset, Cohort, read_cohort
from monai_pipelines.data.split import Listing, seen_hashes, split_listing
from monai_pipelines.errors import CohortError


def _hashes(*names: str) -> list[str]:
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:16] for name in names)


def test_split_card() -> None:
    items = [{"name": f"scan {k}", "label": k % 2, "patient": f"Jane Doe {k}"} for k in range(4)]
    cohort = Cohort(items[:2], items[2:3], items[3:], ("a", "b"), seed=3, fractions=(1, 0, 0))
    seen = _hashes(*(f"name:scan {k}" for k in range(3)), *(f"patient:Jane Doe {k}" for k in range(3)))
    assert cohort.split_card == {
        "seed": 3,
        "split_fractions": [1.0, 0.0, 0.0],
        "data_sha256": cohort.digest,
        "seen": seen,
        "files": [],
    }
    assert isinstance(cohort.split_card["split_fractions"][0], float)
    assert "Doe" not in json.dumps(cohort.split_card)


@pytest.mark.parametrize("columns", ["image,label", "image,label,split"])
def test_split_card_of_a_table(tmp_path: Path, columns: str) -> None:
    """Seed and fractions are recorded, also for a given split."""
    splits = ("train", "validation", "test")
    rows = [f"{k}.png,{k % 2},{splits[k // 2 % 3]}" for k in range(12)]
    rows = rows if "split" in columns else [row.rpartition(",")[0] for row in rows]
    for k in range(12):
        (tmp_path / f"{k}.png").touch()
    (tmp_path / "table.csv").write_text("\n".join([columns, *rows]))
    cohort = read_cohort(tmp_path / "table.csv", fractions=[0.6, 0.2, 0.2], seed=7)
    assert (cohort.seed, cohort.fractions) == (7, (0.6, 0.2, 0.2))
    card = cohort.split_card
    assert (card["seed"], card["split_fractions"]) == (7, [0.6, 0.2, 0.2])
    assert seen_hashes(cohort.train) | seen_hashes(cohort.validation) == set(card["seen"])
    assert seen_hashes(cohort.test).isdisjoint(card["seen"])


def test_hashes_of_a_dataset_are_those_of_its_items() -> None:
    items = [{"name": "a", "label": 0}, {"name": "b", "label": 1}]
    dataset = ArrayDataset(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0, 1], ["a", "b"])
    assert sorted(seen_hashes(dataset)) == sorted(seen_hashes(items)) == _hashes("name:a", "name:b")


# ---- folds


def _table(
    folder: Path, num: int, columns: str = "image,label,patient", split: str = "", multilabel: bool = False
) -> Path:
    """Two scans of each patient; a third of the patients have class b, of multilabel ones a few have both."""
    rows = []
    for k in range(num):
        (folder / f"{k}.png").touch()
        label = "a" if (k // 2) % 3 else "b"
        rows.append(f"{k}.png,{label}{'|a' if multilabel and k % 8 == 0 else ''},p{k // 2}")
    (folder / "table.csv").write_text("\n".join(["image,label,patient", *rows]))
    return folder / "table.csv"


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("num_folds", [3, 5])
def test_every_patient_is_tested_in_one_fold_and_in_no_other_part_of_it(
    num_folds: int, multilabel: bool, tmp_path: Path
) -> None:
    table = _table(tmp_path, 92, multilabel=multilabel)
    tests, validations = [], []
    for fold in range(1, num_folds + 1):
        cohort = read_cohort(table, ["a", "b"], [fold, num_folds], seed=4, multilabel=multilabel)
        parts = [{item["patient"] for item in part} for part in (cohort.train, cohort.validation, cohort.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 46  # no patient in two parts
        assert len(parts[2]) == pytest.approx(46 / num_folds, abs=1)
        share = [np.mean([item["label"] in (1, [0, 1]) for item in part]) for part in (cohort.train, cohort.test)]
        assert share[0] == pytest.approx(share[1], abs=0.12)
        tests.append(parts[2])
        validations.append(parts[1])
        assert cohort.split_card["split_fractions"] == [fold, num_folds]
    assert sum(map(len, tests)) == len(set.union(*tests)) == 46
    assert validations == [*tests[1:], tests[0]]
    again = read_cohort(table, ["a", "b"], [1, num_folds], seed=5, multilabel=multilabel)
    assert {item["patient"] for item in again.test} != tests[0]


def test_folds_with_a_given_test_are_those_of_the_validation(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    table, other = _table(tmp_path, 60), _table(tmp_path / "other", 20)
    validations = []
    for fold in (1, 2, 3):
        cohort = read_cohort(table, fractions=[fold, 3], seed=4, test_source=other)
        assert len(cohort.test) == 20
        validations.append({item["patient"] for item in cohort.validation})
    assert sum(map(len, validations)) == len(set.union(*validations)) == 30


def test_folds_that_cannot_be(tmp_path: Path) -> None:
    table = _table(tmp_path, 24)  # class b has 4 patients
    with pytest.raises(CohortError, match="class 'b' has fewer than 5 patients: it cannot be in 5 folds"):
        read_cohort(table, fractions=[1, 5])
    with pytest.raises(CohortError, match="class 'a' has fewer than 20 patients"):  # 12 in all
        read_cohort(table, fractions=[1, 20])
    for fractions in ([0, 5], [6, 5], [1, 2], [1.5, 3], [1, 3.5]):
        with pytest.raises(ValueError, match="or a fold and the number of folds, 3 or more, got"):
            read_cohort(table, fractions=fractions)
    split = "\n".join(f"{k}.png,{'ab'[k % 2]},{['train', 'val', 'test'][k // 2 % 3]}" for k in range(24))
    table.write_text(f"image,label,split\n{split}")
    with pytest.raises(CohortError, match="folds need data without a validation part, got a split with one"):
        read_cohort(table, fractions=[1, 3])
    table.write_text(split.replace("val", "train").join(["image,label,split\n", ""]))
    with pytest.raises(CohortError, match="20 folds need as many training patients, got 16"):
        read_cohort(table, fractions=[1, 20])


def test_folds_are_stratified_also_with_a_few_patients_without_a_label(tmp_path: Path) -> None:
    items = [
        {"image": tmp_path / f"{k}", "name": f"{k}", "patient": f"{k}", "label": [float(k < 40), float(40 <= k < 60)]}
        for k in range(62)
    ]
    for fold in range(1, 6):
        cohort = split_listing(Listing(tmp_path, items, ("a", "b"), []), [fold, 5], seed=0)
        assert sum(item["label"] == [0, 1] for item in cohort.test) == 4
