"""Synthetic patients with known truth: what the demo trains on and the tests measure with."""

from monai_pipelines.phantoms.anatomy import Lesion
from monai_pipelines.phantoms.cohort import write_lung_ct_cohort
from monai_pipelines.phantoms.dicom import write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS, Scanner
from monai_pipelines.phantoms.thorax import ThoraxScan, thorax_phantom

__all__ = [
    "SCANNERS",
    "Lesion",
    "Scanner",
    "ThoraxScan",
    "thorax_phantom",
    "write_dicom_series",
    "write_lung_ct_cohort",
]
