"""Boxes as all detectors take and give them.

Boxes are (N, 2 d) float tensors for images with d = 2 or 3 spatial axes: all minima, then all maxima, in the order of
the tensor's axes. Coordinates are edges: pixel k covers k to k + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.data.box_utils import box_iou, clip_boxes_to_image
from torch import Tensor

MAX_COMPARED = 4000


class Target(NamedTuple):
    """What is to be found in an image."""

    boxes: Tensor
    """(N, 2 d)"""
    labels: Tensor
    """(N,) class indices"""
    ignore: Tensor
    """(N,) bool: findings that count neither way"""


class Found(NamedTuple):
    """What was found in an image, highest score first."""

    boxes: Tensor
    """(N, 2 d)"""
    scores: Tensor
    """(N,) in 0..1"""
    labels: Tensor
    """(N,) class indices"""


def check_target(target: Target, num_classes: int, spatial_dims: int) -> None:
    """Raise a ValueError if a target cannot be learned."""
    boxes, labels = target.boxes, target.labels
    if boxes.ndim != 2 or boxes.shape[1] != 2 * spatial_dims or not len(boxes) == len(labels) == len(target.ignore):
        raise ValueError(
            f"target: wanted boxes (N, {2 * spatial_dims}), labels (N,) and ignore (N,), got {tuple(boxes.shape)}, "
            f"{tuple(labels.shape)} and {tuple(target.ignore.shape)}"
        )
    if not bool(torch.isfinite(boxes).all()) or not bool((box_sizes(boxes) > 0).all()):
        raise ValueError("target: a box is not finite, empty or inverted (all minima come before all maxima)")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"target: labels must lie in 0..{num_classes - 1}, got {sorted({*labels.tolist()})}")


def box_centers(boxes: Tensor) -> Tensor:
    """(N, d)"""
    return boxes.unflatten(1, (2, -1)).mean(1)


def box_sizes(boxes: Tensor) -> Tensor:
    """Sides (N, d)"""
    low, high = boxes.unflatten(1, (2, -1)).unbind(1)
    return high - low


def side_lengths(size: Sequence[int], device: torch.device) -> Tensor:
    """A size (d,) as float32, which a trace does not keep as constants."""
    return torch.stack([torch.as_tensor(n, device=device) for n in size]).float()


def contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Whether points (M, d) lie in boxes (N, 2 d): (N, M)."""
    low, high = boxes.unflatten(1, (2, -1)).unbind(1)
    return ((points >= low[:, None]) & (points < high[:, None])).all(-1)


def select(
    boxes: Tensor,
    scores: Tensor,
    size: Sequence[int],
    min_score: float = 0.05,
    num_candidates: int = 1000,
    max_iou: float = 0.3,
    num_boxes: int = 100,
) -> Found:
    """The best boxes of an image: each candidate with its score for each class, non-maximum suppression by class.

    Args:
        boxes: (M, 2 d).
        scores: (M, C) in 0..1.
        size: of the image, to which boxes are clipped.
        min_score: lower ones are left out.
        num_candidates: highest scores that are looked at.
        max_iou: overlap from which the lower of two boxes of one class is left out.
        num_boxes: at most.
    """
    boxes, flat = boxes.detach(), scores.detach().flatten()
    candidates = torch.nonzero(flat >= min_score).squeeze(1)
    best = flat[candidates].topk(min(num_candidates, len(candidates))).indices
    rows, labels = candidates[best] // scores.shape[1], candidates[best] % scores.shape[1]
    clipped, inside = map(torch.as_tensor, clip_boxes_to_image(boxes[rows].float(), size, remove_empty=True))
    return non_maximum_suppression(Found(clipped, flat[candidates[best]][inside], labels[inside]), max_iou, num_boxes)


def non_maximum_suppression(found: Found, max_iou: float, num_boxes: int) -> Found:
    """Non-maximum suppression by class.

    MONAI's ``batched_nms`` gives the same, but computes the overlap with one box at a time.

    Args:
        found: in any order; of more than 4,000 boxes those with the highest scores are looked at.
        max_iou: overlap above which the lower of two boxes of one class is left out.
        num_boxes: at most.
    """
    order = found.scores.argsort(descending=True, stable=True)[:MAX_COMPARED]
    boxes, scores, labels = (part[order] for part in found)
    overlap = (torch.as_tensor(box_iou(boxes, boxes)) > max_iou) & (labels[:, None] == labels)
    rows, left = overlap.cpu().numpy(), np.ones(len(boxes), dtype=bool)
    keep: list[int] = []
    for index in range(len(boxes)):
        if left[index] and len(keep) < num_boxes:
            keep.append(index)
            left &= ~rows[index]
    return Found(boxes[keep], scores[keep], labels[keep])
