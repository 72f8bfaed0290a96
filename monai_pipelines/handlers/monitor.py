"""What one watches while a network trains: TensorBoard and the history."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from monai_pipelines.report.figures import confusion_figure, history_figure
from monai_pipelines.report.images import images_figure

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4


class Monitor:
    """History and TensorBoard of a training run.

    Writes ``history.json`` after each epoch and ``history.png`` at the end; into ``tensorboard/``: the loss of every
    step, and per epoch loss, learning rate and every metric for training and validation, the confusion matrix of the
    validation, and once some images as the network sees them.

    Args:
        output_dir: folder of the run.
        evaluator: the validation engine.
        optimizer: whose learning rate is told.
        classes: class names by index.
        key_metric: name of the validation metric.
        history: list that is filled: ``{"epoch", "lr", "train": {...}, "val": {...}}`` per epoch.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        evaluator: Any,
        optimizer: Any,
        classes: Sequence[str],
        key_metric: str,
        history: list[dict[str, Any]],
    ) -> None:
        self.output_dir = Path(output_dir)
        self.evaluator, self.optimizer, self.classes = evaluator, optimizer, list(classes)
        self.key_metric, self.history = key_metric, history
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """The run's TensorBoard writer, opened when first used."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.output_dir / "tensorboard"))
        return self._writer

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.end)

    def step(self, engine: Any) -> None:
        """After each step."""
        iteration, output = engine.state.iteration, engine.state.output
        self.writer.add_scalar("loss_per_step/train", float(output["loss"].detach()), iteration)
        if iteration == 1 and "image" in engine.state.batch:
            images = list(output["image"][:NUM_SAMPLES].float().cpu())
            titles = [self._named(label) for label in output["label"][:NUM_SAMPLES]]
            self.writer.add_figure("input/train", images_figure(images, titles), iteration)

    def epoch(self, engine: Any) -> None:
        """After each epoch and its validation."""
        epoch = engine.state.epoch
        record: dict[str, Any] = {
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train": _numbers(engine.state.metrics),
        }
        self.writer.add_scalar("learning_rate", record["lr"], epoch)
        if self.evaluator.state.epoch == epoch:
            record["val"] = _numbers(self.evaluator.state.metrics)
            prob, label = self.evaluator.state.metric_details["predictions"]
            if label.ndim == 1:
                figure = confusion_figure(label, prob, self.classes)
                self.writer.add_figure("confusion_matrix/validation", figure, epoch)
        for split, name in (("train", "train"), ("val", "validation")):
            for metric, value in record.get(split, {}).items():
                if value is not None:
                    self.writer.add_scalar(f"{metric}/{name}", value, epoch)
        self.writer.flush()
        self.history.append(record)
        (self.output_dir / "history.json").write_text(json.dumps(self.history, indent=1))
        logger.info("epoch %d/%d: %s", epoch, engine.state.max_epochs, self._line(record))

    def end(self, engine: Any) -> None:
        """After the last epoch."""
        if self.history:
            history_figure(self.history, self.key_metric).savefig(self.output_dir / "history.png", dpi=120)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _named(self, label: torch.Tensor) -> str:
        own = label.nonzero().flatten().tolist() if label.ndim else [int(label)]
        return ", ".join(self.classes[k] for k in own) or "none"

    def _line(self, record: dict[str, Any]) -> str:
        parts = [
            f"{split} {metric} {value:.4f}"
            for split in ("train", "val")
            for metric in ("loss", "roc_auc")
            if (value := record.get(split, {}).get(metric)) is not None
        ]
        return ", ".join(parts)


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {name: float(v) if math.isfinite(float(v)) else None for name, v in metrics.items()}
