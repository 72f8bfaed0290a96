"""Versions of the libraries that results depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from monai_pipelines import __version__

PACKAGES = (
    *("monai", "torch", "pytorch-ignite", "numpy", "scipy", "scikit-learn"),
    *(
        "scikit-image",
        "SimpleITK",
        "pydicom",
        "nibabel",
        "openslide-python",
        "connected-components-3d",
        "fill-voids",
        "numba",
    ),
)


def library_versions(*packages: str) -> dict[str, str]:
    """Version of Python, of this package and of others, by name; one that is not installed is left out.

    Args:
        packages: names of distributions; none: all that results may depend on.

    Example:
        >>> list(library_versions("monai"))
        ['python', 'monai_pipelines', 'monai']
    """
    versions = {"python": platform.python_version(), "monai_pipelines": __version__}
    for package in packages or PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
