"""Data sources: tables of scans, splits by patient, prepared datasets, batches."""

from monai_pipelines.data.batches import PrepareAugmented
from monai_pipelines.data.prepared import PreparedDataset
from monai_pipelines.data.table import Cohort, find_scans, read_cohort

__all__ = ["Cohort", "PrepareAugmented", "PreparedDataset", "find_scans", "read_cohort"]
