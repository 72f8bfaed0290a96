"""Class weights and the focal loss, for classes of unequal size; cross-entropy is torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_pipelines.errors import CohortError

SCHEMES = ("inverse", "effective")


def class_weights(labels: Any, num_classes: int, scheme: str = "inverse", beta: float = 0.999) -> Tensor:
    """Weights of the classes from the labels of the training set, for a loss: rare classes weigh more.

    With n_c the number of samples of class c, "inverse" is ``1 / n_c`` and "effective" (number of samples)
    ``(1 - beta) / (1 - beta ** n_c)``, both then normalised to sum to the number of classes.

    Args:
        labels: (N,) integers 0..num_classes - 1; list, array or tensor.
        num_classes: how many classes there are.
        scheme: "inverse" or "effective".
        beta: of "effective", 0 (all equal) up to, not including, 1 (inverse).

    Returns:
        (num_classes,) float32.

    Raises:
        CohortError: a label out of range or a class without a sample; lists all.
        TypeError: the labels are no integers.
        ValueError: an unknown scheme, beta out of range, or the labels are not (N,).

    Example:
        >>> class_weights([0, 0, 0, 1], num_classes=2)
        tensor([0.5000, 1.5000])

    Reference:
        Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"class_weights: scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if not 0 <= beta < 1:
        raise ValueError(f"class_weights: beta must be 0 or more and below 1, got {beta}")
    found = np.asarray(labels)
    if found.ndim != 1:
        raise ValueError(f"class_weights: labels must be (N,), got shape {found.shape}")
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"class_weights: labels must be integers, got {found.dtype}")
    values, counts = np.unique(found, return_counts=True)
    samples = dict(zip(values.tolist(), counts.tolist(), strict=True))
    problems = [
        f"label {v} ({samples[v]}x) lies outside 0..{num_classes - 1}" for v in samples if not 0 <= v < num_classes
    ]
    problems += [f"class {c} has no sample" for c in range(num_classes) if c not in samples]
    if problems:
        raise CohortError("labels of the training set", problems)
    n = np.array([samples[c] for c in range(num_classes)], dtype=np.float64)
    weights = 1 / n if scheme == "inverse" else (1 - beta) / (1 - beta**n)
    return torch.tensor(weights * num_classes / weights.sum(), dtype=torch.float32)


class FocalLoss(nn.Module):
    """Focal loss for one class out of several: easy samples weigh less.

    ``sum_i w_i (1 - p_i)^gamma (-log p_i) / sum_i w_i`` with p_i the softmax probability of sample i's own class,
    which knows no weights, and w_i the weight of that class. With gamma 0 it is `torch.nn.CrossEntropyLoss(weight)`.

    Args:
        gamma: 0 or more.
        weight: of each class (C,), as from `class_weights`; None weighs all the same.

    Raises:
        ValueError: a negative gamma or weight, or tensors of other shapes.

    Example:
        >>> FocalLoss(gamma=2.0)(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))  # 0.25 log 2
        tensor(0.1733)

    Reference:
        Lin et al., Focal loss for dense object detection, ICCV 2017. MONAI's `FocalLoss(use_softmax=True)` divides by
        N * C instead of the sum of the weights and so has another scale than cross-entropy.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | Sequence[float] | None = None) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"FocalLoss: gamma must be 0 or more, got {gamma}")
        values = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        if values is not None and (values.ndim != 1 or bool((values < 0).any())):
            raise ValueError(f"FocalLoss: weight must be (C,), each 0 or more, got {values.tolist()}")
        self.gamma = gamma
        self.register_buffer("weight", values)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (N, C) for labels (N,) int64; a scalar."""
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"FocalLoss: wanted logits (N, C) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        miss = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny)  # 1 - p; its power has a slope at p = 1 too
        loss = miss**self.gamma * -log_p
        if self.weight is None:
            return loss.mean()
        weight = self.weight[labels]
        return (weight * loss).sum() / weight.sum()
