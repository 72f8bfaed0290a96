"""Choice of the decision threshold between two classes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.classification import checked_predictions


def choose_threshold(prob: ArrayLike, label: ArrayLike, rule: str = "youden") -> float | list[float] | None:
    """Choose the lowest probability for which the second of two classes, or each label of several, is predicted.

    Choose it on validation data, never on test data. Thresholds lie midway between neighboring scores (and between the
    outermost ones and 0 or 1), so a slightly different score falls on the same side. "youden" takes the highest
    sensitivity + specificity, "cost=5" the lowest ``5 * missed positives + false alarms``; ties go to the higher
    sensitivity. "sensitivity=0.95" takes the highest specificity among the thresholds with at least that sensitivity
    (the highest sensitivity if none reaches it: a positive scored 0), and on ties the higher sensitivity;
    "specificity=0.9" the other way round.

    Args:
        prob: (N, 2) probabilities; (N, C) for multi-label data.
        label: (N,) 0 or 1; (N, C) of 0 and 1 for multi-label data.
        rule: "youden"; "sensitivity=X" or "specificity=X" with X above 0 and at most 1; "cost=R" with R above 0, the
            number of false alarms that a missed positive is worth.

    Returns:
        The threshold, inside (0, 1); None if a class is absent. For multi-label data C thresholds, 0.5 for a label of
        all images or of none.

    Raises:
        ValueError: an unknown rule, not two classes, or as :func:`classification_metrics`.

    Example:
        >>> prob_ill = np.array([0.1, 0.2, 0.3, 0.4])
        >>> prob = np.stack([1 - prob_ill, prob_ill], 1)
        >>> round(choose_threshold(prob, [0, 0, 1, 1]), 2)
        0.25
        >>> round(choose_threshold(prob, [1, 0, 0, 1], "cost=0.1"), 2)
        0.35

    Reference: Youden, Index for rating diagnostic tests, Cancer, 1950.
    """
    name, target = check_rule(rule)
    scores, truth = checked_predictions(prob, label)
    if truth.ndim == 1:
        if scores.shape[1] != 2:
            raise ValueError(f"choose_threshold: wanted two classes or multi-label data, got {scores.shape[1]} classes")
        return _best_cut(scores[:, 1], truth, name, target)
    cuts = [_best_cut(score, column, name, target) for score, column in zip(scores.T, truth.T, strict=True)]
    return [0.5 if cut is None else cut for cut in cuts]


def check_rule(rule: str) -> tuple[str, float]:
    """Name and target of a rule of :func:`choose_threshold`; the target of "youden" is 0.

    Raises:
        ValueError: an unknown rule.

    Example:
        >>> check_rule("sensitivity=0.95")
        ('sensitivity', 0.95)
    """
    name, _, text = str(rule).partition("=")
    try:
        target = float(text or 0)
    except ValueError:
        target = -1
    highest = {"sensitivity": 1.0, "specificity": 1.0, "cost": math.inf}.get(name, 0)
    if rule == "youden" or (0 < target <= highest and target < math.inf):
        return name, target
    raise ValueError(
        "threshold rule: wanted youden, sensitivity=0.95, specificity=0.9 (above 0 to 1) or cost=5 (above 0), "
        f"got {rule!r}"
    )


def _best_cut(score: NDArray[np.float64], truth: NDArray[np.int64], name: str, target: float) -> float | None:
    """Threshold of one class; None without positive or without negative images."""
    num_positive = int(truth.sum())
    num_negative = len(truth) - num_positive
    if not num_positive or not num_negative:
        return None
    edges = np.unique(np.concatenate([[0.0], score.clip(0, 1), [1.0]]))
    thresholds = np.maximum((edges[:-1] + edges[1:]) / 2, np.nextafter(edges[:-1], 1))
    thresholds = thresholds[thresholds < 1]
    true_positive = num_positive - np.searchsorted(np.sort(score[truth == 1]), thresholds)
    true_negative = np.searchsorted(np.sort(score[truth == 0]), thresholds)
    order: tuple[np.ndarray, ...]  # sort keys, the last one first
    if name == "youden":
        order = true_positive, true_positive * num_negative + true_negative * num_positive
    elif name == "cost":
        order = true_positive, target * true_positive + true_negative
    else:
        rate, wanted, other = true_positive / num_positive, true_positive, true_negative
        if name == "specificity":
            rate, wanted, other = true_negative / num_negative, true_negative, true_positive
        reached = rate >= target
        order = (wanted, other, reached) if reached.any() else (other, wanted)
    return float(thresholds[np.lexsort(order)[-1]])
