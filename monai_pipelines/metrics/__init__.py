"""Metrics of classifiers and detectors with intervals, calibration, thresholds, comparisons and shortcut baselines."""

from monai_pipelines.metrics.average_precision import average_precision, detection_precision_recall
from monai_pipelines.metrics.boxes import Detections, Lesions
from monai_pipelines.metrics.calibration import fit_temperature, reliability, temper
from monai_pipelines.metrics.classification import classification_metrics, per_class_metrics, predicted_classes
from monai_pipelines.metrics.detection import detection_metrics, image_roc_auc
from monai_pipelines.metrics.froc import FrocCurve, detection_hits, froc, froc_curve
from monai_pipelines.metrics.intervals import mean_interval, metric_intervals, resampled_metrics
from monai_pipelines.metrics.localisation import annotated_fraction, tile_auc
from monai_pipelines.metrics.operating_point import choose_operating_threshold, sensitivity_at
from monai_pipelines.metrics.paired import compare_detections, compare_predictions, delong_test
from monai_pipelines.metrics.shortcut import shortcut_baseline, shortcut_baselines
from monai_pipelines.metrics.threshold import check_rule, choose_threshold, net_benefit
from monai_pipelines.metrics.uncertainty import referral_table, risk_coverage, uncertainty

__all__ = [
    "Detections",
    "FrocCurve",
    "Lesions",
    "annotated_fraction",
    "average_precision",
    "check_rule",
    "choose_operating_threshold",
    "choose_threshold",
    "classification_metrics",
    "compare_detections",
    "compare_predictions",
    "delong_test",
    "detection_hits",
    "detection_metrics",
    "detection_precision_recall",
    "fit_temperature",
    "froc",
    "froc_curve",
    "image_roc_auc",
    "mean_interval",
    "metric_intervals",
    "net_benefit",
    "per_class_metrics",
    "predicted_classes",
    "referral_table",
    "reliability",
    "resampled_metrics",
    "risk_coverage",
    "sensitivity_at",
    "shortcut_baseline",
    "shortcut_baselines",
    "temper",
    "tile_auc",
    "uncertainty",
]
