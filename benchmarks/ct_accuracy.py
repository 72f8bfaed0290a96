"""How exact a prepared CT is: its voxels against ideal resampling, its lung mask against masks at full resolution.

Every way to shrink a noisy scan without aliasing is a low pass, and they differ by some thousandths of the window. So
the error is given against three that are computed here in float64: the cubic kernel of `ResampleCT` (what rounding and
speed cost), the mean over each voxel's volume, and the sinc (15 lobes) that cuts at the grid's Nyquist frequency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from monai_pipelines.transforms import SegmentLungs

REACH = 8  # output voxels, of the widest kernel


class Grid(NamedTuple):
    """Output voxel i lies at the scan's voxel ``start + i * step``."""

    start: np.ndarray
    step: np.ndarray
    size: tuple[int, ...]


def grid_of(volume: MetaTensor, scan: MetaTensor) -> Grid:
    """The grid of a volume in a scan with the same axes."""
    to_scan = np.linalg.inv(scan.affine.numpy()) @ volume.affine.numpy()
    return Grid(to_scan[:3, 3], np.diag(to_scan)[:3], tuple(volume.shape[-3:]))


def cubic(distance: np.ndarray, step: float) -> np.ndarray:
    """Keys's cubic convolution, widened by the step."""
    t = abs(distance / step)
    return np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))


def mean(distance: np.ndarray, step: float) -> np.ndarray:
    """Share of each input voxel in the output voxel."""
    return np.clip(np.minimum(distance + 0.5, step / 2) - np.maximum(distance - 0.5, -step / 2), 0, None)


def sinc(distance: np.ndarray, step: float) -> np.ndarray:
    """Ideal low pass in a Lanczos window."""
    t = distance / step
    return np.where(abs(t) < REACH, np.sinc(t) * np.sinc(t / REACH), 0)


IDEALS = {"the same kernel": cubic, "voxel means": mean, "sinc": sinc}


def resample(volume: np.ndarray, grid: Grid, kernel: Callable[[np.ndarray, float], np.ndarray]) -> np.ndarray:
    """Separable resampling in float64."""
    for axis, (start, step, size) in enumerate(zip(*grid, strict=True)):
        low, high = int(max(0, start - REACH * step)), int(start + step * (size + REACH))
        part = np.moveaxis(volume, axis, 0)[low:high]
        positions = start + step * np.arange(size)[:, None]
        weights = kernel(np.arange(low, low + len(part)) - positions, step)
        weights /= weights.sum(axis=1, keepdims=True)
        volume = np.moveaxis(np.tensordot(weights, part.astype(float), 1), 0, axis)
    return volume


def errors_in_lungs(
    output: np.ndarray, hu: np.ndarray, lungs: np.ndarray, grid: Grid, window: Callable[[np.ndarray], np.ndarray]
) -> str:
    """Mean absolute difference from each ideal in the voxels that lie in the lungs entirely."""
    inside = resample(lungs, grid, mean) > 0.999
    errors = {name: abs(window(resample(hu, grid, kernel)) - output)[inside].mean() for name, kernel in IDEALS.items()}
    return "error in the lungs " + ", ".join(f"{error:.4f} ({name})" for name, error in errors.items())


def dice(mask: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks."""
    return float(2 * (mask & other).sum() / (mask.sum() + other.sum()))


def mask_agreement(mask: np.ndarray, scan: MetaTensor, recipe: np.ndarray, grid: Grid) -> str:
    """Dice of a chain's mask with the same algorithm and with the recipe's at full resolution, brought to its grid."""
    voxels = nib.affines.voxel_sizes(scan.affine.numpy())
    full = SegmentLungs(grid_mm=float(voxels.min()))(scan)[0].numpy()
    same, other = (dice(mask, resample(values, grid, mean) >= 0.5) for values in (full, recipe))
    return f"Dice of the mask {same:.3f} with its algorithm at full resolution, {other:.3f} with the recipe's"
