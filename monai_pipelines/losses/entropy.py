"""Cross-entropy and the focal loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from monai_pipelines.losses.base import ClassificationLoss, Weight, focusing, over_processes, weighted_mean


class CrossEntropyLoss(ClassificationLoss):
    """Cross-entropy for all heads, by torch's functions.

    One class out of several: ``sum_i w_i (-log p_i) / sum_i w_i``, with p_i the softmax probability of sample i's class
    and w_i the weight of that class. Multi-label: the mean of ``-w_c y log p - (1 - y) log(1 - p)`` over samples and
    classes, with p the sigmoid. No label is ignored: torch's -100 is an error.

    Args:
        weight: see `ClassificationLoss`.
        label_smoothing: e in [0, 1): labels become ``y (1 - e) + e / C`` (multi-label: C = 2).

    Raises:
        ValueError: label_smoothing or weight out of range, or tensors of other shapes.

    Example:
        >>> CrossEntropyLoss()(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]))  # log 2
        tensor(0.6931)
    """

    def __init__(self, weight: Weight = None, label_smoothing: float = 0.0) -> None:
        super().__init__(weight)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"CrossEntropyLoss: label_smoothing must be 0 or more and below 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def _multi_class(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        no_label = torch.iinfo(torch.int64).min
        mean = functional.cross_entropy(
            logits, labels, weight, ignore_index=no_label, label_smoothing=self.label_smoothing
        )
        return over_processes(mean, labels, weight)

    def _multi_label(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        smooth = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)


class FocalLoss(ClassificationLoss):
    """Focal loss: easy samples are down-weighted.

    One class out of several: ``sum_i w_i (1 - p_i)^gamma (-log p_i) / sum_i w_i`` with p_i the softmax probability of
    sample i's class, before weighting, and w_i the weight (alpha) of that class. Multi-label: the mean of
    ``-w_c y (1 - p)^gamma log p - (1 - y) p^gamma log(1 - p)`` over samples and classes, with p the sigmoid. With
    gamma 0 it is `CrossEntropyLoss(weight)`.

    Args:
        gamma: 0 or more.
        weight: see `ClassificationLoss`.

    Raises:
        ValueError: gamma or weight out of range, or tensors of other shapes.

    Example:
        >>> FocalLoss(gamma=2.0)(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))  # 0.25 log 2
        tensor(0.1733)

    Reference:
        Lin et al., Focal loss for dense object detection, ICCV 2017. MONAI's `FocalLoss(use_softmax=True)` divides by
        N * C instead of the sum of the weights, so its scale differs from cross-entropy's.
    """

    def __init__(self, gamma: float = 2.0, weight: Weight = None) -> None:
        super().__init__(weight)
        if gamma < 0:
            raise ValueError(f"FocalLoss: gamma must be 0 or more, got {gamma}")
        self.gamma = gamma

    def _multi_class(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        return weighted_mean(focusing(-log_p.expm1(), self.gamma) * -log_p, labels, weight)

    def _multi_label(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        margin = logits * (2 * labels - 1)
        loss = focusing((-margin).sigmoid(), self.gamma) * -functional.logsigmoid(margin)
        return (loss if weight is None else loss * (1 + (weight - 1) * labels)).mean()
