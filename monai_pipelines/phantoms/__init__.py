"""Synthetic patients with known truth, for demos and tests."""

from monai_pipelines.phantoms.anatomy import Lesion
from monai_pipelines.phantoms.cohort import write_chest_xray_cohort, write_fundus_cohort, write_lung_ct_cohort
from monai_pipelines.phantoms.dicom import write_dicom_series
from monai_pipelines.phantoms.histology import histology_tile, write_histology_tiles, write_pathmnist
from monai_pipelines.phantoms.retina import FundusPhoto, fundus_photo
from monai_pipelines.phantoms.scanners import SCANNERS, Scanner
from monai_pipelines.phantoms.slide_cohort import write_slides
from monai_pipelines.phantoms.slide_file import write_pyramid
from monai_pipelines.phantoms.thorax import ThoraxScan, thorax_phantom
from monai_pipelines.phantoms.xray import ChestXray, chest_xray

__all__ = [
    "SCANNERS",
    "ChestXray",
    "FundusPhoto",
    "Lesion",
    "Scanner",
    "ThoraxScan",
    "chest_xray",
    "fundus_photo",
    "histology_tile",
    "thorax_phantom",
    "write_chest_xray_cohort",
    "write_dicom_series",
    "write_fundus_cohort",
    "write_histology_tiles",
    "write_lung_ct_cohort",
    "write_pathmnist",
    "write_pyramid",
    "write_slides",
]
