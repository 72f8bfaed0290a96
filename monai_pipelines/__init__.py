"""MONAI pipelines that classify medical images, and the parts they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Chain", "load_chain"]

if TYPE_CHECKING:
    from monai_pipelines.chains import Chain, load_chain


def __getattr__(name: str) -> Any:  # PEP 562: importing the package does not import MONAI (3.5 s)
    if name in __all__:
        from monai_pipelines import chains

        return getattr(chains, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
