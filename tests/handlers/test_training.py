"""Learning rate, guards and precision of a training by MONAI's real engines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau, StepLR

from monai_pipelines.declared import declared_path
from monai_pipelines.handlers import ClipGradients
from monai_pipelines.inferers import AutocastInferer, fast_bf16

MakeRun = Callable[..., Any]
Scans = Callable[[int, int], list[dict[str, Any]]]


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
    message = r"loss is nan in epoch 1, iteration 3, with the images scan8, scan9, scan10, scan11; look at these images"
    with pytest.raises(FloatingPointError, match=message):
        run.trainer.run()
    assert all(map(torch.equal, before[0], run.network.parameters())), "stopped before the step"
    assert not (tmp_path / "last.pt").exists()


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


# ---- MLflow


def test_mlflow_gets_the_settings_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"network": "ResNet", "num_parameters": 8, "overlays": "demo", "max_epochs": 3, "learning_rate": 0.1}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    mlflow = MagicMock()
    mlflow.entities.Param = lambda key, value: (key, value)
    mlflow.MlflowClient().get_experiment_by_name().lifecycle_stage = mlflow.entities.LifecycleStage.ACTIVE
    mlflow.MlflowClient().search_runs.return_value = []
    monkeypatch.setattr("monai.handlers.mlflow_handler.mlflow", mlflow)
    config = ConfigParser.load_config_file(declared_path("bundles") / "mlflow.yaml")["configs"]
    handler = ConfigParser({**config, "output_dir": str(tmp_path)}).get_parsed_content("trainer")
    handler.start(Engine(lambda engine, batch: None))
    logged = [param for call in mlflow.MlflowClient().log_batch.call_args_list for param in call.kwargs["params"]]
    assert {(name, str(value)) for name, value in settings.items()} <= {*logged}
    assert [Path(path).name for path in handler.artifacts] == ["run.json", "configs"]
