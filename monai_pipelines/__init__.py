"""MONAI pipelines that classify medical images and detect lesions in them, and the parts they are made of."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Chain", "load_chain", "load_run"]

if TYPE_CHECKING:
    from monai_pipelines.chains import Chain, load_chain
    from monai_pipelines.engines import load_run


def __getattr__(name: str) -> Any:  # PEP 562: importing the package does not import MONAI (3.5 s)
    if name in __all__:
        module = "engines" if name == "load_run" else "chains"
        return getattr(import_module(f"monai_pipelines.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
