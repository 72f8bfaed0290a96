"""How good a classifier is, and how good a cheap shortcut would have been."""

from monai_pipelines.metrics.classification import classification_metrics, per_class_metrics
from monai_pipelines.metrics.shortcut import shortcut_baseline

__all__ = ["classification_metrics", "per_class_metrics", "shortcut_baseline"]
