"""Experiment tracking by MLflow, see ``bundles/mlflow.yaml``."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from monai.handlers import MLFlowHandler


class TrackTraining(MLFlowHandler):
    """MONAI's `MLFlowHandler` for a trainer whose output is that of a whole batch.

    Metrics are logged as ``train_<name>``, so that they do not mix with those of the validation.

    Args:
        options: of `MLFlowHandler`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(output_transform=itemgetter("loss"), epoch_logger=self.log_epoch, **options)

    def log_epoch(self, engine: Any) -> None:
        """Log the metrics of an epoch; the loss is logged step by step."""
        run: Any = self.cur_run
        for name, value in engine.state.metrics.items():
            if name != "loss":
                self.client.log_metric(run.info.run_id, f"train_{name}", value, step=engine.state.epoch)
