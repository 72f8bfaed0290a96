"""Block averages and separable anti-aliased resampling, fast on large int16 volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch.nn.functional import avg_pool3d

CHUNK_VOXELS = 2**22  # converted to float at a time: cache-friendly, and bounds the memory


def placed(values: torch.Tensor, affine: NDArray[np.float64] | torch.Tensor, meta: Mapping[Any, Any]) -> MetaTensor:
    """A `MetaTensor` (C, X, Y, Z) at ``affine`` with another volume's ``meta``."""
    others = {k: v for k, v in meta.items() if k != "affine"}
    return MetaTensor(values, affine=torch.as_tensor(affine, dtype=torch.float64), meta=others)


def memory_order(volume: torch.Tensor) -> list[int]:
    """The axes from slowest to fastest in memory."""
    return sorted(range(volume.ndim), key=volume.stride, reverse=True)


def block_mean(volume: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Mean over blocks of ``factors`` voxels; incomplete blocks at the end of an axis are dropped.

    Args:
        volume: (X, Y, Z), any dtype and memory order.
        factors: block size for each axis.

    Returns:
        (X // fx, Y // fy, Z // fz) float32.

    Example:
        >>> block_mean(torch.tensor([[[0, 2], [4, 6]]]), (1, 2, 2))
        tensor([[[3.]]])
    """
    order = memory_order(volume)
    ordered, blocks = volume.permute(order), [factors[axis] for axis in order]
    rows = max(1, CHUNK_VOXELS // max(1, ordered[0].numel()) // blocks[0]) * blocks[0]
    used = ordered.shape[0] // blocks[0] * blocks[0]
    parts = [avg_pool3d(ordered[i : min(i + rows, used)].float()[None], blocks)[0] for i in range(0, used, rows)]
    return torch.cat(parts).permute(*np.argsort(order).tolist())


def cubic_weights(num_in: int, start: float, step: float, num_out: int) -> NDArray[np.float32]:
    """Weights that resample one axis: cubic convolution, widened by ``step`` if it shrinks (anti-aliasing).

    Output sample i lies at input voxel ``start + i * step``. Rows sum to 1; those of samples outside the axis (beyond
    half a voxel) are zero.

    Args:
        num_in: input voxels.
        start: position of the first output sample, in input voxels.
        step: distance between output samples, in input voxels.
        num_out: output samples.

    Returns:
        (num_out, num_in) float32.

    Reference: Keys, IEEE TASSP 29 (1981) 1153-1160, a = -0.5.
    """
    centers = start + step * np.arange(num_out)
    distance = np.abs(centers[:, None] - np.arange(num_in)) / max(1.0, step)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    inside = (centers >= -0.5) & (centers <= num_in - 0.5)
    total = weights.sum(axis=1, keepdims=True)
    return np.where(inside[:, None], weights / np.where(inside[:, None], total, 1.0), 0.0).astype(np.float32)


def resample_separable(
    volume: torch.Tensor, weights: Sequence[NDArray[np.float32]], fill: float = 0.0, at_least: float | None = None
) -> torch.Tensor:
    """Apply one weight matrix to each axis in a single pass over the volume.

    Args:
        volume: (X, Y, Z), any dtype and memory order.
        weights: for each axis (num_out, num_in); zero rows give ``fill``.
        fill: value outside the volume.
        at_least: lower bound of the input; padding below air would cause ringing.

    Returns:
        (num_out_x, num_out_y, num_out_z) float32.
    """
    order = memory_order(volume)
    used = [_span(weights[axis]) for axis in order]
    view = volume.permute(order)[tuple(used)]
    first, second, third = (
        torch.from_numpy(np.ascontiguousarray(weights[axis][:, span])) for axis, span in zip(order, used, strict=True)
    )
    planes = torch.empty(view.shape[0], len(second), len(third))
    rows = max(1, CHUNK_VOXELS // max(1, view[0].numel()))
    for i in range(0, view.shape[0], rows):
        part = view[i : i + rows].float() - fill
        if at_least is not None:
            part.clamp_(min=at_least - fill)
        planes[i : i + rows] = second @ (part @ third.T)
    out = (first @ planes.flatten(1)).unflatten(1, planes.shape[1:]).add_(fill)
    return out.permute(*np.argsort(order).tolist())


def _span(weights: NDArray[np.float32]) -> slice:
    """The input voxels that any output sample uses."""
    used = np.nonzero(weights.any(axis=0))[0]
    return slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
