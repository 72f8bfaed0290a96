"""Every bundle in this process, as MONAI's tools see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_pipelines.runs.command_line import root_cause
from tests.bundles.conftest import Bundle, Demo, check_metrics

SEED = 2  # draws test patients of whom some were trained on, for every bundle's tiny data


def test_nothing_is_missing(bundle: Bundle, demo: Demo, workflow: Callable) -> None:
    train = workflow("train", "demo", dataset_dir=str(demo.data))
    source = next(demo.data.glob("*.npz")) if bundle.case.spoil is None else demo.data
    inference = workflow("inference", "demo", workflow_type="infer", dataset_dir=str(source))
    assert (train.check_properties(), inference.check_properties()) == ([], [])
    for handlers in (train.train_handlers, train.val_handlers, inference.handlers):
        assert isinstance(handlers, list)  # experiment tracking appends to them


def test_test_patients_of_another_split_are_refused(bundle: Bundle, demo: Demo, workflow: Callable) -> None:
    """Evaluated with another seed, the test patients would be those of the training."""
    if bundle.name == "medmnist_classification":
        pytest.skip("the set has a fixed split")
    settings = {"dataset_dir": str(demo.data), "checkpoint": str(demo.run / "best.pt"), "seed": SEED}
    with pytest.raises(RuntimeError) as error:
        workflow("train", "demo", run_id="evaluate", **settings).run()
    assert "have been seen in training" in str(root_cause(error.value))
    assert f"(seed 0 there, {SEED} here)" in str(root_cause(error.value))


@pytest.mark.slow
def test_overlays_with_other_data_train_and_are_evaluated(bundle: Bundle, workflow: Callable, tmp_path: Path) -> None:
    if not bundle.case.own_data:
        pytest.skip("every overlay trains on the same data")
    for overlay, make in bundle.case.own_data.items():
        source = make(tmp_path / f"{overlay}-data")
        settings: dict[str, Any] = {"dataset_dir": str(source), "max_epochs": 1, "output_dir": str(tmp_path / overlay)}
        if overlay == "volume":
            settings |= {"flag": "organmnist3d", "network_def::widen_factor": 0.25}
        names = ["train", "demo", overlay] if overlay == "multilabel" else ["train", overlay]
        workflow(*names, **settings).run()
        workflow(*names, run_id="evaluate", **settings).run()
        check_metrics(tmp_path / overlay)
        checkpoint = torch.load(tmp_path / overlay / "best.pt", weights_only=True)
        assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_dropout_passes_of_the_overlays_draw(bundle: Bundle) -> None:
    if "mc_dropout" not in bundle.overlays:
        pytest.skip("no Monte Carlo dropout")
    if bundle.name == "histology_slide_classification":
        network, image = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2)), (4, 8)
        parser = bundle.parser("inference", "demo", "mc_dropout")
    else:
        parser = bundle.parser("inference", "head", "mc_dropout")
        network, image = parser.get_parsed_content("network_def").eval(), (4, 1, 64, 64)
    inferer = parser.get_parsed_content("inferer")
    inferer(torch.rand(*image), network.eval())
    assert inferer.spread.min() > 0
