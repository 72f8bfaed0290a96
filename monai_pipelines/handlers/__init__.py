"""Handlers for MONAI's engines."""

from monai_pipelines.handlers.collect import CollectFeatures, CollectPredictions
from monai_pipelines.handlers.epoch_metrics import ClassificationMetrics
from monai_pipelines.handlers.guards import ClipGradients, StopOnNaN
from monai_pipelines.handlers.keep_best import Checkpoints
from monai_pipelines.handlers.monitor import Monitor
from monai_pipelines.handlers.training import TrackTraining, TrainingHandlers

__all__ = [
    "Checkpoints",
    "ClassificationMetrics",
    "ClipGradients",
    "CollectFeatures",
    "CollectPredictions",
    "Monitor",
    "StopOnNaN",
    "TrackTraining",
    "TrainingHandlers",
]
