"""Data sources: tables and folders of images, splits by patient, prepared datasets, batches."""

from monai_pipelines.data.arrays import ArrayDataset, collate_batches, read_arrays
from monai_pipelines.data.box_dataset import DetectionDataset, DetectionSplits, LesionPatches, PrepareDetection
from monai_pipelines.data.boxes import read_detection_cohort, read_image_boxes
from monai_pipelines.data.folder import find_images, list_images, read_images
from monai_pipelines.data.loaders import PrepareImages, make_loader
from monai_pipelines.data.medmnist import MedMNIST, MedMNISTInfo, medmnist_info, read_medmnist
from monai_pipelines.data.overlap import audit_splits, patients_known
from monai_pipelines.data.prepared import PreparedDataset, PreparedSplits
from monai_pipelines.data.slide_table import feature_file, find_slides, read_slides
from monai_pipelines.data.split import Cohort, Listing
from monai_pipelines.data.table import find_scans, read_cohort

__all__ = [
    "ArrayDataset",
    "Cohort",
    "DetectionDataset",
    "DetectionSplits",
    "LesionPatches",
    "Listing",
    "MedMNIST",
    "MedMNISTInfo",
    "PrepareDetection",
    "PrepareImages",
    "PreparedDataset",
    "PreparedSplits",
    "audit_splits",
    "collate_batches",
    "feature_file",
    "find_images",
    "find_scans",
    "find_slides",
    "list_images",
    "make_loader",
    "medmnist_info",
    "patients_known",
    "read_arrays",
    "read_cohort",
    "read_detection_cohort",
    "read_image_boxes",
    "read_images",
    "read_medmnist",
    "read_slides",
]
