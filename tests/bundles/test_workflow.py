"""Every bundle in this process, as MONAI's tools see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SEED = 2  # draws test patients of whom some were trained on, for every bundle's tiny data


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
        workflow("train", "demo", "evaluate", **settings, seed=SEED).run()
    assert "have been seen in training" in str(error.value.__cause__)
    assert f"(seed 0 there, {SEED} here)" in str(error.value.__cause__)


@pytest.mark.slow
def test_every_overlay_trains_and_is_evaluated(
    bundle: Any, data: Path, workflow: Callable, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for overlay in bundle.overlays:
        if overlay in bundle.case.no_training:
            continue
        make = bundle.case.own_data.get(overlay)
        source = make(tmp_path_factory.mktemp(overlay) / "data") if make else data
        settings = {"dataset_dir": str(source), "max_epochs": 1, "output_dir": str(tmp_path / overlay)}
        if overlay == "volume":
            settings["flag"] = "organmnist3d"
        base = ["train", "demo"] if bundle.case.on_demo and overlay != "demo" else ["train"]
        if overlay == "mc_dropout" and "head" in bundle.overlays:
            base.append("head")
        only_evaluated = overlay in ("tta", "mc_dropout")
        names = [*base, "evaluate", overlay] if only_evaluated else [*base, overlay, "evaluate"]
        workflow(*(base if only_evaluated else [*base, overlay]), **settings).run()
        workflow(*names, **settings).run()
        written = json.loads((tmp_path / overlay / "metrics.json").read_text())
        assert 0 <= written["metrics"]["accuracy"] <= 1
        assert written["shortcuts"]
        checkpoint = torch.load(tmp_path / overlay / "best.pt", weights_only=True)
        assert all(value.isfinite().all() for value in checkpoint["model"].values())
