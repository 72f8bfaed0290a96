"""Handlers for MONAI's engines."""

from monai_pipelines.handlers.collect import CollectFeatures, CollectPredictions
from monai_pipelines.handlers.epoch_metrics import ClassificationMetrics
from monai_pipelines.handlers.guards import ClipGradients, StopOnNaN
from monai_pipelines.handlers.training import TrackTraining, TrainingHandlers

__all__ = [
    "ClassificationMetrics",
    "ClipGradients",
    "CollectFeatures",
    "CollectPredictions",
    "StopOnNaN",
    "TrackTraining",
    "TrainingHandlers",
]
