"""The audit of scans: what is planted is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_pipelines.audit import Audit, audit_cohort, kind_named, list_source
from monai_pipelines.phantoms.cohort import write_lung_ct_cohort
from tests.audit.planted import Planted, plant, small_scans, split_rows, write_table


def _audit(source: Path, num_workers: int = 0) -> Audit:
    kind, listing = list_source(source)
    assert kind == "scan"
    return audit_cohort(listing, kind_named(kind), num_workers=num_workers)


def _check(audit: Audit, planted: Planted) -> None:
    """Everything planted, and no false alarm."""
    assert audit.unreadable.keys() == planted.unreadable
    assert (set(audit.blank), set(audit.not_hu)) == (planted.blank, planted.not_hu)
    assert {frozenset(group.images) for group in audit.exact} == planted.exact
    assert {frozenset(group.images) for group in audit.near} == planted.near
    assert {item["name"] for item in audit.items if "chosen" in item["verdict"]} == planted.repaired
    (splits,) = audit.patients_in_several_splits
    assert planted.torn in [name for names in splits.values() for name in names]
    assert [problem for problem in audit.problems if "lost" not in problem] == []
    assert audit.outliers.keys() == planted.outliers
    assert audit.to_fix == [
        "1 problem of the source",
        "2 unreadable scans",
        "1 blank scan",
        "1 scan not in HU: no negative value",
        "1 patient in several splits",
        "1 group of equal scans in several splits",
        "1 group of equal scans in several classes",
    ]
    assert audit.to_review[:2] == ["1 group of near duplicates", "5 outliers"]


def test_planted_problems(tmp_path: Path) -> None:
    rows = split_rows(small_scans(tmp_path, 40))
    write_table(tmp_path, rows)
    sound = _audit(tmp_path)
    assert (sound.to_fix, sound.to_review) == ([], [])
    assert {item["verdict"] for item in sound.items} == {"ok"}
    planted = plant(tmp_path, rows)
    _check(_audit(tmp_path, num_workers=2), planted)


@pytest.mark.nightly
def test_planted_problems_among_500_phantoms(tmp_path: Path) -> None:
    rows = split_rows(write_lung_ct_cohort(tmp_path, 450, seed=1, matrix=64, slice_mm=8))
    write_table(tmp_path, rows)
    sound = _audit(tmp_path, num_workers=2)
    assert (sound.to_fix, sound.to_review) == ([], [])
    planted = plant(tmp_path, rows)
    _check(_audit(tmp_path, num_workers=2), planted)
