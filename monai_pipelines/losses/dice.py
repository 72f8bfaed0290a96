"""Soft Dice loss for classification, alone and with the focal loss."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional

from monai_pipelines.losses.base import ClassificationLoss, Weight
from monai_pipelines.losses.entropy import FocalLoss
from monai_pipelines.probabilities import probabilities


class SoftDiceLoss(ClassificationLoss):
    """One minus the soft Dice (F1) of each class over the batch, averaged over the classes that occur in it.

    ``sum_c w_c (1 - (2 sum_i p_ic y_ic + s) / (sum_i p_ic + sum_i y_ic + s)) / sum_c w_c`` over the classes with a
    positive label in the batch, p the softmax (multi-label: the sigmoid), y 0 or 1. Absent classes are left out, as
    their Dice is 0 for any prediction; one logit counts as two classes. A multi-label batch without positives has loss
    and gradient 0: combine with another loss (`FocalDiceLoss`). Noisy in small batches.

    Args:
        weight: of each class in the average, (C,) above 0 (two for one logit); None: all equal.
        smooth: s, above 0.

    Raises:
        ValueError: weight or smooth out of range, or tensors of other shapes.

    Example:
        >>> SoftDiceLoss()(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
        tensor(0.5000)

    Reference:
        Milletari et al., V-Net, 3DV 2016. The Dice of each class is that of MONAI's `DiceLoss(batch=True)`, whose
        average includes absent classes.
    """

    def __init__(self, weight: Weight = None, smooth: float = 1e-5) -> None:
        super().__init__(weight)
        if smooth <= 0:
            raise ValueError(f"SoftDiceLoss: smooth must be above 0, got {smooth}")
        self.dice = DiceLoss(batch=True, reduction="none", smooth_nr=smooth, smooth_dr=smooth)

    def _multi_class(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        one_hot = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return self._mean_dice_loss(probabilities(logits), one_hot, weight)

    def _multi_label(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        return self._mean_dice_loss(probabilities(logits, multilabel=True), labels, weight)

    def _mean_dice_loss(self, prob: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        present = labels.any(0).to(prob.dtype)
        share = present if weight is None else present * weight
        return (share * self.dice(prob, labels)).sum() / share.sum().clamp_min(torch.finfo(prob.dtype).tiny)


class FocalDiceLoss(ClassificationLoss):
    """``lambda_focal * FocalLoss + lambda_dice * SoftDiceLoss``, both with the same class weights.

    Args:
        gamma: of the focal loss, 0 or more.
        weight: see `ClassificationLoss`; also of the classes in the average of the Dice.
        lambda_focal: 0 or more.
        lambda_dice: 0 or more.
        smooth: of the Dice, above 0.

    Raises:
        ValueError: a number out of range, or tensors of other shapes.

    Example:
        >>> FocalDiceLoss()(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))  # 0.1733 + 0.5
        tensor(0.6733)
    """

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Weight = None,
        lambda_focal: float = 1.0,
        lambda_dice: float = 1.0,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(weight)
        if min(lambda_focal, lambda_dice) < 0 or lambda_focal == lambda_dice == 0:
            raise ValueError(
                "FocalDiceLoss: lambda_focal and lambda_dice must be 0 or more and not both 0, "
                f"got {lambda_focal} and {lambda_dice}"
            )
        self.focal, self.soft_dice = FocalLoss(gamma), SoftDiceLoss(smooth=smooth)
        self.lambda_focal, self.lambda_dice = lambda_focal, lambda_dice

    def _multi_class(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        focal, dice = (loss._multi_class(logits, labels, weight) for loss in (self.focal, self.soft_dice))
        return self.lambda_focal * focal + self.lambda_dice * dice

    def _multi_label(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        focal, dice = (loss._multi_label(logits, labels, weight) for loss in (self.focal, self.soft_dice))
        return self.lambda_focal * focal + self.lambda_dice * dice
