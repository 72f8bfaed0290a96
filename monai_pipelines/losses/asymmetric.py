"""Asymmetric loss: easy negatives weigh less than positives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from monai_pipelines.losses.base import ClassificationLoss, Weight, focusing, weighted_mean


class AsymmetricLoss(ClassificationLoss):
    """Asymmetric loss: negatives are focused more than positives, and the easiest dropped.

    For each sample and class, with p its probability, y its label and q = max(p - clip, 0):
    ``-w y (1 - p)^gamma_pos log p - (1 - y) q^gamma_neg log(1 - q)``.

    - multi-label, as published: p the sigmoid, w the weight of the class's positives, mean over samples and classes
      (gamma 0 and clip 0: binary cross-entropy).
    - one logit: the same with one class; w is the weight of the sample's class, and the mean is weighted.
    - multi-class: each class against the rest, on the softmax; summed over the classes, weighted mean over the samples.

    Args:
        gamma_pos: of positives, 0 or more.
        gamma_neg: of negatives, 0 or more.
        clip: shift of the negatives' probability, in [0, 1).
        weight: see `ClassificationLoss`.

    Raises:
        ValueError: a number out of range, or tensors of other shapes.

    Example:
        >>> AsymmetricLoss()(torch.zeros(1, 2), torch.tensor([[1, 0]]))  # (log 2 - 0.45^4 log 0.55) / 2
        tensor(0.3588)

    Reference:
        Ridnik et al., Asymmetric loss for multi-label classification, ICCV 2021; the authors' code sums instead of
        averaging.
    """

    def __init__(
        self, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05, weight: Weight = None
    ) -> None:
        super().__init__(weight)
        if min(gamma_pos, gamma_neg) < 0:
            raise ValueError(
                f"AsymmetricLoss: gamma_pos and gamma_neg must be 0 or more, got {gamma_pos} and {gamma_neg}"
            )
        if not 0 <= clip < 1:
            raise ValueError(f"AsymmetricLoss: clip must be 0 or more and below 1, got {clip}")
        self.gamma_pos, self.gamma_neg, self.clip = gamma_pos, gamma_neg, clip

    def _multi_label(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        positive, negative = self._terms(functional.logsigmoid(logits), functional.logsigmoid(-logits))
        weighted = positive if weight is None else weight * positive
        return (labels * weighted + (1 - labels) * negative).mean()

    def _one_logit(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        positive, negative = self._terms(functional.logsigmoid(logits[:, 0]), functional.logsigmoid(-logits[:, 0]))
        return weighted_mean(torch.stack([negative, positive], 1).gather(1, labels[:, None])[:, 0], labels, weight)

    def _multi_class(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        diagonal = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        log_others = logits[:, None].masked_fill(diagonal, -torch.inf).logsumexp(2) - logits.logsumexp(1, keepdim=True)
        positive, negative = self._terms(logits.log_softmax(1), log_others)
        one_hot = functional.one_hot(labels, logits.shape[1])
        return weighted_mean(torch.where(one_hot > 0, positive, negative).sum(1), labels, weight)

    def _terms(self, log_p: Tensor, log_1_p: Tensor) -> tuple[Tensor, Tensor]:
        """Losses as a positive and as a negative, from log p and log(1 - p)."""
        positive = focusing(log_1_p.exp(), self.gamma_pos) * -log_p
        log_1_q = (log_1_p.exp() + self.clip).clamp_max(1).log() if self.clip else log_1_p
        negative = focusing(log_p.exp() - self.clip, self.gamma_neg) * -log_1_q
        return positive, negative
