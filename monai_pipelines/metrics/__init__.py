"""How good a classifier is, and how good a cheap shortcut would have been."""

from monai_pipelines.metrics.classification import classification_metrics, per_class_metrics, predicted_classes
from monai_pipelines.metrics.intervals import bootstrap_intervals
from monai_pipelines.metrics.shortcut import shortcut_baseline, shortcut_baselines
from monai_pipelines.metrics.threshold import check_rule, choose_threshold

__all__ = [
    "bootstrap_intervals",
    "check_rule",
    "choose_threshold",
    "classification_metrics",
    "per_class_metrics",
    "predicted_classes",
    "shortcut_baseline",
    "shortcut_baselines",
]
