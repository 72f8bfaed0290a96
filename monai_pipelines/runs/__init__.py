"""What a run needs before it starts, and what it leaves so that it can be run again and used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_pipelines.runs.command_line import start_run
    from monai_pipelines.runs.folder import RunFolder, claim_folder
    from monai_pipelines.runs.inference import inference_config
    from monai_pipelines.runs.record import record_run
    from monai_pipelines.runs.trained import Trained

__all__ = ["RunFolder", "Trained", "claim_folder", "inference_config", "record_run", "start_run"]
_MODULES = dict(zip(__all__, ("folder", "trained", "folder", "inference", "record", "command_line"), strict=True))


def __getattr__(name: str) -> Any:  # PEP 562: a report is written without torch
    if name in _MODULES:
        return getattr(import_module(f"monai_pipelines.runs.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
