"""Handlers for MONAI's engines."""

from monai_pipelines.handlers.checkpoints import Checkpoints, LoadCheckpoint
from monai_pipelines.handlers.explain import ExplainImages
from monai_pipelines.handlers.guards import ClipGradients, StopOnNaN
from monai_pipelines.handlers.metrics import ClassificationMetrics
from monai_pipelines.handlers.monitor import Monitor
from monai_pipelines.handlers.predictions import CollectFeatures, CollectPredictions
from monai_pipelines.handlers.slides import ExplainSlides
from monai_pipelines.handlers.training import TrainingHandlers

__all__ = [
    "Checkpoints",
    "ClassificationMetrics",
    "ClipGradients",
    "CollectFeatures",
    "CollectPredictions",
    "ExplainImages",
    "ExplainSlides",
    "LoadCheckpoint",
    "Monitor",
    "StopOnNaN",
    "TrainingHandlers",
]
