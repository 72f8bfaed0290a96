"""Epoch metrics inside MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.engines import Evaluator
from monai.utils import evenly_divisible_all_gather, string_list_all_gather

from monai_pipelines.handlers.guards import check_finite
from monai_pipelines.metrics import classification_metrics
from monai_pipelines.probabilities import probabilities

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ClassificationMetrics(Metric):
    """Metrics of all logits and labels of an epoch: one logit, several classes, or several labels (N, C) each.

    Attached under any name it reports every metric of `classification_metrics`, and keeps
    ``(logits, label)``, (N, C) or (N, 1) and (N,) or (N, C) on the CPU, in
    ``engine.state.metric_details["predictions"]``.

    With several processes each gets the metrics of all rows. A `DistributedSampler` repeats some images so that all
    processes have as many: evaluators count each ``name`` of a batch once.

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

    def __init__(self, loss_function: Loss | None = None) -> None:
        self.loss_function = loss_function
        super().__init__(output_transform=itemgetter("pred", "label"))

    def reset(self) -> None:
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._names: list[str] = []
        self._predictions: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, labels = output
        self._logits.append(logits.detach().float().cpu())
        self._labels.append(labels.detach().cpu())

    def iteration_completed(self, engine: Engine) -> None:
        super().iteration_completed(engine)
        bad = self._logits[-1][~self._logits[-1].isfinite()]
        if bad.numel():
            check_finite(engine, "a logit", float(bad[0]))
        if isinstance(engine, Evaluator) and idist.get_world_size() > 1:
            self._names += engine.state.batch.get("name", ())

    def compute(self) -> dict[str, float]:
        if not self._logits:
            raise NotComputableError("ClassificationMetrics: wanted one batch or more, got none")
        logits, labels = (
            evenly_divisible_all_gather(torch.cat(batches), concat=True) for batches in (self._logits, self._labels)
        )
        if self._names:
            first = {name: row for row, name in reversed([*enumerate(string_list_all_gather(self._names))])}
            rows = sorted(first.values())
            logits, labels = logits[rows], labels[rows]
        self._predictions = logits, labels
        values = classification_metrics(probabilities(logits, multilabel=labels.ndim == 2).numpy(), labels.numpy())
        if self.loss_function is not None:
            weights = list(self.loss_function.buffers()) if isinstance(self.loss_function, torch.nn.Module) else []
            device = weights[0].device if weights else logits.device
            values["loss"] = float(self.loss_function(logits.to(device), labels.to(device)))
        return values

    def completed(self, engine: Engine, name: str) -> None:
        engine.state.metrics.update(self.compute())
        engine.state.metric_details["predictions"] = self._predictions  # type: ignore[attr-defined]
