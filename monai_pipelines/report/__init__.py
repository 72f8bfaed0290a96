"""What a run leaves to be looked at: predictions, figures and one page."""

from monai_pipelines.report.figures import confusion_figure, history_figure, roc_figure, slices_figure
from monai_pipelines.report.page import read_history, write_predictions, write_report

__all__ = [
    "confusion_figure",
    "history_figure",
    "read_history",
    "roc_figure",
    "slices_figure",
    "write_predictions",
    "write_report",
]
