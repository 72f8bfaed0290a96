"""Handlers for MONAI's engines."""

from monai_pipelines.handlers.collect import CollectFeatures, CollectPredictions
from monai_pipelines.handlers.detection_metrics import CollectDetections, DetectionMetrics, MeanLosses
from monai_pipelines.handlers.epoch_metrics import ClassificationMetrics, EpochMetrics
from monai_pipelines.handlers.guards import ClipGradients, StopOnNaN
from monai_pipelines.handlers.training import TrackTraining, TrainingHandlers
from monai_pipelines.handlers.viewer_files import WriteViewerFiles

__all__ = [
    "ClassificationMetrics",
    "ClipGradients",
    "CollectDetections",
    "CollectFeatures",
    "CollectPredictions",
    "DetectionMetrics",
    "EpochMetrics",
    "MeanLosses",
    "StopOnNaN",
    "TrackTraining",
    "TrainingHandlers",
    "WriteViewerFiles",
]
