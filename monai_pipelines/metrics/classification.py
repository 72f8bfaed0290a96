"""Figures of merit of a classifier, by scikit-learn, with absent classes told apart from bad ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

__all__ = ["classification_metrics", "per_class_metrics"]

_ONE_VS_REST = ("precision", "recall", "specificity", "f1", "roc_auc", "average_precision")


def classification_metrics(prob: ArrayLike, label: ArrayLike, num_classes: int | None = None) -> dict[str, float]:
    """Headline figures of a classifier: of class 1 for two classes, macro one-vs-rest for more.

    The predicted class is the one of highest probability (the first of equals). Balanced accuracy is the mean recall
    of the classes that are present. What the labels leave undefined is NaN and stays out of the averages: see
    :func:`per_class_metrics`.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1.
        num_classes: the C that is wanted; None takes it from ``prob``.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``precision``, ``recall`` (sensitivity), ``specificity``, ``f1``,
        ``roc_auc``, ``average_precision``.

    Raises:
        ValueError: no rows, wrong shapes, labels outside 0..C-1, probabilities outside [0, 1] or not finite.

    Example:
        >>> figures = classification_metrics([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], [0, 0, 1, 1])
        >>> figures["roc_auc"], figures["recall"]
        (0.75, 0.5)

    Reference: Sokolova and Lapalme, A systematic analysis of performance measures for classification tasks, 2009.
    MONAI's ``compute_roc_auc`` gives NaN for the whole macro average when one class is absent.
    """
    scores, truth = _checked(prob, label, num_classes)
    classes = per_class_metrics(scores, truth)
    averaged = classes[1:] if len(classes) == 2 else classes
    return {
        "accuracy": float(accuracy_score(truth, scores.argmax(axis=1))),
        "balanced_accuracy": _mean(figures["recall"] for figures in classes),
        **{name: _mean(figures[name] for figures in averaged) for name in _ONE_VS_REST},
    }


def per_class_metrics(prob: ArrayLike, label: ArrayLike, num_classes: int | None = None) -> list[dict[str, float]]:
    """Figures of every class against the rest, in class order.

    Which figures are defined depends on the labels alone, so two models are always averaged over the same classes:
    without a scan of the class, all but specificity is NaN; without a scan of the rest, specificity and ROC AUC are
    NaN. A class that is there but never predicted has precision 0, as in scikit-learn.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1.
        num_classes: the C that is wanted; None takes it from ``prob``.

    Returns:
        One dict per class: ``num_scans`` of the class, ``precision``, ``recall``, ``specificity``, ``f1``,
        ``roc_auc``, ``average_precision``.

    Raises:
        ValueError: as :func:`classification_metrics`.

    Example:
        >>> per_class_metrics([[0.9, 0.1], [0.4, 0.6]], [0, 0])[1]["specificity"]
        0.5
    """
    scores, truth = _checked(prob, label, num_classes)
    predicted = scores.argmax(axis=1)
    return [
        {"num_scans": int((truth == k).sum()), **_one_vs_rest(truth == k, predicted == k, scores[:, k])}
        for k in range(scores.shape[1])
    ]


def _one_vs_rest(
    positive: NDArray[np.bool_], predicted: NDArray[np.bool_], score: NDArray[np.float64]
) -> dict[str, float]:
    figures = dict.fromkeys(_ONE_VS_REST, math.nan)
    if positive.any():
        figures["precision"] = float(precision_score(positive, predicted, zero_division=0))
        figures["recall"] = float(recall_score(positive, predicted))
        figures["f1"] = float(f1_score(positive, predicted))
        figures["average_precision"] = float(average_precision_score(positive, score))
    if not positive.all():
        figures["specificity"] = float(recall_score(~positive, ~predicted))
    if positive.any() and not positive.all():
        figures["roc_auc"] = float(roc_auc_score(positive, score))
    return figures


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _checked(prob: ArrayLike, label: ArrayLike, num_classes: int | None) -> tuple[NDArray[np.float64], NDArray[Any]]:
    scores, truth = np.asarray(prob, dtype=np.float64), np.asarray(label)
    if not scores.size:
        raise ValueError("metrics: wanted at least one scan, got none")
    if scores.ndim != 2 or scores.shape[1] < 2 or truth.shape != scores.shape[:1]:
        raise ValueError(f"metrics: wanted prob (N, C >= 2) and label (N,), got {scores.shape} and {truth.shape}")
    num = scores.shape[1]
    if num_classes not in (None, num):
        raise ValueError(f"metrics: wanted {num_classes} classes, got prob with {num} columns")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if bad.size:
        raise ValueError(f"metrics: prob must be finite, got {scores[bad[0]]} in row {bad[0]} ({bad.size} such rows)")
    if scores.min() < -1e-6 or scores.max() > 1 + 1e-6:
        raise ValueError(f"metrics: prob must lie in [0, 1], got {scores.min():g} to {scores.max():g} (logits?)")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= num:
        raise ValueError(f"metrics: label must be integers in 0..{num - 1}, got {np.unique(truth)[:9]}")
    return scores, truth
