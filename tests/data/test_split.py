"""The split card: what a split was made from, and who was seen in training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from monai_pipelines.data import ArrayDataset, Cohort, read_cohort
from monai_pipelines.data.split import seen_hashes


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
