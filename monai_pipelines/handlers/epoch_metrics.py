"""Epoch metrics inside MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.engines import Evaluator

from monai_pipelines import processes
from monai_pipelines.handlers.guards import check_finite
from monai_pipelines.metrics import check_rule, choose_threshold, classification_metrics, fit_temperature
from monai_pipelines.model import Model
from monai_pipelines.probabilities import probabilities
from monai_pipelines.report.figures import confusion_figure
from monai_pipelines.report.tensorboard import add_pr_curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PartialMetric(Metric):
    """A metric that can be saved in the middle of an epoch."""

    accumulators: tuple[str, ...]

    def partial(self) -> dict[str, Any]:
        """The accumulators: tensors and plain data."""
        return {name: getattr(self, name) for name in self.accumulators}

    def restore(self, partial: dict[str, Any]) -> None:
        """Continue from what `partial` returned."""
        vars(self).update(partial)


class EpochMetrics(Metric):
    """Metrics of a whole epoch, what follows from them for the use of the model, and figures of them."""

    def names(self, model: Model) -> list[str]:
        """All metrics, each of which may choose the best epoch."""
        raise NotImplementedError

    def check_rule(self, threshold_by: str, model: Model) -> None:
        """Raise a ValueError if a threshold cannot be chosen by a rule."""
        raise NotImplementedError

    def decisions(self, threshold_by: str | None, calibrate: bool) -> dict[str, Any]:
        """``num_validation``, ``temperature``, ``threshold``, ``threshold_by`` of the last epoch, None where none."""
        raise NotImplementedError

    def draw(self, writer: SummaryWriter, model: Model, epoch: int) -> None:
        """Curves and figures of the epoch."""
        raise NotImplementedError


class ClassificationMetrics(EpochMetrics, PartialMetric):
    """Metrics of all logits and labels of an epoch: one logit, several classes, or several labels (N, C) each.

    Attached under any name it reports every metric of `classification_metrics`, and keeps
    ``predictions``, ``(logits, label)``, (N, C) or (N, 1) and (N,) or (N, C) on the CPU.

    With several processes, the main one measures the rows of all of them. A `DistributedSampler` repeats some images so
    that all processes have equally many: evaluators count each ``name`` of a batch once.

    Args:
        loss_function: adds ``loss`` of the whole epoch, from its logits.

    Raises:
        FloatingPointError: logits that are not finite, with the names of the batch.

    Example:
        >>> metric = ClassificationMetrics()
        >>> metric.update((torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, 1])))
        >>> metric.compute()["accuracy"]
        0.5
    """

    accumulators = ("_logits", "_labels", "_names")

    def __init__(self, loss_function: Loss | None = None) -> None:
        self.loss_function = loss_function
        super().__init__(output_transform=itemgetter("pred", "label"))

    def reset(self) -> None:
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._names: list[str] = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, labels = output
        self._logits.append(logits.detach().float().cpu())
        self._labels.append(labels.detach().cpu())

    def iteration_completed(self, engine: Engine) -> None:
        super().iteration_completed(engine)
        bad = self._logits[-1][~self._logits[-1].isfinite()]
        if bad.numel():
            check_finite(engine, "a logit", float(bad[0]))
        if isinstance(engine, Evaluator) and processes.num_processes() > 1:
            self._names += engine.state.batch.get("name", ())

    def compute(self) -> dict[str, float]:
        if not self._logits:
            raise NotComputableError("ClassificationMetrics: wanted one batch or more, got none")
        parts = processes.gathered((torch.cat(self._logits), torch.cat(self._labels), self._names))
        logits, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        if self._names:
            names = [name for part in parts for name in part[2]]
            first = {name: row for row, name in reversed([*enumerate(names)])}
            rows = sorted(first.values())
            logits, labels = logits[rows], labels[rows]
        self.predictions = logits, labels
        return processes.from_main(self._measured)  # machines may round differently, and stop apart

    def _measured(self) -> dict[str, float]:
        logits, labels = self.predictions
        values = classification_metrics(probabilities(logits, multilabel=labels.ndim == 2).numpy(), labels.numpy())
        if self.loss_function is not None:
            weights = list(self.loss_function.buffers()) if isinstance(self.loss_function, torch.nn.Module) else []
            device = weights[0].device if weights else logits.device
            with torch.no_grad():
                values["loss"] = float(self.loss_function(logits.to(device), labels.to(device)))
        return values

    def completed(self, engine: Engine, name: str) -> None:
        engine.state.metrics.update(self.compute())

    def names(self, model: Model) -> list[str]:
        num = len(model.classes)
        even = np.full((1, num), 1 / num)
        return ["loss", *classification_metrics(even, even.astype(int) if model.multilabel else [0])]

    def check_rule(self, threshold_by: str, model: Model) -> None:
        check_rule(threshold_by)
        num = len(model.classes)
        if num != 2 and not model.multilabel:
            raise ValueError(f"threshold_by is for two classes or multilabel, got {num} classes; set it to null")

    def decisions(self, threshold_by: str | None, calibrate: bool) -> dict[str, Any]:
        logits, label = self.predictions
        temperature = fit_temperature(logits.numpy(), label.numpy()) if calibrate else None
        threshold = None
        if threshold_by is not None:
            prob = probabilities(logits.double(), label.ndim == 2, temperature)
            threshold = choose_threshold(prob.numpy(), label.numpy(), threshold_by)
        return {
            "num_validation": len(label),
            "temperature": temperature,
            "threshold": threshold,
            "threshold_by": None if threshold is None else threshold_by,
        }

    def draw(self, writer: SummaryWriter, model: Model, epoch: int) -> None:
        logits, label = self.predictions
        prob = probabilities(logits, multilabel=label.ndim == 2)
        add_pr_curves(writer, label, prob, model.classes, epoch)
        if label.ndim == 1:
            writer.add_figure("confusion_matrix/validation", confusion_figure(label, prob, model.classes), epoch)
