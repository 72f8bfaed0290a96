"""Losses of detectors, on logits of single positions."""

from __future__ import annotations

import torch
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_pipelines.detection.boxes import box_centers, box_sizes


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
    fraction = 1 / (1 + ratio)
    num_positive = int((labels == 1).sum())
    sampler = HardNegativeSampler(int(num_positive / fraction) + 1, fraction, min_negatives, pool)
    chosen = sampler.select_samples_per_img(labels, prob)
    return (chosen[0] + chosen[1]).bool()


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
