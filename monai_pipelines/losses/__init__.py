"""Losses for imbalanced classes, for one-logit, multi-class and multi-label heads; entropy of attention."""

from monai_pipelines.losses.asymmetric import AsymmetricLoss
from monai_pipelines.losses.attention import AttentionEntropyLoss
from monai_pipelines.losses.base import ClassificationLoss
from monai_pipelines.losses.dice import FocalDiceLoss, SoftDiceLoss
from monai_pipelines.losses.entropy import CrossEntropyLoss, FocalLoss
from monai_pipelines.losses.weights import class_weights, pos_weights

__all__ = [
    "AsymmetricLoss",
    "AttentionEntropyLoss",
    "ClassificationLoss",
    "CrossEntropyLoss",
    "FocalDiceLoss",
    "FocalLoss",
    "SoftDiceLoss",
    "class_weights",
    "pos_weights",
]
