"""What a run leaves to be looked at: predictions, figures and one page."""

from monai_pipelines.report.curves import (
    decision_figure,
    pr_figure,
    reliability_figure,
    risk_coverage_figure,
    roc_figure,
    subgroup_figure,
)
from monai_pipelines.report.embedding import embed, embedding_figure
from monai_pipelines.report.figures import class_figure, confusion_figure, history_figure
from monai_pipelines.report.page import rebuild_report, write_report
from monai_pipelines.report.pictures import images_figure, slices_figure
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.saved import Evaluation

__all__ = [
    "Evaluation",
    "class_figure",
    "confusion_figure",
    "decision_figure",
    "embed",
    "embedding_figure",
    "history_figure",
    "images_figure",
    "pr_figure",
    "rebuild_report",
    "reliability_figure",
    "risk_coverage_figure",
    "roc_figure",
    "slices_figure",
    "subgroup_figure",
    "write_predictions",
    "write_report",
]
