"""The chest CT that benchmarks read."""

from __future__ import annotations

from os import PathLike

import numpy as np

from monai_pipelines.phantoms import thorax_phantom, write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS


def write_chest_series(folder: str | PathLike[str], matrix: int, slices: int) -> np.ndarray:
    """Write a phantom as a DICOM series, ``slices`` of 1.25 mm around its middle; returns its HU (X, Y, Z)."""
    scan = thorax_phantom(0, diseased=True, matrix=matrix, slice_mm=1.25, lesion_mm=(20, 40), scanner=SCANNERS[0])
    hu = scan.hu[:, :, (scan.hu.shape[2] - slices) // 2 :][:, :, :slices]
    write_dicom_series(folder, hu, scan.affine)
    return hu
