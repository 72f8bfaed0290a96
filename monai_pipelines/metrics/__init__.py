"""Metrics of classifiers with confidence intervals, calibration, thresholds, comparisons and shortcut baselines."""

from monai_pipelines.metrics.calibration import fit_temperature, reliability, temper
from monai_pipelines.metrics.classification import classification_metrics, per_class_metrics, predicted_classes
from monai_pipelines.metrics.intervals import mean_interval, metric_intervals, resampled_metrics
from monai_pipelines.metrics.localisation import annotated_fraction, tile_auc
from monai_pipelines.metrics.paired import compare_predictions, delong_test
from monai_pipelines.metrics.shortcut import shortcut_baseline, shortcut_baselines
from monai_pipelines.metrics.threshold import check_rule, choose_threshold, net_benefit
from monai_pipelines.metrics.uncertainty import referral_table, risk_coverage, uncertainty

__all__ = [
    "annotated_fraction",
    "check_rule",
    "choose_threshold",
    "classification_metrics",
    "compare_predictions",
    "delong_test",
    "fit_temperature",
    "mean_interval",
    "metric_intervals",
    "net_benefit",
    "per_class_metrics",
    "predicted_classes",
    "referral_table",
    "reliability",
    "resampled_metrics",
    "risk_coverage",
    "shortcut_baseline",
    "shortcut_baselines",
    "temper",
    "tile_auc",
    "uncertainty",
]
