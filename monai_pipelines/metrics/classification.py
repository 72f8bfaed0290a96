"""Figures of merit of a classifier, with absent classes told apart from bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.weighted import WeightedFigures

__all__ = ["Threshold", "classification_metrics", "per_class_metrics", "predicted_classes"]

Threshold = float | Sequence[float] | None


def predicted_classes(prob: ArrayLike, threshold: Threshold = None, multilabel: bool = False) -> NDArray[np.int64]:
    """What is predicted for each image, given its probabilities.

    Args:
        prob: (N, C) probabilities.
        threshold: for two classes: the second is predicted from this probability on; None: the class of highest
            probability, the first of equals. For ``multilabel``: one for all classes or C of them; None: 0.5.
        multilabel: each class is predicted or not by itself.

    Returns:
        (N,) class indices; (N, C) of 0 and 1 for ``multilabel``.

    Raises:
        ValueError: a threshold for more than two classes, outside 0..1, or another number of them.

    Example:
        >>> predicted_classes([[0.7, 0.3], [0.9, 0.1]], threshold=0.25)
        array([1, 0])
        >>> predicted_classes([[0.7, 0.6, 0.1]], threshold=[0.5, 0.65, 0.05], multilabel=True)
        array([[1, 0, 1]])
    """
    scores = np.asarray(prob, dtype=np.float64)
    num = scores.shape[1]
    if threshold is None:
        return (scores >= 0.5).astype(np.int64) if multilabel else scores.argmax(axis=1)
    cut = np.asarray(threshold, dtype=np.float64)
    told = f"got {threshold} for {num} {'labels each by itself' if multilabel else 'classes'}"
    if not multilabel and (num != 2 or cut.ndim):
        raise ValueError(f"threshold: wanted one for two classes (or labels each by itself), {told}")
    if cut.shape not in ((), (num,)):
        raise ValueError(f"threshold: wanted one for all labels or one for each, {told}")
    if not ((cut >= 0) & (cut <= 1)).all():
        raise ValueError(f"threshold: wanted probabilities in 0..1, {told}")
    return ((scores if multilabel else scores[:, 1]) >= cut).astype(np.int64)


def classification_metrics(
    prob: ArrayLike, label: ArrayLike, num_classes: int | None = None, threshold: Threshold = None
) -> dict[str, float]:
    """Headline figures of a classifier: of class 1 for two classes, macro one-vs-rest for more.

    For several classes balanced accuracy is the mean recall of the classes that are present; MCC (R_K) and Cohen's
    kappa are of the whole confusion matrix, the Brier score is the sum over the classes (0 to 2), and ECE compares the
    probability of the likeliest class with how often it is right. For several labels each, (N, C), accuracy is the
    share of all N x C labels that are right, balanced accuracy the mean over the classes of
    (recall + specificity) / 2, and all others but the micro-averaged are means over the classes.

    ECE = sum over 10 equally wide bins of ``|sum of prob - number observed| / N``, upper edges belonging to the bin.
    The log loss takes probabilities below 2.2e-16 for that. What the labels leave undefined is NaN and stays out of the
    averages: see :func:`per_class_metrics`; MCC and kappa need two classes among the labels.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        num_classes: the C that is wanted; None takes it from ``prob``.
        threshold: as in :func:`predicted_classes`.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``precision`` (PPV), ``recall`` (sensitivity), ``specificity``, ``npv``,
        ``f1``, ``mcc``, ``kappa``, ``roc_auc``, ``average_precision``, ``brier``, ``ece``, ``log_loss``; for more than
        two classes ``kappa_quadratic`` (classes in order of their severity), and for these and several labels each
        ``roc_auc_micro`` and ``average_precision_micro`` (all classes in one ranking).

    Raises:
        ValueError: no rows, wrong shapes, labels outside 0..C-1, probabilities outside [0, 1] or not finite, or of
            exclusive classes that do not add up to 1.

    Example:
        >>> figures = classification_metrics([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], [0, 0, 1, 1])
        >>> figures["roc_auc"], figures["recall"], round(figures["brier"], 3)
        (0.75, 0.5, 0.225)

    Reference: Sokolova and Lapalme, A systematic analysis of performance measures for classification tasks, 2009;
    Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004; Guo et al., On
    calibration of modern neural networks, 2017. MONAI's ``compute_roc_auc`` gives NaN for the whole macro average when
    one class is absent.
    """
    figures = weighted_figures(prob, label, num_classes, threshold)
    return {name: float(values[0]) for name, values in figures([[1]]).whole.items()}


def per_class_metrics(
    prob: ArrayLike, label: ArrayLike, num_classes: int | None = None, threshold: Threshold = None
) -> list[dict[str, float]]:
    """Figures of every class against the rest, in class order.

    Which figures are defined depends on the labels alone, so two models are always averaged over the same classes:
    without an image of the class, precision, recall, F1 and average precision are NaN; without one of the rest,
    specificity and NPV; without either, ROC AUC and MCC. What is there but never predicted has precision (of the rest:
    NPV) 0, as in scikit-learn.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        num_classes: the C that is wanted; None takes it from ``prob``.
        threshold: as in :func:`predicted_classes`.

    Returns:
        One dict per class: ``num_scans`` of the class, ``precision``, ``recall``, ``specificity``, ``npv``, ``f1``,
        ``mcc``, ``roc_auc``, ``average_precision``, ``brier``.

    Raises:
        ValueError: as :func:`classification_metrics`.

    Example:
        >>> per_class_metrics([[0.9, 0.1], [0.4, 0.6]], [0, 0])[1]["specificity"]
        0.5
    """
    figures = weighted_figures(prob, label, num_classes, threshold)
    found = figures([[1]]).per_class
    return [
        {"num_scans": int(num), **{name: float(values[k, 0]) for name, values in found.items()}}
        for k, num in enumerate(figures.positive.sum(axis=0))
    ]


def weighted_figures(
    prob: ArrayLike,
    label: ArrayLike,
    num_classes: int | None = None,
    threshold: Threshold = None,
    group: NDArray[np.int64] | None = None,
) -> WeightedFigures:
    """What all figures are computed by, from checked data; ``group`` numbers each row's group, None: all one."""
    scores, truth = checked_predictions(prob, label, num_classes)
    predicted = predicted_classes(scores, threshold, truth.ndim == 2)
    return WeightedFigures(scores, truth, predicted, np.zeros(len(scores), np.int64) if group is None else group)


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
    odd = np.flatnonzero(abs(scores.sum(axis=1) - 1) > 1e-3)
    if odd.size:
        raise ValueError(
            f"metrics: prob of exclusive classes must add up to 1, got {scores[odd[0]]} in row {odd[0]} ({odd.size} "
            "such rows); are they several labels each (--multilabel), with label (N, C)?"
        )
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= num:
        raise ValueError(f"metrics: label must be integers in 0..{num - 1}, got {np.unique(truth)[:9]}")
    return scores, truth
