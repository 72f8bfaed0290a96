"""TensorBoard and the history of a training."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from matplotlib.figure import Figure

from monai_pipelines.atomic import atomic_write
from monai_pipelines.report.box_pictures import boxes_figure
from monai_pipelines.report.figures import history_figure
from monai_pipelines.report.pictures import images_figure
from monai_pipelines.report.predictions import class_name
from monai_pipelines.report.words import hidden_metrics
from monai_pipelines.runs.folder import RunFolder

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4


class Monitor:
    """History and TensorBoard of a training run.

    Writes ``history.json`` after each epoch, ``history.png`` at the end, and into ``tensorboard/``

    - ``train`` and ``validation``, epoch by epoch: all metrics, by the same names so that they share a chart; also the
      learning rate, the seconds and the share of them spent waiting for batches, PR curves and confusion matrix of the
      validation, and once some images as the network sees them, a layout for the tab Custom Scalars, and the settings
      (none with a path) and configs of ``run.json``;
    - ``steps``, iteration by iteration: loss, learning rate, and the gradient's norm if `ClipGradients` measures it.

    A new run removes the checkpoints and TensorBoard's files of an earlier one, a resumed run hides the epochs that it
    repeats, and both remove an evaluation.

    Args:
        output_dir: folder of the run.
        validator: the validation engine, with the model and the key metric.
        history: list that is filled: ``{"epoch", "lr", "train": {...}, "val": {...}}`` per epoch; ``lr`` is the rate of
            its last step.
    """

    def __init__(self, output_dir: str | PathLike[str], validator: Any, history: list[dict[str, Any]]) -> None:
        self.output_dir, self.validator, self.history = Path(output_dir), validator, history
        self.classes = list(validator.model.classes)
        self.waiting = Timer()

    def attach(self, engine: Engine) -> None:
        self.waiting.attach(
            engine, Events.EPOCH_STARTED, pause=Events.GET_BATCH_COMPLETED, resume=Events.GET_BATCH_STARTED
        )
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch)
        engine.add_event_handler(Events.COMPLETED, self.end)

    def start(self, engine: Any) -> None:
        """Before the first epoch, or the first one after a resume."""
        from torch.utils.tensorboard import SummaryWriter

        epoch = engine.state.epoch
        done = {"train": epoch, "validation": epoch, "steps": engine.state.iteration}
        folders = {name: self.output_dir / "tensorboard" / name for name in done}
        if not engine.state.iteration:
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
        self.writers = {name: SummaryWriter(str(folder), purge_step=done[name] + 1) for name, folder in folders.items()}
        run = RunFolder(self.output_dir)
        if epoch < engine.state.max_epochs:  # else it ended already, and is what was evaluated
            run.clear(resumed=bool(engine.state.iteration))
        for tag, text in _texts(run).items():
            self.writers["train"].add_text(tag, text, epoch)

    def step(self, engine: Any) -> None:
        iteration, output, writer = engine.state.iteration, engine.state.output, self.writers["steps"]
        writer.add_scalar("steps/loss", float(output["loss"].detach()), iteration)
        self.learning_rate = engine.optimizer.param_groups[0]["lr"]  # before a scheduler that steps with every batch
        writer.add_scalar("steps/learning_rate", self.learning_rate, iteration)
        if hasattr(engine.state, "gradient_norm"):
            writer.add_scalar("steps/gradient_norm", engine.state.gradient_norm, iteration)
        if iteration == 1 and "image" in engine.state.batch:
            images, labels = list(output["image"][:NUM_SAMPLES].float().cpu()), output["label"][:NUM_SAMPLES]
            self.writers["train"].add_figure("input/train", self._input(images, labels), engine.state.epoch)

    def epoch(self, engine: Any) -> None:
        epoch = engine.state.epoch
        train = self._numbers(engine.state.metrics)
        record: dict[str, Any] = {"epoch": epoch, "lr": self.learning_rate, "train": train}
        if epoch == 1:
            self.writers["train"].add_custom_scalars(_layout(train))
        self.writers["train"].add_scalar("learning_rate", self.learning_rate, epoch)
        seconds = engine.state.times[Events.EPOCH_COMPLETED.name]
        share = self.waiting.value() / seconds if seconds else 0.0
        self.writers["train"].add_scalar("time/seconds", seconds, epoch)
        self.writers["train"].add_scalar("time/waiting_for_data", share, epoch)
        if self.validator.state.epoch == epoch:
            record["val"] = self._numbers(self.validator.state.metrics)
            self.validator.epoch_metrics.draw(self.writers["validation"], self.validator.model, epoch)
        for split, name in (("train", "train"), ("val", "validation")):
            for metric, value in record.get(split, {}).items():
                if value is not None:
                    self.writers[name].add_scalar(f"metrics/{metric}", value, epoch)
        for writer in self.writers.values():
            writer.flush()
        self.history.append(record)
        with atomic_write(self.output_dir / "history.json") as part:
            part.write_text(json.dumps(self.history, indent=1))
        parts = [
            f"{split} {metric} {value:.4f}"
            for split in ("train", "val")
            for metric in dict.fromkeys(("loss", self.validator.key_metric))
            if (value := record.get(split, {}).get(metric)) is not None
        ]
        parts.append(f"{seconds:.1f} s, {share:.0%} of them waiting for data")
        logger.info("epoch %d/%d: %s", epoch, engine.state.max_epochs, ", ".join(parts))

    def _numbers(self, metrics: dict[str, Any]) -> dict[str, float | None]:
        """Those that are shown; None where not finite."""
        hidden = hidden_metrics(self.validator.key_metric)
        return {n: float(v) if math.isfinite(float(v)) else None for n, v in metrics.items() if n not in hidden}

    def _input(self, images: list[torch.Tensor], labels: Any) -> Figure:
        """Images as the network sees them, with their classes or boxes."""
        if self.validator.model.detects:
            return boxes_figure(images, labels, [""] * len(images))
        return images_figure(images, [class_name(label, self.classes, ", ", "none") for label in labels])

    def end(self, engine: Any) -> None:
        if self.history:
            history_figure(self.history, self.validator.key_metric).savefig(self.output_dir / "history.png", dpi=120)
        for writer in self.writers.values():
            writer.close()


def _layout(metrics: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """A chart for each metric, with training, validation and, after an evaluation, test; tags are patterns."""
    charts = {
        "Each epoch": {name: f"^metrics/{name}$" for name in metrics} | {"learning_rate": "^learning_rate$"},
        "Time": {name: f"^time/{name}$" for name in ("seconds", "waiting_for_data")},
        "Each step": {name: f"^steps/{name}$" for name in ("loss", "learning_rate", "gradient_norm")},
    }
    return {
        title: {name.replace("_", " "): ["Multiline", [tag]] for name, tag in tags.items()}
        for title, tags in charts.items()
    }


def _texts(folder: RunFolder) -> dict[str, str]:
    """Markdown by tag: settings, those of the command line marked, and the configs, of ``run.json``; without paths."""
    run = folder.run
    if run is None:
        return {}
    overrides = run["overrides"]
    rows = [
        f"| {name} | {str(value).replace('|', '&#124;')} | {'command line' if name in overrides else ''} |"
        for name, value in {**run["settings"], **overrides}.items()
        if not {"/", "\\"} & {*str(value)}
    ]
    texts = {"settings": "\n".join(["| setting | value | from |", "|---|---|---|", *rows])} if rows else {}
    return texts | {f"config/{name}": f"```\n{text}\n```" for name, text in folder.configs.items()}
