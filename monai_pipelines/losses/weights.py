"""Class weights from the labels of the training set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_pipelines.errors import CohortError

SCHEMES = ("inverse", "effective", "none")


def class_weights(labels: Any, num_classes: int, scheme: str = "inverse", beta: float = 0.999) -> Tensor | None:
    """Class weights from the labels of the training set, for a loss: rare classes weigh more.

    With n_c the number of samples of class c, "inverse" is ``1 / n_c`` and "effective" (number of samples)
    ``(1 - beta) / (1 - beta ** n_c)``, both then normalized to sum to the number of classes.

    Args:
        labels: (N,) integers 0..num_classes - 1; list, array or tensor.
        num_classes: number of classes.
        scheme: "inverse", "effective" or "none".
        beta: of "effective", from 0 (all equal) to below 1 (inverse).

    Returns:
        (num_classes,) float32; None for "none".

    Raises:
        CohortError: a label out of range or a class without a sample; lists all.
        TypeError: the labels are not integers.
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
    if scheme == "none":
        return None
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"class_weights: labels must be (N,), got shape {labels.shape}")
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"class_weights: labels must be integers, got {labels.dtype}")
    values, counts = np.unique(labels, return_counts=True)
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


def pos_weights(labels: Any) -> Tensor:
    """Weights of the positives of each class for a multi-label loss: ``negatives / positives``.

    With these, positives and negatives of a class have equal total weight.

    Args:
        labels: (N, C) of 0 and 1; list, array or tensor.

    Returns:
        (C,) float32.

    Raises:
        CohortError: a class without positives or without negatives; lists all.
        ValueError: the labels are not (N, C) or not 0 and 1.

    Example:
        >>> pos_weights([[1, 0], [0, 1], [0, 1], [0, 0]])
        tensor([3., 1.])
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"pos_weights: labels must be (N, C), got shape {labels.shape} (class_weights takes (N,))")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"pos_weights: labels must be 0 or 1, got {np.setdiff1d(labels, (0, 1)).tolist()}")
    positives = labels.sum(axis=0, dtype=np.float64)
    negatives = len(labels) - positives
    problems = [f"class {c} has no positive" for c in np.flatnonzero(positives == 0)]
    problems += [f"class {c} has no negative" for c in np.flatnonzero(negatives == 0)]
    if problems:
        raise CohortError("labels of the training set", problems)
    return torch.tensor(negatives / positives, dtype=torch.float32)
