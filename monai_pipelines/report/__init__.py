"""What a run leaves to be looked at: predictions, figures and one page."""

from monai_pipelines.report.attention import attention_figure, tiles_figure, write_geojson
from monai_pipelines.report.embedding import embed, embedding_figure
from monai_pipelines.report.figures import class_figure, confusion_figure, history_figure, roc_figure
from monai_pipelines.report.images import images_figure, slices_figure
from monai_pipelines.report.page import read_history, write_report
from monai_pipelines.report.predictions import write_predictions

__all__ = [
    "attention_figure",
    "class_figure",
    "confusion_figure",
    "embed",
    "embedding_figure",
    "history_figure",
    "images_figure",
    "read_history",
    "roc_figure",
    "slices_figure",
    "tiles_figure",
    "write_geojson",
    "write_predictions",
    "write_report",
]
