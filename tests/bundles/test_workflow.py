"""Every bundle in this process, as MONAI's tools see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_nothing_is_missing(bundle: Any, data: Path, workflow: Callable) -> None:
    train = workflow("train", "demo", dataset_dir=str(data))
    source = next(data.glob("*.npz")) if bundle.case.spoil is None else data
    inference = workflow("inference", "demo", workflow_type="infer", dataset_dir=str(source))
    assert (train.check_properties(), inference.check_properties()) == ([], [])
    for handlers in (train.train_handlers, train.val_handlers, inference.handlers):
        assert isinstance(handlers, list)  # experiment tracking appends to them


def test_test_patients_of_another_split_are_refused(
    bundle: Any, data: Path, workflow: Callable, tmp_path: Path
) -> None:
    """Evaluated with another seed, the test patients would be those of the training."""
    settings = {"dataset_dir": str(data), "cache_dir": None, "max_epochs": 1}
    workflow("train", "demo", **settings).run()
    assert {"best.pt", "last.pt", "run.json"} <= {file.name for file in tmp_path.iterdir()}
    if bundle.name == "medmnist_classification":
        pytest.skip("the set has its own split")
    with pytest.raises(RuntimeError) as error:
        workflow("train", "demo", "evaluate", **settings, seed=1).run()
    assert "trained on another split of the same data (seed 0 there, 1 here)" in str(error.value.__cause__)
