"""The handlers that every training needs, as one entry in a config, and experiment tracking."""

from __future__ import annotations

import logging
from operator import itemgetter
from os import PathLike
from typing import Any

from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.handlers import MLFlowHandler, ValidationHandler
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from monai_pipelines import processes
from monai_pipelines.handlers.guards import ClipGradients, StopOnNaN, batches_of_step
from monai_pipelines.handlers.keep_best import Checkpoints
from monai_pipelines.handlers.monitor import Monitor
from monai_pipelines.runs.folder import RunFolder

logger = logging.getLogger(__name__)


class TrainingHandlers:
    """Validation, progress bar, gradient clipping, NaN stop, TensorBoard, learning rate, checkpoints, early stopping.

    The scheduler steps after each validation with its loss, of a detector with the key metric (ReduceLROnPlateau),
    once per iteration, after the optimizer step (one-cycle, cyclic), or after each epoch.

    Args:
        validator: the validation engine, a `monai_pipelines.engines.ModelSupervisedEvaluator`: it says what the model
            and the key metric are.
        output_dir: folder of the run.
        lr_scheduler: of the trainer's optimizer.
        interval: epochs from validation to validation; the last epoch has one, too.
        clip_norm: largest norm of the gradient; None does not clip.
        options: of `Checkpoints`: ``patience``, ``split``, ``threshold_by``, ``calibrate``, ``checkpoint_every``,
            ``resume``.
    """

    def __init__(
        self,
        validator: Any,
        output_dir: str | PathLike[str],
        lr_scheduler: Any,
        interval: int = 1,
        clip_norm: float | None = 1.0,
        **options: Any,
    ) -> None:
        history: list[dict[str, Any]] = []
        self.validator, self.interval, self.output_dir = validator, interval, output_dir
        self.lr_scheduler, self.clip_norm = lr_scheduler, clip_norm
        self.monitor = Monitor(output_dir, validator, history)
        self.checkpoints = Checkpoints(output_dir, validator, lr_scheduler, history, **options)

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, self.checkpoints.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.share_buffers)
        validation = ValidationHandler(self.interval, self.validator)
        validation.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_left_over), validation)
        # None: no bar where no terminal shows it
        bar = ProgressBar(persist=False, ncols=80, disable=None if processes.is_main() else True)
        bar.attach(engine, output_transform=lambda output: {"loss": float(output["loss"].detach())})
        StopOnNaN().attach(engine)
        if self.clip_norm is not None:
            ClipGradients(self.clip_norm).attach(engine)
        if processes.is_main():
            self.monitor.attach(engine)
        if isinstance(self.lr_scheduler, (OneCycleLR, CyclicLR)):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.schedule_steps)
        else:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.schedule)
        self.checkpoints.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self.log_written)

    def _is_left_over(self, engine: Any, epoch: int) -> bool:
        """Whether an epoch is the last, and the interval leaves it out."""
        return epoch == engine.state.max_epochs and bool(epoch % self.interval)

    def share_buffers(self, engine: Any) -> None:
        """Have all processes validate the network that is saved."""
        processes.share_buffers(self.validator.model.network)

    def log_written(self) -> None:
        """Log where the results are."""
        logger.info("wrote %s: best.pt, last.pt, history.json, history.png, run.json, tensorboard", self.output_dir)

    def schedule_steps(self, engine: Any) -> None:
        for _ in range(batches_of_step(engine)):
            self.lr_scheduler.step()

    def schedule(self, engine: Any) -> None:
        if not isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.lr_scheduler.step()
        elif self.validator.state.epoch == engine.state.epoch:
            metrics = self.validator.state.metrics
            self.lr_scheduler.step(metrics["loss"] if "loss" in metrics else -metrics[self.validator.key_metric])


class TrackTraining(MLFlowHandler):
    """MONAI's `MLFlowHandler` for a trainer whose output is that of a whole batch, see ``bundles/mlflow.yaml``.

    Parameters are the ``settings`` of ``run.json``. Metrics are logged as ``train_<name>``, so that they do not mix
    with those of the validation.

    Args:
        output_dir: folder of the run.
        options: of `MLFlowHandler`.
    """

    def __init__(self, output_dir: str | PathLike[str], **options: Any) -> None:
        super().__init__(output_transform=itemgetter("loss"), epoch_logger=self.log_epoch, **options)
        self.experiment_param = (RunFolder(output_dir).run or {}).get("settings")

    def attach(self, engine: Any) -> None:
        if processes.is_main():
            super().attach(engine)

    def log_epoch(self, engine: Any) -> None:
        """Log the metrics of an epoch; the loss is logged step by step."""
        run: Any = self.cur_run
        for name, value in engine.state.metrics.items():
            if name != "loss":
                self.client.log_metric(run.info.run_id, f"train_{name}", value, step=engine.state.epoch)
