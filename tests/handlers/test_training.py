"""Learning rate, guards and TensorBoard of a training by MONAI's real engines."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau, StepLR

from monai_pipelines.handlers import ClipGradients, monitor
from monai_pipelines.inferers import AutocastInferer, fast_bf16

MakeRun = Callable[..., Any]
Scans = Callable[[int, int], list[dict[str, Any]]]


def _history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "history.json").read_text())


# ---- learning rate


def _learning_rates(run: Any) -> list[float]:
    """What the optimiser used, step by step."""
    used: list[float] = []
    run.trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda: used.append(run.lr))
    run.trainer.run()
    return used


@pytest.mark.usefixtures("blank_figures")
def test_step_lr_steps_once_an_epoch(make_run: MakeRun) -> None:
    used = _learning_rates(make_run(scheduler=lambda o, n: StepLR(o, 2, 0.1)))
    assert used == pytest.approx([0.05] * 8 + [0.005] * 4)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer, total_steps: OneCycleLR(optimizer, 0.2, total_steps),
        lambda optimizer, total_steps: CyclicLR(optimizer, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
    ],
)
def test_one_cycle_and_cyclic_step_with_every_batch(make_run: MakeRun, scheduler: Callable) -> None:
    used = _learning_rates(make_run(scheduler=scheduler))
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), 0.05)
    reference, wanted = scheduler(optimizer, 12), []
    for _ in range(12):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert used == pytest.approx(wanted)
    assert len(set(used)) > 5


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(("val_interval", "factors"), [(1, [1, 1, 1, 0.1, 0.01, 0.01]), (2, [1, 1, 1, 1, 0.1, 0.1])])
def test_plateau_steps_after_a_validation_with_its_loss(
    make_run: MakeRun, val_interval: int, factors: list[float]
) -> None:
    """Losses 1.0, 0.5, 0.6, 0.7, 0.1, 0.1; patience 0. Each second epoch: 0.5, 0.7, 0.1."""
    script = [(0.5, loss) for loss in (1.0, 0.5, 0.6, 0.7, 0.1, 0.1)]
    run = make_run(
        max_epochs=6,
        val_interval=val_interval,
        script=script,
        scheduler=lambda o, n: ReduceLROnPlateau(o, factor=0.1, patience=0),
    )
    assert _learning_rates(run)[::4] == pytest.approx([0.05 * f for f in factors])


# ---- guards


@pytest.mark.usefixtures("blank_figures")
def test_gradient_norm_is_clipped_before_the_step(make_run: MakeRun) -> None:
    def largest_step(clip_norm: float | None) -> float:
        run = make_run(max_epochs=1, clip_norm=clip_norm)
        norms: list[float] = []

        def measure(*args: Any) -> None:
            norms.append(float(torch.cat([p.grad.flatten() for p in run.network.parameters()]).norm()))

        run.optimizer.register_step_pre_hook(measure)
        run.trainer.run()
        assert len(norms) == 4
        return max(norms)

    assert largest_step(None) > 0.1
    assert largest_step(0.05) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("max_norm", [0, -1.0])
def test_clip_norm_is_positive(max_norm: float) -> None:
    with pytest.raises(ValueError, match="max_norm must be positive"):
        ClipGradients(max_norm)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_loss_stops_and_names_the_batch(make_run: MakeRun, scans: Scans, tmp_path: Path, bad: float) -> None:
    data = scans(16, 1)
    data[9]["image"][0, 0, 0, 0] = bad
    run = make_run(data=data)
    before: list[Any] = []
    run.trainer.add_event_handler(
        Events.ITERATION_STARTED(once=3), lambda: before.append([p.clone() for p in run.network.parameters()])
    )
    message = r"loss is nan in epoch 1, iteration 3, with the scans scan8, scan9, scan10, scan11; look at these scans"
    with pytest.raises(FloatingPointError, match=message):
        run.trainer.run()
    assert all(map(torch.equal, before[0], run.network.parameters())), "stopped before the step"
    assert not (tmp_path / "last.pt").exists()


# ---- what one watches


METRICS = {
    "roc_auc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "loss",
}


def test_tensorboard_and_history(
    make_run: MakeRun, scans: Scans, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = [{**item, "image": MetaTensor(item["image"])} for item in scans(16, 1)]
    run = make_run(max_epochs=3, val_interval=2, data=data, scheduler=lambda o, n: StepLR(o, 1, 0.5))
    losses: list[float] = []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"].detach()))
    )
    with caplog.at_level(logging.INFO, "monai_pipelines"):
        run.trainer.run()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {"learning_rate", "loss_per_step/train"}
    scalars |= {f"{metric}/{split}" for metric in METRICS for split in ("train", "validation")}
    assert set(events.Tags()["scalars"]) == scalars
    assert set(events.Tags()["images"]) == {"input/train", "confusion_matrix/validation"}

    def values(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)}

    history = _history(tmp_path)
    assert values("loss_per_step/train") == pytest.approx(dict(enumerate(losses, start=1)))
    assert values("learning_rate") == pytest.approx({1: 0.05, 2: 0.025, 3: 0.0125})
    for metric in METRICS:
        assert values(f"{metric}/train") == pytest.approx({r["epoch"]: r["train"][metric] for r in history})
        assert values(f"{metric}/validation") == pytest.approx({2: history[1]["val"][metric]})
    assert [event.step for event in events.Images("input/train")] == [1]
    assert [event.step for event in events.Images("confusion_matrix/validation")] == [2]

    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert ["val" in record for record in history] == [False, True, False]
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert "epoch 2/3: train loss" in caplog.text
    assert "val roc_auc" in caplog.text


SEVERAL = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_what_is_drawn_where_labels_are_several(
    make_run: MakeRun, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[torch.Tensor], list[str]]] = []
    make_figure = monitor.images_figure
    monkeypatch.setattr(monitor, "images_figure", lambda *args: drawn.append(args) or make_figure(*args))
    data = [
        {**item, "image": item["image"][0], "label": torch.tensor(SEVERAL[k % 4])}
        for k, item in enumerate(scans(16, 1))
    ]
    loss = nn.BCEWithLogitsLoss()
    make_run(1, data=data, val_data=data[:10], num_logits=3, loss=loss, classes=["a", "b", "c"]).trainer.run()
    ((images, titles),) = drawn
    assert titles == ["a, c", "none", "b", "c"]
    assert all(torch.equal(image, item["image"]) for image, item in zip(images, data, strict=False))
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["images"] == ["input/train"]
    assert set(_history(tmp_path)[0]["val"]) == METRICS


@pytest.mark.usefixtures("blank_figures")
def test_undefined_metrics_are_null_in_the_history_and_absent_in_tensorboard(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(max_epochs=1, script=[(math.nan, 1.0)]).trainer.run()
    assert _history(tmp_path)[0]["val"]["roc_auc"] is None
    assert "NaN" not in (tmp_path / "history.json").read_text()
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert "loss/validation" in tags
    assert "roc_auc/validation" not in tags


@pytest.mark.usefixtures("blank_figures")
def test_what_was_logged_is_on_disk_when_a_run_breaks_off(make_run: MakeRun, tmp_path: Path) -> None:
    def cut(engine: Any) -> None:
        raise KeyboardInterrupt

    run = make_run()
    run.trainer.add_event_handler(Events.EPOCH_STARTED(once=2), cut)
    with pytest.raises(KeyboardInterrupt):
        run.trainer.run()
    assert len(EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss_per_step/train")) == 4
    assert len(_history(tmp_path)) == 1


# ---- precision


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_autocast_inferer(precision: str) -> None:
    seen: list[torch.dtype] = []
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    network[0].register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    image = torch.rand(4, 8)
    result = AutocastInferer(precision)(image, network)
    bf16 = precision == "bf16" or (precision == "auto" and fast_bf16("cpu"))
    assert seen == [torch.bfloat16 if bf16 else torch.float32]
    assert result.dtype == torch.float32
    assert torch.allclose(result, network(image), atol=0.02 if bf16 else 0)
    result.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())


def test_precision_is_known() -> None:
    with pytest.raises(ValueError, match="precision must be 'auto', 'bf16' or 'fp32', got 'fp16'"):
        AutocastInferer("fp16")  # type: ignore[arg-type]


def test_auto_is_bf16_where_the_hardware_is_fast_and_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit, trained, frozen in [("", False, False), ("avx512_bf16", False, True), ("amx_bf16", True, True)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda u=unit: {u: True})
        assert (fast_bf16("cpu"), fast_bf16("cpu", gradients=False)) == (trained, frozen)
    assert fast_bf16("mps") is False
