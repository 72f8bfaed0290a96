"""Data sources: tables of scans, splits by patient, prepared datasets, batches."""

from monai_pipelines.data.arrays import ArrayDataset, collate_batches, read_arrays
from monai_pipelines.data.bags import FeatureBags, FeatureSplits, PrepareBags, pad_bags
from monai_pipelines.data.batches import PrepareImages, make_loader
from monai_pipelines.data.feature_files import FeatureBag, read_features, write_features
from monai_pipelines.data.features import extract_features
from monai_pipelines.data.folder import find_images, list_images, read_images
from monai_pipelines.data.medmnist import MedMNIST, MedMNISTInfo, medmnist_info, read_medmnist
from monai_pipelines.data.overlap import audit_splits, patients_known
from monai_pipelines.data.prepared import PreparedDataset, PreparedSplits
from monai_pipelines.data.slides import feature_file, find_slides, read_slides
from monai_pipelines.data.split import Cohort, Listing
from monai_pipelines.data.table import find_scans, read_cohort
from monai_pipelines.data.tile_bags import TileBags, TileSplits

__all__ = [
    "ArrayDataset",
    "Cohort",
    "FeatureBag",
    "FeatureBags",
    "FeatureSplits",
    "Listing",
    "MedMNIST",
    "MedMNISTInfo",
    "PrepareBags",
    "PrepareImages",
    "PreparedDataset",
    "PreparedSplits",
    "TileBags",
    "TileSplits",
    "audit_splits",
    "collate_batches",
    "extract_features",
    "feature_file",
    "find_images",
    "find_scans",
    "find_slides",
    "list_images",
    "make_loader",
    "medmnist_info",
    "pad_bags",
    "patients_known",
    "read_arrays",
    "read_cohort",
    "read_features",
    "read_images",
    "read_medmnist",
    "read_slides",
    "write_features",
]
