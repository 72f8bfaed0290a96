"""Learning rate, guards, accumulation and compilation of a training by MONAI's real engines."""

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
from monai.data import DataLoader, Dataset
from monai.engines.utils import IterationEvents
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau, StepLR

from monai_pipelines.declared import declared_path
from monai_pipelines.handlers import ClipGradients

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


# ---- gradient accumulation


@pytest.mark.usefixtures("blank_figures")
def test_accumulated_batches_make_one_step(make_run: MakeRun, scans: Scans) -> None:
    """Of 6 batches by 4: steps after the 4th and the 6th; the rate is that of the iteration."""
    run = make_run(
        max_epochs=2,
        data=scans(24, 1),
        scheduler=lambda o, n: OneCycleLR(o, 0.2, n),
        clip_norm=1e-3,
        trainer_options={"accumulation_steps": 4},
    )
    steps, norms = [], []

    def step(*args: Any) -> None:
        steps.append((run.trainer.state.iteration, run.lr))
        norms.append(float(torch.cat([p.grad.flatten() for p in run.network.parameters()]).norm()))

    run.optimizer.register_step_pre_hook(step)
    run.trainer.run()
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), 0.05)
    reference, rates = OneCycleLR(optimizer, 0.2, 12), []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert [iteration for iteration, _ in steps] == [4, 6, 10, 12]
    assert [rate for _, rate in steps] == pytest.approx([rates[0], rates[4], rates[6], rates[10]])
    assert norms == pytest.approx([1e-3] * 4, rel=1e-3), "clipped once, when the gradient is complete"


@pytest.mark.usefixtures("blank_figures")
def test_accumulation_is_a_larger_batch(make_run: MakeRun, scans: Scans) -> None:
    """Frozen batch normalization, so that batches do not see each other."""
    data = scans(16, 1)

    def trained(accumulation_steps: int, batch_size: int) -> torch.Tensor:
        run = make_run(
            max_epochs=1,
            data=data,
            clip_norm=None,
            loss=nn.CrossEntropyLoss(),
            trainer_options={"accumulation_steps": accumulation_steps},
        )
        run.trainer.state.dataloader = DataLoader(Dataset(data), batch_size=batch_size)
        run.trainer.data_loader = run.trainer.state.dataloader
        run.trainer.state.epoch_length = len(run.trainer.data_loader)
        run.network[2] = nn.Identity()
        run.trainer.run()
        return torch.cat([parameter.flatten() for parameter in run.network.parameters()])

    torch.testing.assert_close(trained(2, 4), trained(1, 8))


# ---- compilation


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_compiled_network_learns_the_same(make_run: MakeRun, tmp_path: Path) -> None:
    plain = make_run(max_epochs=2, output_dir=tmp_path / "plain")
    compiled = make_run(max_epochs=2, output_dir=tmp_path / "compiled", trainer_options={"compile": True})
    for run in (plain, compiled):
        run.trainer.run()
    weights = [torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("plain", "compiled")]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)


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


def test_an_error_keeps_its_cause(make_run: MakeRun) -> None:
    run = make_run()

    def fail() -> None:
        raise KeyError("a column") from FileNotFoundError("a file")

    run.trainer.add_event_handler(Events.EPOCH_STARTED, fail)
    with pytest.raises(KeyError, match="a column") as caught:
        run.trainer.run()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
