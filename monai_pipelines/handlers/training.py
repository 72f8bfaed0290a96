"""The handlers that every training needs, as one entry in a config."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from monai_pipelines.chains import Chain
from monai_pipelines.handlers.guards import ClipGradients, StopOnNaN
from monai_pipelines.handlers.keep_best import Checkpoints
from monai_pipelines.handlers.monitor import Monitor


class TrainingHandlers:
    """Progress bar, gradient clipping, NaN stop, TensorBoard and history, learning rate, checkpoints, early stopping.

    Stands after MONAI's `ValidationHandler` in the list of handlers. The scheduler steps after each validation with
    its loss (ReduceLROnPlateau), after each iteration (one-cycle, cyclic) or after each epoch.

    Args:
        output_dir: folder of the run.
        evaluator: the validation engine.
        network, optimizer, lr_scheduler: what is trained.
        chain: of the validation data; stored with the weights.
        classes: class names by index.
        key_metric: validation metric that chooses the best epoch.
        patience: validations without a better one before training stops; None never stops.
        clip_norm: largest norm of the gradient; None does not clip.
        split: what the split was made from; stored with the weights.
        threshold_by: how the decision threshold is chosen on the validation data; None: no threshold is stored.
        calibrate: fit a temperature to the validation data, and store it with the weights.
        multilabel: any number of classes at once, instead of exactly one.
        resume: go on from the run's ``last.pt``; the command line gives "true" or "false".
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        evaluator: Any,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        chain: Chain,
        classes: Sequence[str],
        key_metric: str = "roc_auc",
        patience: int | None = 15,
        clip_norm: float | None = 1.0,
        split: dict[str, Any] | None = None,
        threshold_by: str | None = None,
        calibrate: bool = True,
        multilabel: bool = False,
        resume: bool | str = False,
    ) -> None:
        if str(resume).lower() not in ("true", "false"):
            raise ValueError(f"TrainingHandlers: resume must be true or false, got {resume!r}")
        history: list[dict[str, Any]] = []
        self.evaluator, self.lr_scheduler, self.clip_norm = evaluator, lr_scheduler, clip_norm
        self.resume = str(resume).lower() == "true"
        self.monitor = Monitor(output_dir, evaluator, optimizer, classes, key_metric, history)
        self.checkpoints = Checkpoints(
            *(output_dir, evaluator, network, optimizer, lr_scheduler, chain, classes, key_metric, patience, split),
            threshold_by=threshold_by,
            calibrate=calibrate,
            multilabel=multilabel,
            history=history,
        )

    def attach(self, engine: Engine) -> None:
        bar = ProgressBar(persist=False, ncols=80, disable=None)  # None: no bar where no terminal shows it
        bar.attach(engine, output_transform=_loss)
        StopOnNaN().attach(engine)
        if self.clip_norm is not None:
            ClipGradients(self.clip_norm).attach(engine)
        self.monitor.attach(engine)
        per_step = isinstance(self.lr_scheduler, (OneCycleLR, CyclicLR))
        engine.add_event_handler(Events.ITERATION_COMPLETED if per_step else Events.EPOCH_COMPLETED, self.schedule)
        self.checkpoints.attach(engine)
        if self.resume:
            self.checkpoints.resume(engine)

    def schedule(self, engine: Engine) -> None:
        """Step the learning rate."""
        if not isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.lr_scheduler.step()
        elif self.evaluator.state.epoch == engine.state.epoch:
            self.lr_scheduler.step(self.evaluator.state.metrics["loss"])


def _loss(output: dict[str, Any]) -> dict[str, float]:
    return {"loss": float(output["loss"].detach())}
