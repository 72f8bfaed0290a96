"""Precision of a training: measured on its first batch, stored, and used from then on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_pipelines.engines import trainer as trainer_module
from monai_pipelines.engines.precision import measured_precision
from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.networks.precision import fast_bf16
from monai_pipelines.runs.trained import Trained

MakeRun = Callable[..., Any]


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


def _spend(seconds: float) -> None:
    """Processor time, as a step does."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("bf16_s", "bf16_gradient", "chosen", "message"),
    [
        (0.01, 1.01, "bf16", "a step in bf16 takes 0."),
        (0.1, 1.0, "fp32", "a step in bf16 takes "),
        (0.01, math.nan, "fp32", "bf16's gradients are wrong here: norm nan"),
        (0.01, math.inf, "fp32", "bf16's gradients are wrong here: norm inf"),
        (0.01, 7e15, "fp32", "bf16's gradients are wrong here"),
        (0.01, 0.0, "fp32", "bf16's gradients are wrong here"),
    ],
)
def test_bf16_has_to_be_faster_and_right(
    bf16_s: float, bf16_gradient: float, chosen: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def step(precision: str) -> list[Tensor | None]:
        _spend(bf16_s if precision == "bf16" else 0.03)
        return [None, torch.full((4,), bf16_gradient if precision == "bf16" else 1.0)]

    with caplog.at_level(logging.INFO):
        assert measured_precision(step) == chosen
    assert message in caplog.text


@pytest.fixture
def bf16_is_faster(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """A processor with AVX512-BF16, on which bf16 is measured to be faster; the norms that were compared."""
    seen: list[list[float]] = []

    def measured(step: Callable[[Any], list[Tensor]]) -> str:
        seen.append([float(torch.cat([g.flatten() for g in step(p)]).norm()) for p in ("fp32", "bf16")])
        return "bf16"

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(trainer_module, "measured_precision", measured)
    return seen


@pytest.mark.usefixtures("blank_figures")
def test_measuring_changes_nothing_else(make_run: MakeRun, bf16_is_faster: list[list[float]], tmp_path: Path) -> None:
    """As a run that was told to use bf16, with an augmentation and dropout that draw random numbers."""
    weights = []
    for precision in ("auto", "bf16"):
        run = make_run(
            max_epochs=2,
            output_dir=tmp_path / precision,
            inferer=AutocastInferer(precision),
            trainer_options={"augmentation": nn.Dropout(0.2)},
        )
        run.network[3] = nn.Dropout(0.5)
        run.trainer.run()
        weights.append(torch.load(tmp_path / precision / "last.pt", weights_only=True))
    assert len(bf16_is_faster) == 1
    assert bf16_is_faster[0][0] == pytest.approx(bf16_is_faster[0][1], rel=0.1)
    assert [checkpoint["precision"] for checkpoint in weights] == ["bf16", "bf16"]
    for name, value in weights[0]["model"].items():
        assert torch.equal(value, weights[1]["model"][name]), name


@pytest.mark.usefixtures("blank_figures")
def test_a_loss_may_look_at_the_network(make_run: MakeRun, bf16_is_faster: list[list[float]]) -> None:
    class Decay(nn.CrossEntropyLoss):
        network: nn.Module

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return super().forward(logits, labels) + self.network[1].weight.square().mean()

    loss = Decay()
    run = make_run(max_epochs=1, inferer=AutocastInferer(), loss=loss)
    loss.__dict__["network"] = run.network  # without making it a part of the loss
    run.trainer.run()
    assert len(bf16_is_faster) == 1
    assert run.trainer.inferer.precision == "bf16"


@pytest.mark.usefixtures("blank_figures")
def test_resume_and_evaluation_use_the_precision_of_the_training(
    make_run: MakeRun, bf16_is_faster: list[list[float]], tmp_path: Path
) -> None:
    make_run(max_epochs=1, inferer=AutocastInferer("bf16")).trainer.run()
    run = make_run(max_epochs=2, inferer=AutocastInferer(), resume=True)
    run.trainer.run()
    assert bf16_is_faster == []
    assert run.trainer.inferer.precision == "bf16"
    for given, used in [("auto", "bf16"), ("fp32", "fp32")]:
        model = make_run(inferer=AutocastInferer(given)).trainer.model
        Trained(model, tmp_path / "best.pt").load()
        assert model.inferer.precision == used


def test_stored_bf16_is_not_used_where_it_is_slow(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_run(max_epochs=1, inferer=AutocastInferer("bf16")).trainer.run()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    model = make_run(inferer=AutocastInferer()).trainer.model
    Trained(model, tmp_path / "best.pt").load()
    assert model.inferer.precision == "auto"
