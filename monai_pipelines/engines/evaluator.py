"""MONAI's evaluators: of a `Model` during its training, and of a trained one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from ignite.handlers import ProgressBar
from monai.engines import SupervisedEvaluator

from monai_pipelines import processes
from monai_pipelines.data import make_loader
from monai_pipelines.handlers import (
    ClassificationMetrics,
    CollectDetections,
    CollectPredictions,
    DetectionMetrics,
    EpochMetrics,
)
from monai_pipelines.model import Model
from monai_pipelines.report.words import LOWER_IS_BETTER
from monai_pipelines.runs import Trained


def compare_metrics(key_metric: str) -> Callable[[float, float], bool]:
    """What MONAI compares a metric with the best one by: (metric, best) -> better."""
    return operator.lt if key_metric in LOWER_IS_BETTER else operator.gt


class ModelSupervisedEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator` of a `Model`, with the metrics of the whole data set: validates a training.

    Args:
        model: what is trained.
        dataset: the validation data.
        batch_size: images.
        val_handlers: of `SupervisedEvaluator`.
        loss_function: of the trainer; adds the metric "loss", but not to those of a detector.
        key_metric: the metric that chooses the best epoch.

    Attributes:
        epoch_metrics: of the last validation, `ClassificationMetrics` or `DetectionMetrics`.
    """

    def __init__(
        self,
        model: Model,
        dataset: Any,
        batch_size: int,
        loss_function: Any = None,
        key_metric: str = "roc_auc",
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        self.model, self.key_metric = model, key_metric
        self.epoch_metrics: EpochMetrics = ClassificationMetrics(loss_function)
        if model.detects:
            self.epoch_metrics = DetectionMetrics(len(model.classes))
        super().__init__(
            device=model.device,
            val_data_loader=make_loader(dataset, batch_size, distributed=True),
            network=model.network,
            prepare_batch=model.prepare,
            inferer=model.inferer,
            key_val_metric={key_metric: self.epoch_metrics},
            metric_cmp_fn=compare_metrics(key_metric),
            val_handlers=val_handlers,
            decollate=False,
        )


class TrainedSupervisedEvaluator(SupervisedEvaluator):
    """MONAI's `SupervisedEvaluator` of a trained model: probabilities or boxes of every image of a data set.

    Args:
        trained: the model with its weights, loaded when the engine runs.
        dataset: what is evaluated or classified.
        batch_size: images.
        val_handlers: more handlers, such as `monai_pipelines.explain.ExplainImages`.

    Attributes:
        predictions: `CollectPredictions` or `CollectDetections`, with ``rows`` after the run.
        handlers: ``val_handlers``.
    """

    def __init__(
        self, trained: Trained, dataset: Any, batch_size: int, val_handlers: Sequence[Any] | None = None
    ) -> None:
        model = trained.model
        self.trained, self.dataset, self.handlers = trained, dataset, list(val_handlers or ())
        self.predictions = CollectDetections() if model.detects else CollectPredictions(trained.inferer)
        bar = ProgressBar(desc="predicting", persist=False, ncols=80, disable=None)
        super().__init__(
            device=model.device,
            val_data_loader=make_loader(dataset, batch_size),
            network=model.network,
            prepare_batch=model.prepare,
            inferer=trained.inferer,
            postprocessing=None if model.detects else trained.probabilities,  # type: ignore[arg-type]  # any callable
            decollate=not model.detects,
            val_handlers=[self.predictions, bar, *self.handlers],
        )

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]  # as MONAI's
        """Load the weights and evaluate.

        Raises:
            ValueError: started by torchrun; see also `monai_pipelines.runs.Trained.load`.
        """
        if processes.started_processes() > 1:
            raise ValueError("evaluation and inference run in one process: start them with python instead of torchrun")
        self.trained.load()
        super().run(global_epoch)
