"""Block averages and separable anti-aliased resampling, fast on large int16 volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch.nn.functional import avg_pool3d

CHUNK_VOXELS = 2**20  # converted to float at a time: cache-friendly, and bounds the memory
_COMPILED = (torch.int16, torch.uint8, torch.float32)


def placed(values: torch.Tensor, affine: NDArray[np.float64] | torch.Tensor, meta: Mapping[Any, Any]) -> MetaTensor:
    """A `MetaTensor` (C, X, Y, Z) at ``affine`` with another volume's ``meta``."""
    others = {k: v for k, v in meta.items() if k != "affine"}
    return MetaTensor(values, affine=torch.as_tensor(affine, dtype=torch.float64), meta=others)


def memory_order(volume: torch.Tensor) -> list[int]:
    """The axes from slowest to fastest in memory."""
    return sorted(range(volume.ndim), key=volume.stride, reverse=True)


def filled_box(mask: NDArray[Any]) -> tuple[slice, ...]:
    """The smallest box around all that is not 0; as SciPy's ``find_objects``, but from one look along each axis.

    Raises:
        ValueError: nothing but 0.
    """
    filled = mask if mask.dtype == bool else mask != 0
    axes = range(mask.ndim)
    used = [np.flatnonzero(filled.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    if not len(used[0]):
        raise ValueError("the mask is empty")
    return tuple(slice(int(along[0]), int(along[-1]) + 1) for along in used)


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
    compiled = kernels_for(volume)
    if compiled:
        shape = [n // block for n, block in zip(ordered.shape, blocks, strict=True)]
        mean, values = torch.empty(shape), np.ascontiguousarray(ordered.numpy())
        in_threads(lambda first, last: compiled.block_mean(values, mean.numpy(), tuple(blocks), first, last), shape[0])
    else:
        rows = max(1, CHUNK_VOXELS // max(1, ordered[0].numel()) // blocks[0]) * blocks[0]
        used = ordered.shape[0] // blocks[0] * blocks[0]
        parts = [avg_pool3d(ordered[i : min(i + rows, used)].float()[None], blocks)[0] for i in range(0, used, rows)]
        mean = torch.cat(parts)
    return mean.permute(*np.argsort(order).tolist())


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
    in_order = [weights[axis] for axis in order]
    limits = fill, -np.inf if at_least is None else at_least
    compiled = kernels_for(volume)
    if compiled:
        out = _resample_compiled(compiled, volume.permute(order), in_order, *limits)
    else:
        out = _resample_torch(volume.permute(order), in_order, *limits)
    return out.add_(fill).permute(*np.argsort(order).tolist())


def _resample_torch(
    volume: torch.Tensor, weights: Sequence[NDArray[np.float32]], fill: float, at_least: float
) -> torch.Tensor:
    used = [_span(along) for along in weights]
    view = volume[tuple(used)]
    first, second, third = (
        torch.from_numpy(np.ascontiguousarray(along[:, span])).to(volume.device)
        for along, span in zip(weights, used, strict=True)
    )
    planes = torch.empty(view.shape[0], len(second), len(third), device=volume.device)
    rows = max(1, CHUNK_VOXELS // max(1, view[0].numel()))
    for i in range(0, view.shape[0], rows):
        part = view[i : i + rows].float().clamp_(min=at_least).sub_(fill)
        planes[i : i + rows] = second @ (part @ third.T)
    return (first @ planes.flatten(1)).unflatten(1, planes.shape[1:])


def _resample_compiled(
    kernels: ModuleType, volume: torch.Tensor, weights: Sequence[NDArray[np.float32]], fill: float, at_least: float
) -> torch.Tensor:
    values = np.ascontiguousarray(volume.numpy())
    along_a, along_b, along_c = (np.ascontiguousarray(along) for along in weights)
    out = np.zeros((len(along_a), len(along_c), len(along_b)), np.float32)
    limits = np.float32(fill), np.float32(at_least)
    reach_a, reach_c = _reach(along_a), _reach(along_c)

    def part(first: int, last: int) -> None:
        some = along_b[first:last]
        reach = reach_a, _reach(some), reach_c
        kernels.resample(values, (along_a, some, along_c), reach, out[:, :, first:last], *limits)

    if all(along.any() for along in weights):
        in_threads(part, len(along_b))
    return torch.from_numpy(out).mT


def kernels_for(volume: torch.Tensor) -> ModuleType | None:
    """The compiled kernels, if there are any for a volume: on the CPU, without a gradient, with numba."""
    if volume.device.type != "cpu" or volume.dtype not in _COMPILED or volume.requires_grad:
        return None
    return _kernels()


@cache
def _kernels() -> ModuleType | None:
    try:
        from monai_pipelines.transforms.ct import kernels
    except ImportError:
        return None
    return kernels


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Do ``work(first, last)`` for parts of a range, beside each other in as many threads as torch has."""
    num = max(1, min(torch.get_num_threads(), count))
    ends = [count * i // num for i in range(num + 1)]
    with ThreadPoolExecutor(num) as pool:
        list(pool.map(work, ends[:-1], ends[1:]))


def _span(weights: NDArray[np.float32]) -> slice:
    """The input voxels that any output sample uses."""
    used = np.nonzero(weights.any(axis=0))[0]
    return slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)


def _reach(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each input voxel (num_in, 2) the first output sample that it has a part in, and the one after the last."""
    used = weights != 0
    stop = np.where(used.any(axis=0), len(used) - used[::-1].argmax(axis=0), 0)
    return np.stack([used.argmax(axis=0), stop], axis=1)
