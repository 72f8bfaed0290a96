"""Epoch metrics inside MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import EpochMetric

from monai_pipelines.heads import probabilities
from monai_pipelines.metrics import classification_metrics

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ClassificationMetrics(EpochMetric):
    """Metrics of all logits and labels of an epoch: one logit, several classes, or several labels (N, C) each.

    Args:
        only: the one metric to report (for a ``key_metric``); None reports all under their own names, and keeps
            ``(prob, label)`` in ``engine.state.metric_details["predictions"]``.
        loss_function: adds ``loss`` of the whole epoch, from its logits.
    """

    def __init__(self, only: str | None = None, loss_function: Loss | None = None) -> None:
        self.only, self.loss_function = only, loss_function
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        compute_fn: Any = self._metrics  # ignite's hint says float; any mapping is reported by its keys
        super().__init__(compute_fn, output_transform=_logits_and_labels, check_compute_fn=False)

    def _metrics(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        if logits.ndim == 1:
            logits = logits[:, None]  # ignite takes the axis from one logit
        prob = probabilities(logits, multilabel=labels.ndim == 2)
        self._last = prob, labels
        values = classification_metrics(prob.numpy(), labels.numpy())
        if self.loss_function is not None:
            weights = list(self.loss_function.buffers()) if isinstance(self.loss_function, torch.nn.Module) else []
            device = weights[0].device if weights else logits.device
            values["loss"] = float(self.loss_function(logits.to(device), labels.to(device)))
        return values

    def compute(self) -> Any:
        values: Any = super().compute()
        return values if self.only is None else values[self.only]

    def completed(self, engine: Engine, name: str) -> None:
        super().completed(engine, name)
        if self.only is None:
            del engine.state.metrics[name]  # its values stay under their own names
            engine.state.metric_details["predictions"] = self._last  # type: ignore[attr-defined]


def _logits_and_labels(output: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return output["pred"].detach().float(), output["label"].detach()
