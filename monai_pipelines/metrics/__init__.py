"""How good a classifier is, and how good a cheap shortcut would have been."""

from monai_pipelines.metrics.calibration import fit_temperature, reliability, temper
from monai_pipelines.metrics.classification import classification_metrics, per_class_metrics, predicted_classes
from monai_pipelines.metrics.decision import net_benefit
from monai_pipelines.metrics.delong import DeLong, delong_test
from monai_pipelines.metrics.intervals import Intervals, bootstrap_intervals, metric_intervals, resampled_metrics
from monai_pipelines.metrics.localisation import annotated_fraction, read_outlines, tile_auc
from monai_pipelines.metrics.paired import compare_predictions
from monai_pipelines.metrics.shortcut import shortcut_baseline, shortcut_baselines
from monai_pipelines.metrics.threshold import check_rule, choose_threshold
from monai_pipelines.metrics.uncertainty import RiskCoverage, referral_table, risk_coverage, uncertainty

__all__ = [
    "DeLong",
    "Intervals",
    "RiskCoverage",
    "annotated_fraction",
    "bootstrap_intervals",
    "check_rule",
    "choose_threshold",
    "classification_metrics",
    "compare_predictions",
    "delong_test",
    "fit_temperature",
    "metric_intervals",
    "net_benefit",
    "per_class_metrics",
    "predicted_classes",
    "read_outlines",
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
