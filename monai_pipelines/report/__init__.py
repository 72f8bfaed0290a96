"""What a run leaves to be looked at: predictions, figures and one page."""

from monai_pipelines.report.detection_page import DetectionEvaluation
from monai_pipelines.report.found_boxes import write_detections, write_geojson, write_label_map
from monai_pipelines.report.page import write_report
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.rebuild import rebuild_report
from monai_pipelines.report.saved import Evaluation

__all__ = [
    "DetectionEvaluation",
    "Evaluation",
    "rebuild_report",
    "write_detections",
    "write_geojson",
    "write_label_map",
    "write_predictions",
    "write_report",
]
