"""Last and best checkpoint, early stopping, resuming."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from monai_pipelines import load_chain

pytestmark = pytest.mark.usefixtures("blank_figures")

NAN = math.nan
MakeRun = Callable[..., Any]
Scans = Callable[[int, int], list[dict[str, Any]]]

SCHEDULERS = {
    "step": lambda optimizer, total_steps: StepLR(optimizer, 1, 0.5),
    "plateau": lambda optimizer, total_steps: ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
    "one cycle": lambda optimizer, total_steps: OneCycleLR(optimizer, 0.1, total_steps),
}


def _load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def _equal(a: Any, b: Any) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b or (a != a and b != b)


# ---- best


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([(0.6, 1.0), (0.9, 1.0), (0.8, 0.1)], 2),
        ([(NAN, 1.0), (0.2, 1.0), (0.1, 1.0)], 2),
        ([(0.2, 1.0), (NAN, 0.1), (0.1, 1.0)], 1),
        ([(NAN, 1.0), (NAN, 0.1), (NAN, 0.5)], 2),
        ([(0.8, 0.5), (0.8, 0.4), (0.8, 0.6)], 2),
        ([(0.8, 0.5), (0.8, 0.5), (0.8, NAN)], 1),
        ([(0.8, NAN), (0.8, 0.5), (0.8, 0.6)], 2),
        ([(0.0, 0.5), (0.0, 0.9), (0.0, 0.9)], 1),
    ],
    ids=["highest", "nan first", "nan later", "nan always", "tie by loss", "tie", "tie, loss nan first", "zero"],
)
def test_best_epoch(make_run: MakeRun, tmp_path: Path, script: list[tuple[float, float]], best: int) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    run = make_run(script=script)
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: weights.append({k: v.clone() for k, v in run.network.state_dict().items()})
    )
    run.trainer.run()
    checkpoint = _load(tmp_path / "best.pt")
    assert checkpoint["epoch"] == best
    assert _equal(checkpoint["model"], weights[best - 1])
    assert checkpoint["metrics"]["roc_auc"] == pytest.approx(script[best - 1][0], nan_ok=True)
    last = _load(tmp_path / "last.pt")
    assert last["epoch"] == 3
    assert _equal(last["model"], weights[2])
    assert last["best"]["epoch"] == best


def test_best_epoch_by_loss(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(script=[(0.9, 1.0), (0.8, 0.4), (0.95, NAN)], key_metric="loss").trainer.run()
    assert _load(tmp_path / "best.pt")["epoch"] == 2


@pytest.mark.parametrize(("key_metric", "best"), [("brier", 2), ("log_loss", 2), ("ece", 2), ("mcc", 3), ("npv", 3)])
def test_best_epoch_by_other_metrics(make_run: MakeRun, tmp_path: Path, key_metric: str, best: int) -> None:
    """The lowest error, the highest agreement."""
    run = make_run(key_metric=key_metric)
    values = iter([0.3, 0.2, 0.4])
    run.evaluator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update({key_metric: next(values)})
    )
    run.trainer.run()
    assert _load(tmp_path / "best.pt")["epoch"] == best


def test_key_metric_is_any_metric_of_the_validation_and_nothing_else(make_run: MakeRun) -> None:
    run = make_run(max_epochs=1)
    run.trainer.run()
    for name in run.evaluator.state.metrics:
        make_run(key_metric=name)
    grades = {"classes": ["none", "mild", "severe"], "num_logits": 3}
    make_run(key_metric="kappa_quadratic", **grades)
    make_run(key_metric="roc_auc_micro", multilabel=True)
    for name, options in (("kappa_quadratic", {}), ("kappa_quadratic", {**grades, "multilabel": True}), ("auc", {})):
        with pytest.raises(ValueError, match=rf"key_metric must be one of loss, accuracy, .*, got '{name}'"):
            make_run(key_metric=name, **options)


def test_best_epoch_where_the_validation_set_lacks_a_class(make_run: MakeRun, scans: Scans, tmp_path: Path) -> None:
    """No ROC AUC in any epoch: the loss decides."""
    healthy = [item for item in scans(8, 2) if item["label"] == 0]
    run = make_run(val_data=healthy)
    losses: list[float] = []
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: losses.append(run.evaluator.state.metrics["loss"]))
    run.trainer.run()
    best = _load(tmp_path / "best.pt")
    assert math.isnan(best["metrics"]["roc_auc"])
    assert best["epoch"] == losses.index(min(losses)) + 1


def test_monais_own_saver_keeps_nan_for_ever(tmp_path: Path) -> None:
    """The surprise that `Checkpoints` is there for."""
    from monai.handlers import CheckpointSaver

    engine: Any = Engine(lambda engine, batch: None)
    engine.state.key_metric_name = "auc"
    saver = CheckpointSaver(str(tmp_path), {"net": nn.Linear(1, 1)}, save_key_metric=True)
    saver.attach(engine)
    script = iter([NAN, 0.5, 0.9])
    # before the saver's own handler
    engine._event_handlers[Events.EPOCH_COMPLETED].insert(
        0, (lambda engine: engine.state.metrics.update(auc=next(script)), (engine,), {})
    )
    engine.run([0], max_epochs=3)
    (kept,) = tmp_path.glob("*.pt")
    assert "nan" in kept.name


def test_content_of_checkpoints(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(max_epochs=1).trainer.run()
    chain = load_chain("lung_ct")
    for name in ("best.pt", "last.pt"):
        checkpoint = _load(tmp_path / name)
        assert checkpoint["chain"] == chain.describe()
        assert checkpoint["fingerprint"] == chain.fingerprint()
        assert checkpoint["classes"] == ["healthy", "disease"]
        assert {"monai_pipelines", "monai", "torch"} <= set(checkpoint["versions"])
        assert {"loss", "roc_auc", "accuracy"} <= set(checkpoint["metrics"])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("best.pt", "last.pt", "history.json", "history.png", "tensorboard")
    }


# ---- early stopping


@pytest.mark.parametrize(
    ("script", "patience", "stopped"),
    [
        ([0.5, 0.6, 0.6, 0.6, 0.9, 0.9], 2, 4),
        ([0.5, 0.4, 0.6, 0.5, 0.4, 0.9], 2, 5),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], None, 6),
        ([NAN, NAN, 0.1, 0.1, 0.1, 0.1], 2, 5),
    ],
)
def test_early_stopping(make_run: MakeRun, script: list[float], patience: int | None, stopped: int) -> None:
    run = make_run(max_epochs=6, script=[(auc, 1.0) for auc in script], patience=patience)
    run.trainer.run()
    assert run.trainer.state.epoch == stopped


@pytest.mark.parametrize("patience", [None, 1])
def test_the_end_names_the_best_epoch(make_run: MakeRun, tmp_path: Path, patience: int | None, caplog: Any) -> None:
    run = make_run(script=[(0.5, 1.0), (0.75, 1.0), (0.5, 1.0)], patience=patience)
    with caplog.at_level(logging.INFO, "monai_pipelines"):
        run.trainer.run()
    assert caplog.messages[-2] == f"best epoch 2, roc_auc 0.7500: {tmp_path / 'best.pt'}"
    assert caplog.messages[-1].startswith(f"wrote {tmp_path}: best.pt, last.pt")


def test_patience_counts_validations(make_run: MakeRun) -> None:
    run = make_run(max_epochs=8, script=[(0.5, 1.0)] * 8, patience=2, val_interval=2)
    run.trainer.run()
    assert run.trainer.state.epoch == 6  # validated after 2, 4 and 6


@pytest.mark.parametrize("patience", [0, -1, "null", 1.5])
def test_patience_is_a_number_of_validations(make_run: MakeRun, patience: Any) -> None:
    with pytest.raises(ValueError, match="patience must be 1 or more, or null"):
        make_run(patience=patience)
