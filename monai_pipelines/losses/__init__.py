"""Losses for classes of unequal size, for one logit, multi-class and multi-label heads."""

from monai_pipelines.losses.asymmetric import AsymmetricLoss
from monai_pipelines.losses.base import ClassificationLoss
from monai_pipelines.losses.dice import FocalDiceLoss, SoftDiceLoss
from monai_pipelines.losses.entropy import CrossEntropyLoss, FocalLoss
from monai_pipelines.losses.weights import class_weights, pos_weights

__all__ = [
    "AsymmetricLoss",
    "ClassificationLoss",
    "CrossEntropyLoss",
    "FocalDiceLoss",
    "FocalLoss",
    "SoftDiceLoss",
    "class_weights",
    "pos_weights",
]
