"""The audit of a cohort before training."""

from monai_pipelines.audit.findings import Audit, Duplicates, audit_cohort
from monai_pipelines.audit.kinds import Kind, kind_named, list_source

__all__ = ["Audit", "Duplicates", "Kind", "audit_cohort", "kind_named", "list_source"]
