"""The way back: fixed steps that move pixels record the grid they start from, and results return to it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from monai.utils import TraceKeys
from torch import Tensor

from monai_pipelines.transforms.keyed import EachKeyd

OFF_AXIS = 0.5  # voxels: the largest error, anywhere in the volume, of taking nearly parallel axes for parallel ones


class FixedSpatial(InvertibleTransform):
    """Base of the fixed steps that move pixels.

    A result has the trace that MONAI's `Invertd` follows (``applied_operations``). It holds the grid of the input, not
    the arguments of the step, so that any object of the class can invert it, also in another process: voxel v of the
    input shows the result at ``result_affine^-1 input_affine v``.
    """

    def get_transform_info(self) -> dict[str, Any]:
        return {**super().get_transform_info(), TraceKeys.ID: TraceKeys.NONE}

    def _traced(self, out: MetaTensor, source: MetaTensor) -> MetaTensor:
        """``out``, made of ``source``, with the trace."""
        grid = {"affine": source.affine.to("cpu", torch.float64), "size": list(out.shape[1:]), "mode": "bilinear"}
        out.applied_operations = list(source.applied_operations)
        traced: MetaTensor = self.push_transform(out, orig_size=tuple(source.shape[1:]), extra_info=grid)
        return traced

    def inverse(self, data: Any) -> MetaTensor:
        """A mask or map on the grid of the step's result, brought to the grid of its input.

        Args:
            data: (C, *size) with the trace and affine of the result. Floating-point values are interpolated linearly,
                or, if the trace has the mode "nearest", like integers and booleans by the nearest neighbor.

        Returns:
            (C, *source_size) of the same dtype; 0 where the step cut off.

        Raises:
            ValueError: without the trace of this step, or of another size than its result.
        """
        name = type(self).__name__
        operations = list(data.applied_operations) if isinstance(data, MetaTensor) else []
        if not operations or operations[-1][TraceKeys.CLASS_NAME] != name:
            last = f"that of {operations[-1][TraceKeys.CLASS_NAME]}" if operations else "none"
            raise ValueError(
                f"{name}: nothing to invert: wanted the trace of the image that it made, got {last}; give a result the "
                "image's trace with MetaTensor(result).copy_meta_from(image)"
            )
        record = operations.pop()
        grid = record[TraceKeys.EXTRA_INFO]
        if list(data.shape[1:]) != list(grid["size"]):
            raise ValueError(
                f"{name}: wanted a mask or map of the size that it made, (C, {', '.join(map(str, grid['size']))}), got "
                f"{tuple(data.shape)}; resize it first"
            )
        nearest = grid["mode"] == "nearest" or not data.is_floating_point()
        affine = torch.as_tensor(grid["affine"], dtype=torch.float64)
        to_data = torch.linalg.inv(data.affine.to("cpu", torch.float64)) @ affine
        out = MetaTensor(resample_axes(data.as_tensor(), to_data, record[TraceKeys.ORIG_SIZE], nearest))
        out.copy_meta_from(data)
        out.affine, out.applied_operations = affine, operations
        return out


class FixedSpatiald(EachKeyd, InvertibleTransform):
    """Base of their dictionary twins."""

    step: FixedSpatial

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.step.inverse(d[key])
        return d


class NoWayBack(InvertibleTransform):
    """Base of steps whose results cannot be brought back, so that MONAI's `Invertd` does not pass over them."""

    def inverse(self, data: Any) -> Any:
        """Not possible.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{type(self).__name__} has no inverse; bring results back through a chain without it, on images that were "
            "prepared without it"
        )


def resample_axes(values: Tensor, to_values: Tensor, size: Sequence[int], nearest: bool) -> Tensor:
    """Resample an image or volume on a grid with the same axes, in any order and direction.

    Args:
        values: (C, *source_size), 2 or 3 axes.
        to_values: (4, 4), from voxel of the result to voxel of ``values``; in 2D the first two axes count.
        size: of the result.
        nearest: take the nearest voxel; else interpolate linearly.

    Returns:
        (C, *size) of the same dtype; 0 beyond the outer voxels' edges.

    Raises:
        ValueError: axes that are not parallel.
    """
    dims = len(size)
    matrix = to_values[:dims, :dims]
    axes = matrix.abs().argmax(dim=1).tolist()
    along = torch.zeros_like(matrix)
    along[range(dims), axes] = matrix[range(dims), axes]
    error = (matrix - along).abs() @ torch.tensor(size, dtype=matrix.dtype)
    if sorted(axes) != list(range(dims)) or float(error.max()) > OFF_AXIS:
        raise ValueError("the two grids have no common axes: one is rotated; resample it to the other's grid first")
    out = values
    for axis, target in enumerate(axes):
        at = to_values[axis, 3] + matrix[axis, target] * torch.arange(size[target], dtype=matrix.dtype)
        inside = ((at >= -0.5) & (at <= values.shape[axis + 1] - 0.5)).to(values.device)
        at = at.clamp(0, values.shape[axis + 1] - 1)
        low = (at + 0.5 if nearest else at).floor().long()
        picked = out.index_select(axis + 1, low.clamp(max=values.shape[axis + 1] - 1).to(values.device))
        shape = [-1 if a == axis else 1 for a in range(-1, dims)]
        if not nearest:
            above = out.index_select(axis + 1, (low + 1).clamp(max=values.shape[axis + 1] - 1).to(values.device))
            picked = torch.lerp(picked, above, (at - low).to(values).reshape(shape))
        out = picked * inside.reshape(shape)
    return out.permute(0, *(1 + axes.index(axis) for axis in range(dims)))
