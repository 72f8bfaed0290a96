"""Figures of merit of a classifier, with absent classes told apart from bad ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["classification_metrics", "per_class_metrics", "predicted_classes"]

_ONE_VS_REST = ("precision", "recall", "specificity", "f1", "roc_auc", "average_precision")


def predicted_classes(prob: ArrayLike, threshold: float | None = None, multilabel: bool = False) -> NDArray[np.int64]:
    """What is predicted for each image, given its probabilities.

    Args:
        prob: (N, C) probabilities.
        threshold: for two classes: the second is predicted from this probability on; None: the class of highest
            probability, the first of equals.
        multilabel: each class is predicted or not by itself, from a probability of 0.5 on.

    Returns:
        (N,) class indices; (N, C) of 0 and 1 for ``multilabel``.

    Raises:
        ValueError: a threshold for anything but two classes, or outside 0..1.

    Example:
        >>> predicted_classes([[0.7, 0.3], [0.9, 0.1]], threshold=0.25)
        array([1, 0])
        >>> predicted_classes([[0.7, 0.6, 0.1]], multilabel=True)
        array([[1, 1, 0]])
    """
    scores = np.asarray(prob, dtype=np.float64)
    if threshold is not None and (multilabel or scores.shape[1] != 2 or not 0 <= threshold <= 1):
        kind = "labels each by itself" if multilabel else f"{scores.shape[1]} classes"
        raise ValueError(f"threshold: wanted one in 0..1 for two classes, got {threshold} for {kind}")
    if multilabel:
        return (scores >= 0.5).astype(np.int64)
    return scores.argmax(axis=1) if threshold is None else (scores[:, 1] >= threshold).astype(np.int64)


def classification_metrics(
    prob: ArrayLike, label: ArrayLike, num_classes: int | None = None, threshold: float | None = None
) -> dict[str, float]:
    """Headline figures of a classifier: of class 1 for two classes, macro one-vs-rest for more.

    For several classes balanced accuracy is the mean recall of the classes that are present. For several labels each,
    (N, C), every class is predicted from 0.5 on; accuracy is then the share of all N x C labels that are right, and
    balanced accuracy the mean over the classes of (recall + specificity) / 2. What the labels leave undefined is NaN
    and stays out of the averages: see :func:`per_class_metrics`.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        num_classes: the C that is wanted; None takes it from ``prob``.
        threshold: as in :func:`predicted_classes`.

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
    scores, truth = checked_predictions(prob, label, num_classes)
    classes = per_class_metrics(scores, truth, threshold=threshold)
    if truth.ndim == 2:
        averaged = classes
        balanced = [(figures["recall"] + figures["specificity"]) / 2 for figures in classes]
    else:
        averaged = classes[1:] if len(classes) == 2 else classes
        balanced = [figures["recall"] for figures in classes]
    return {
        "accuracy": float((truth == predicted_classes(scores, threshold, truth.ndim == 2)).mean()),
        "balanced_accuracy": _mean(balanced),
        **{name: _mean(figures[name] for figures in averaged) for name in _ONE_VS_REST},
    }


def per_class_metrics(
    prob: ArrayLike, label: ArrayLike, num_classes: int | None = None, threshold: float | None = None
) -> list[dict[str, float]]:
    """Figures of every class against the rest, in class order.

    Which figures are defined depends on the labels alone, so two models are always averaged over the same classes:
    without an image of the class, all but specificity is NaN; without an image of the rest, specificity and ROC AUC
    are NaN. A class that is there but never predicted has precision 0, as in scikit-learn.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        num_classes: the C that is wanted; None takes it from ``prob``.
        threshold: as in :func:`predicted_classes`.

    Returns:
        One dict per class: ``num_scans`` of the class, ``precision``, ``recall``, ``specificity``, ``f1``,
        ``roc_auc``, ``average_precision``.

    Raises:
        ValueError: as :func:`classification_metrics`.

    Example:
        >>> per_class_metrics([[0.9, 0.1], [0.4, 0.6]], [0, 0])[1]["specificity"]
        0.5
    """
    scores, truth = checked_predictions(prob, label, num_classes)
    predicted = predicted_classes(scores, threshold, truth.ndim == 2)
    if truth.ndim == 1:
        truth, predicted = (values[:, None] == np.arange(scores.shape[1]) for values in (truth, predicted))
    return [
        {"num_scans": int(own.sum()), **_one_vs_rest(own, called, score)}
        for own, called, score in zip(truth.T.astype(bool), predicted.T.astype(bool), scores.T, strict=True)
    ]


def checked_predictions(
    prob: ArrayLike, label: ArrayLike, num_classes: int | None = None
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Probabilities (N, C) and labels (N,) or (N, C) as arrays, or a ValueError that says what is wrong with them."""
    scores, truth = np.asarray(prob, dtype=np.float64), np.asarray(label)
    if not scores.size:
        raise ValueError("metrics: wanted at least one row, got none")
    if scores.ndim != 2 or scores.shape[1] < 2 or truth.shape not in (scores.shape, scores.shape[:1]):
        raise ValueError(
            f"metrics: wanted prob (N, C >= 2) and label (N,) or (N, C), got {scores.shape} and {truth.shape}"
        )
    num = scores.shape[1]
    if num_classes not in (None, num):
        raise ValueError(f"metrics: wanted {num_classes} classes, got prob with {num} columns")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if bad.size:
        raise ValueError(f"metrics: prob must be finite, got {scores[bad[0]]} in row {bad[0]} ({bad.size} such rows)")
    if scores.min() < -1e-6 or scores.max() > 1 + 1e-6:
        raise ValueError(f"metrics: prob must lie in [0, 1], got {scores.min():g} to {scores.max():g} (logits?)")
    if truth.ndim == 2:
        if not np.isin(truth, (0, 1)).all():
            raise ValueError(f"metrics: several labels each must be 0 or 1, got {np.unique(truth)[:9]}")
        return scores, truth.astype(np.int64)
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= num:
        raise ValueError(f"metrics: label must be integers in 0..{num - 1}, got {np.unique(truth)[:9]}")
    return scores, truth


def _one_vs_rest(
    positive: NDArray[np.bool_], predicted: NDArray[np.bool_], score: NDArray[np.float64]
) -> dict[str, float]:
    figures = dict.fromkeys(_ONE_VS_REST, math.nan)
    num_positive, num_called, num_found = (int(own.sum()) for own in (positive, predicted, positive & predicted))
    num_negative = len(score) - num_positive
    order = np.argsort(-score)
    last = np.flatnonzero(np.diff(score[order], append=-math.inf))  # of each run of equal scores
    found = np.cumsum(positive[order])[last]
    alarms = last + 1 - found
    steps = np.diff(found, prepend=0)
    if num_positive:
        figures["precision"] = num_found / num_called if num_called else 0.0
        figures["recall"] = num_found / num_positive
        figures["f1"] = 2 * num_found / (num_positive + num_called)
        figures["average_precision"] = float((steps * found / (last + 1)).sum() / num_positive)
    if num_negative:
        figures["specificity"] = (num_negative - num_called + num_found) / num_negative
    if num_positive and num_negative:
        below = num_negative - alarms + np.diff(alarms, prepend=0) / 2  # a tie counts half
        figures["roc_auc"] = float((steps * below).sum() / (num_positive * num_negative))
    return figures


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
