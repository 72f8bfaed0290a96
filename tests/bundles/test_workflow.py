"""Every bundle in this process, as MONAI's tools see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_pipelines.errors import root_cause
from tests.bundles.conftest import CASES, Bundle, Demo, Start, bundle_of, check_metrics

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
    assert f"(split_seed 0 there, {SEED} here)" in str(root_cause(error.value))


OTHER_DATA = [
    pytest.param(
        "chest_xray_classification",
        ("train", "demo", "multilabel"),
        {},
        marks=pytest.mark.xdist_group("chest_xray_classification"),
    ),
    pytest.param(
        "medmnist_classification",
        ("train", "volume"),
        {"flag": "organmnist3d", "network_def::widen_factor": 0.25},
        marks=pytest.mark.nightly,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "configs", "settings"), OTHER_DATA)
def test_overlays_with_other_data_train_and_are_evaluated(
    name: str, configs: tuple[str, ...], settings: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    bundle = bundle_of(name)
    source = bundle.case.own_data[configs[-1]](tmp_path / "data")
    settings = {"dataset_dir": str(source), "max_epochs": 1, "output_dir": str(tmp_path / "run"), **settings}
    for run_id in ("run", "evaluate"):
        start(bundle, *configs, run_id=run_id, **settings).run()
    check_metrics(tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_other_data_are_tried() -> None:
    """Each overlay that needs other data stands above."""
    tried = {(param.values[0], param.values[1][-1]) for param in OTHER_DATA}
    assert tried == {(name, overlay) for name, case in CASES.items() for overlay in case.own_data}


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
