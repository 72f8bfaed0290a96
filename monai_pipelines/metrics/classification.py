"""Classification metrics, overall and per class; classes absent from the labels are undefined, not zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.weighted import WeightedMetrics

Threshold = float | Sequence[float] | None


def predicted_classes(prob: ArrayLike, threshold: Threshold = None, multilabel: bool = False) -> NDArray[np.int64]:
    """Predict classes from probabilities.

    Args:
        prob: (N, C) probabilities.
        threshold: for two classes, the lowest probability for which the second is predicted; None: the class of highest
            probability, the first of equals. For ``multilabel``, one for all classes or C of them; None: 0.5.
        multilabel: classes are not exclusive.

    Returns:
        (N,) class indices; (N, C) of 0 and 1 for ``multilabel``.

    Raises:
        ValueError: a threshold for more than two classes or outside 0..1, or the wrong number of thresholds.

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
    got = f"got {threshold} for {num} {'labels' if multilabel else 'classes'}"
    if not multilabel and (num != 2 or cut.ndim):
        raise ValueError(f"threshold: wanted one for two classes (or multi-label data), {got}")
    if cut.shape not in ((), (num,)):
        raise ValueError(f"threshold: wanted one for all labels or one for each, {got}")
    if not ((cut >= 0) & (cut <= 1)).all():
        raise ValueError(f"threshold: wanted probabilities in 0..1, {got}")
    return ((scores if multilabel else scores[:, 1]) >= cut).astype(np.int64)


def classification_metrics(prob: ArrayLike, label: ArrayLike, threshold: Threshold = None) -> dict[str, float]:
    """Headline metrics of a classifier: those of class 1 for two classes, macro-averaged one-vs-rest for more.

    For more than two classes, balanced accuracy is the mean recall of the classes present; MCC (R_K) and Cohen's kappa
    use the whole confusion matrix, the Brier score is summed over classes (0 to 2), and ECE compares the probability of
    the likeliest class with how often it is right. For multi-label data, accuracy is the share of correct ones among
    all N x C labels, balanced accuracy the mean over classes of (recall + specificity) / 2, and all others except
    micro averages are means over classes.

    ECE = sum over 10 equal-width bins of ``|sum of prob - number observed| / N``; bins include their upper edge. The
    log loss clips probabilities at 2.2e-16. Metrics that the labels leave undefined are NaN and excluded from averages,
    see :func:`per_class_metrics`; MCC and kappa need two classes among the labels.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for multi-label data.
        threshold: as in :func:`predicted_classes`.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``precision`` (PPV), ``recall`` (sensitivity), ``specificity``, ``npv``,
        ``f1``, ``mcc``, ``kappa``, ``roc_auc``, ``average_precision``, ``brier``, ``ece``, ``log_loss``; for more than
        two classes ``kappa_quadratic`` (classes ordered by severity), and for these and multi-label data
        ``roc_auc_micro`` and ``average_precision_micro`` (all classes in one ranking).

    Raises:
        ValueError: no rows, wrong shapes, labels outside 0..C-1, probabilities outside [0, 1] or not finite, or
            probabilities of exclusive classes that do not add up to 1.

    Example:
        >>> metrics = classification_metrics([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], [0, 0, 1, 1])
        >>> metrics["roc_auc"], metrics["recall"], round(metrics["brier"], 3)
        (0.75, 0.5, 0.225)

    Reference: Sokolova and Lapalme, A systematic analysis of performance measures for classification tasks, 2009;
    Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004; Guo et al., On
    calibration of modern neural networks, 2017. MONAI's ``compute_roc_auc`` makes the whole macro average NaN when one
    class is absent.
    """
    overall = weighted_metrics(prob, label, threshold)([[1]]).overall
    return {name: float(values[0]) for name, values in overall.items()}


def per_class_metrics(prob: ArrayLike, label: ArrayLike, threshold: Threshold = None) -> list[dict[str, float]]:
    """Metrics of each class against the rest, in class order.

    Whether a metric is defined depends on the labels alone, so two models are always averaged over the same classes:
    precision, recall, F1 and average precision are NaN without images of the class; specificity and NPV without images
    of other classes; ROC AUC and MCC without either. A class that is present but never predicted has a precision of 0
    (the rest an NPV of 0), as in scikit-learn.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for multi-label data.
        threshold: as in :func:`predicted_classes`.

    Returns:
        One dict per class: ``num_images`` of the class, ``precision``, ``recall``, ``specificity``, ``npv``, ``f1``,
        ``mcc``, ``roc_auc``, ``average_precision``, ``brier``.

    Raises:
        ValueError: as :func:`classification_metrics`.

    Example:
        >>> per_class_metrics([[0.9, 0.1], [0.4, 0.6]], [0, 0])[1]["specificity"]
        0.5
    """
    metrics = weighted_metrics(prob, label, threshold)
    per_class = metrics([[1]]).per_class
    return [
        {"num_images": int(num), **{name: float(values[k, 0]) for name, values in per_class.items()}}
        for k, num in enumerate(metrics.positive.sum(axis=0))
    ]


def weighted_metrics(
    prob: ArrayLike, label: ArrayLike, threshold: Threshold = None, group: NDArray[np.int64] | None = None
) -> WeightedMetrics:
    """Check the data and build what computes all metrics; ``group``: index of each row's group, None: a single one."""
    scores, truth = checked_predictions(prob, label)
    predicted = predicted_classes(scores, threshold, truth.ndim == 2)
    return WeightedMetrics(scores, truth, predicted, np.zeros(len(scores), np.int64) if group is None else group)


def checked_predictions(prob: ArrayLike, label: ArrayLike) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return probabilities (N, C) and labels (N,) or (N, C) as arrays, or raise a ValueError that names the problem."""
    scores, truth = np.asarray(prob, dtype=np.float64), np.asarray(label)
    if not scores.size:
        raise ValueError("metrics: wanted at least one row, got none")
    if scores.ndim != 2 or scores.shape[1] < 2 or truth.shape not in (scores.shape, scores.shape[:1]):
        raise ValueError(
            f"metrics: wanted prob (N, C >= 2) and label (N,) or (N, C), got {scores.shape} and {truth.shape}"
        )
    num = scores.shape[1]
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if bad.size:
        raise ValueError(f"metrics: prob must be finite, got {scores[bad[0]]} in row {bad[0]} ({bad.size} such rows)")
    if scores.min() < -1e-6 or scores.max() > 1 + 1e-6:
        raise ValueError(f"metrics: prob must lie in [0, 1], got {scores.min():g} to {scores.max():g} (logits?)")
    if truth.ndim == 2:
        if not np.isin(truth, (0, 1)).all():
            raise ValueError(f"metrics: multi-label data must be 0 or 1, got {np.unique(truth)[:9]}")
        return scores, truth.astype(np.int64)
    odd = np.flatnonzero(abs(scores.sum(axis=1) - 1) > 1e-3)
    if odd.size:
        raise ValueError(
            f"metrics: prob of exclusive classes must add up to 1, got {scores[odd[0]]} in row {odd[0]} ({odd.size} "
            "such rows); if the data are multi-label, use --multilabel and label (N, C)"
        )
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= num:
        raise ValueError(f"metrics: label must be integers in 0..{num - 1}, got {np.unique(truth)[:9]}")
    return scores, truth
