"""Gradient clipping, and stopping on values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents


class ClipGradients:
    """Clip the norm of the trainer's gradients before each step; ``engine.state.gradient_norm`` is the one before.

    Args:
        max_norm: largest norm kept.
    """

    def __init__(self, max_norm: float) -> None:
        if max_norm <= 0:
            raise ValueError(f"ClipGradients: max_norm must be positive, got {max_norm}")
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        if not batches_of_step(engine):
            return
        norm = float(torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm))
        check_finite(engine, "norm of the gradient", norm)
        engine.state.gradient_norm = norm


def batches_of_step(engine: Any) -> int:
    """Number of batches in the optimizer step that follows this batch; 0 if there is none yet."""
    batch = (engine.state.iteration - 1) % engine.state.epoch_length + 1
    left_over = batch % engine.accumulation_steps
    if not left_over:
        return int(engine.accumulation_steps)
    return int(left_over) if batch == engine.state.epoch_length else 0


class StopOnNaN:
    """Stop training on a loss that is not finite, and name the images of the batch."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        check_finite(engine, "loss", float(engine.state.output["loss"].detach()))


def check_finite(engine: Any, what: str, value: float) -> None:
    """Stop with the names of the engine's batch where a value is not finite.

    Raises:
        FloatingPointError: it is not.
    """
    if not math.isfinite(value):
        batch = engine.state.batch if isinstance(engine.state.batch, Mapping) else {}
        names = ", ".join(map(str, batch.get("name", ["(no names in the data)"])))
        raise FloatingPointError(
            f"{what} is {value} in epoch {engine.state.epoch}, iteration {engine.state.iteration}, with the images "
            f"{names}; look at these images, lower the learning rate, or use --precision fp32"
        )
