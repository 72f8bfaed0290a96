"""Data sources: tables of scans, splits by patient, prepared datasets, batches."""

from monai_pipelines.data.arrays import ArrayDataset, collate_batches, read_arrays
from monai_pipelines.data.batches import PrepareImages, make_loader
from monai_pipelines.data.folder import find_images, list_images, read_images
from monai_pipelines.data.medmnist import MedMNIST, MedMNISTInfo, medmnist_info, read_medmnist
from monai_pipelines.data.prepared import PreparedDataset, PreparedSplits
from monai_pipelines.data.split import Cohort, Listing
from monai_pipelines.data.table import find_scans, read_cohort

__all__ = [
    "ArrayDataset",
    "Cohort",
    "Listing",
    "MedMNIST",
    "MedMNISTInfo",
    "PrepareImages",
    "PreparedDataset",
    "PreparedSplits",
    "collate_batches",
    "find_images",
    "find_scans",
    "list_images",
    "make_loader",
    "medmnist_info",
    "read_arrays",
    "read_cohort",
    "read_images",
    "read_medmnist",
]
