"""How good a classifier is, and how good a cheap shortcut would have been."""

from monai_pipelines.metrics.classification import classification_metrics, per_class_metrics, predicted_classes
from monai_pipelines.metrics.intervals import bootstrap_intervals
from monai_pipelines.metrics.localisation import annotated_fraction, read_outlines, tile_auc
from monai_pipelines.metrics.shortcut import shortcut_baseline, shortcut_baselines
from monai_pipelines.metrics.threshold import check_rule, choose_threshold

__all__ = [
    "annotated_fraction",
    "bootstrap_intervals",
    "check_rule",
    "choose_threshold",
    "classification_metrics",
    "per_class_metrics",
    "predicted_classes",
    "read_outlines",
    "shortcut_baseline",
    "shortcut_baselines",
    "tile_auc",
]
