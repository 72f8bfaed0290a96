"""Detectors of lesions in 2D and 3D images."""

from monai_pipelines.detection.baseline import ThresholdBaseline
from monai_pipelines.detection.boxes import Found, Target
from monai_pipelines.detection.detector import Detector
from monai_pipelines.detection.faster_rcnn import FasterRCNN
from monai_pipelines.detection.grid import GridDetector
from monai_pipelines.detection.inferer import DetectionEnsembleInferer, DetectionInferer, fuse
from monai_pipelines.detection.losses import SumOfLosses
from monai_pipelines.detection.pyramid import FeaturePyramid
from monai_pipelines.detection.retinanet import RetinaNet
from monai_pipelines.detection.roi_align import roi_align

__all__ = [
    "DetectionEnsembleInferer",
    "DetectionInferer",
    "Detector",
    "FasterRCNN",
    "FeaturePyramid",
    "Found",
    "GridDetector",
    "RetinaNet",
    "SumOfLosses",
    "Target",
    "ThresholdBaseline",
    "fuse",
    "roi_align",
]
