"""Features of boxes: RoIAlign for 2D and 3D maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from monai_pipelines.detection.boxes import box_sizes, side_lengths


def roi_align(features: Tensor, boxes: Sequence[Tensor], stride: int, cells: int, samples: int = 2) -> Tensor:
    """Features of boxes on a regular grid, by linear interpolation.

    A box is divided into cells; each is the mean of ``samples`` evenly spaced points along every axis. Points outside
    the map take its border.

    Args:
        features: (B, C, *map), d = 2 or 3 axes.
        boxes: for each image (N_b, 2 d), in pixels of the image.
        stride: pixels along a cell of the map.
        cells: along each axis of a box, P.
        samples: points along each axis of a cell.

    Returns:
        (sum of N_b, C, P, P[, P]) float32: bf16 is too coarse for positions on a large map.

    Example:
        >>> features = torch.arange(4.0).expand(1, 1, 4, 4)
        >>> roi_align(features, [torch.tensor([[0.0, 0, 8, 8]])], stride=2, cells=2)
        tensor([[[[0.5000, 2.5000],
                  [0.5000, 2.5000]]]])

    Reference: He et al., Mask R-CNN, ICCV 2017.
    """
    dims, side = features.ndim - 2, cells * samples
    steps = (torch.arange(side, device=features.device, dtype=torch.float32) + 0.5) / side
    extent = side_lengths(features.shape[2:], features.device) * stride
    parts = []
    for one, these in zip(features, boxes, strict=True):
        lows, sides = these[:, :dims], box_sizes(these)
        axes = lows[..., None] + sides[..., None] * steps  # (N, d, side)
        unit = 2 * axes / extent[:, None] - 1
        points = [
            unit[:, k].reshape(-1, *[side if axis == k else 1 for axis in range(dims)]).expand(-1, *[side] * dims)
            for k in reversed(range(dims))
        ]
        grid = torch.stack(points, dim=-1).flatten(0, 1)[None]  # (1, N * side, side[, side], d)
        values = grid_sample(one[None].float(), grid, padding_mode="border", align_corners=False)[0]
        split = values.unflatten(1, (-1, side)).transpose(0, 1)  # (N, C, side, side[, side])
        for axis in range(2, 2 + dims):
            split = split.unflatten(axis, (cells, samples)).mean(axis + 1)
        parts.append(split)
    return torch.cat(parts)
