"""A CT volume on its way from disk: voxels, their place, and what had to be repaired."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_pipelines.errors import ScanError

AIR_HU = -1024
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.01, 50.0
_SHEAR = 0.01  # sideways steps of this share of a slice step are a tilt


@dataclass
class Volume:
    """Voxels (X, Y, Z) int16 in HU, voxel -> RAS mm (4, 4), notes about choices and repairs, and the scanner."""

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]
    notes: list[str] = field(default_factory=list)
    scanner: str = ""


def checked(path: Path, volume: Volume, tilt: Literal["error", "correct"]) -> Volume:
    """A volume with a usable affine, its axes at right angles.

    Raises:
        ScanError: an affine that is not finite, voxels of an implausible size, axes not at right angles.
    """
    matrix = volume.affine[:3, :3]
    sizes = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(volume.affine).all():
        raise ScanError(path, "NaN or infinite numbers in its affine; set its sform or direction")
    if not ((sizes >= MIN_VOXEL_MM) & (sizes <= MAX_VOXEL_MM)).all():
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise ScanError(
            path, f"voxels of {shown} mm: wanted {MIN_VOXEL_MM} to {MAX_VOXEL_MM:g} mm; correct its affine or unit"
        )
    axes = matrix / sizes
    cosines = np.abs(axes.T @ axes - np.eye(3))
    if cosines.max() <= _SHEAR:
        return volume
    if cosines[0, 1] > _SHEAR:
        raise ScanError(path, "its rows and columns are not at right angles; convert the original again")
    degrees = np.degrees(np.arcsin(min(1.0, np.hypot(cosines[0, 2], cosines[1, 2]))))
    if tilt == "error":
        raise ScanError(path, f"gantry tilt of {degrees:.1f} degrees; read it with tilt='correct'")
    return _straightened(volume, f"gantry tilt of {degrees:.1f} degrees corrected")


def _straightened(volume: Volume, note: str) -> Volume:
    """Slices moved within their planes, linearly interpolated, until they lie above each other; outside is air."""
    matrix, num = volume.affine[:3, :3], volume.hu.shape[2]
    normal = np.cross(matrix[:, 0], matrix[:, 1])
    normal /= np.linalg.norm(normal)
    sideways = matrix[:, 2] - (matrix[:, 2] @ normal) * normal
    per_slice = np.linalg.lstsq(matrix[:, :2], sideways, rcond=None)[0]
    middle = (num - 1) / 2
    planes = [
        ndimage.shift(volume.hu[..., k].astype(np.float32), (k - middle) * per_slice, order=1, cval=AIR_HU)
        for k in range(num)
    ]
    affine = volume.affine.copy()
    affine[:3, 2] -= sideways
    affine[:3, 3] += middle * sideways
    return replace(volume, hu=to_int16(np.stack(planes, axis=-1)), affine=affine, notes=[*volume.notes, note])


def evenly_spaced(hu: NDArray[np.int16], at_mm: NDArray[np.float64], step_mm: float) -> NDArray[np.int16]:
    """Slices at rising positions -> at equal steps from the first one on, linearly interpolated."""
    wanted = np.arange(at_mm[0], at_mm[-1] + 0.01 * step_mm, step_mm)
    above = np.clip(np.searchsorted(at_mm, wanted, side="right"), 1, len(at_mm) - 1)
    weight = np.clip((wanted - at_mm[above - 1]) / (at_mm[above] - at_mm[above - 1]), 0, 1).astype(np.float32)
    return to_int16(hu[..., above - 1] * (1 - weight) + hu[..., above] * weight)


def to_int16(values: NDArray[Any]) -> NDArray[np.int16]:
    """Round to int16; values outside its range (padding, metal) are clipped."""
    if values.dtype == np.int16:
        return values
    return np.clip(np.rint(values), -(2**15), 2**15 - 1).astype(np.int16)
