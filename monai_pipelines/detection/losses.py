"""Losses of detectors, on logits of single positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSamplerBase
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_pipelines.detection.boxes import box_centers, box_sizes


class SumOfLosses:
    """A detector's losses as one number, for MONAI's `SupervisedTrainer`.

    Args:
        weights: of losses by name; 1 for those that are not named.

    Raises:
        ValueError: later, a name that is none of the detector's losses.

    Example:
        >>> loss = SumOfLosses({"box": 2.0})
        >>> loss({"class": torch.tensor(0.5), "box": torch.tensor(0.25)})
        tensor(1.)
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = dict(weights or {})

    def __call__(self, losses: Mapping[str, Tensor], targets: Any = None) -> Tensor:
        if unknown := sorted(self.weights.keys() - losses.keys()):
            raise ValueError(f"SumOfLosses: no loss {', '.join(unknown)}; the detector has {', '.join(losses)}")
        return torch.stack([self.weights.get(name, 1) * loss.float() for name, loss in losses.items()]).sum()


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of ``-alpha_t (1 - p_t)^gamma log p_t`` with alpha_t = alpha for positives, 1 - alpha otherwise.

    Args:
        logits: any shape.
        target: 0 and 1, the same shape.
        alpha, gamma: of the formula.

    Reference: Lin et al., Focal loss for dense object detection, ICCV 2017.
    """
    cross_entropy = binary_cross_entropy_with_logits(logits, target, reduction="none")
    prob = logits.sigmoid()
    missed = prob * (1 - target) + (1 - prob) * target
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * missed**gamma * cross_entropy).sum()


def hard_negatives(labels: Tensor, prob: Tensor, ratio: float, pool: float, min_negatives: int) -> Tensor:
    """Which positions are learned: all positives, and the negatives with the highest probability.

    Args:
        labels: (M,) 1 positive, 0 negative, -1 neither.
        prob: (M,) of a lesion.
        ratio: negatives for each positive.
        pool: negatives are drawn from so many times their number of the most probable ones.
        min_negatives: at least.

    Returns:
        (M,) bool.
    """
    positive, negative = labels == 1, torch.nonzero(labels == 0).squeeze(1)
    number = min(max(int(ratio * int(positive.sum())), min_negatives), len(negative))
    return positive | HardNegativeSamplerBase(pool).select_negatives(negative, number, prob).bool()


def distance_iou(found: Tensor, wanted: Tensor) -> Tensor:
    """IoU of pairs of boxes minus the squared distance of their centers over that of the corners around both.

    Args:
        found, wanted: (N, 2 d).

    Returns:
        (N,) in -1..1.

    Reference: Zheng et al., Distance-IoU loss, AAAI 2020.
    """
    (low, high), (wanted_low, wanted_high) = (boxes.unflatten(1, (2, -1)).unbind(1) for boxes in (found, wanted))
    common = (torch.minimum(high, wanted_high) - torch.maximum(low, wanted_low)).clamp(min=0).prod(1)
    union = box_sizes(found).clamp(min=0).prod(1) + box_sizes(wanted).prod(1) - common
    around = torch.maximum(high, wanted_high) - torch.minimum(low, wanted_low)
    apart = (box_centers(found) - box_centers(wanted)).square().sum(1)
    return common / union.clamp(min=1e-6) - apart / around.square().sum(1).clamp(min=1e-6)
