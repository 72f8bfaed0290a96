"""Choice of the decision threshold between two classes, and the net benefit of acting at each."""

from __future__ import annotations

import math
from typing import Any

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


def net_benefit(
    prob: ArrayLike, label: ArrayLike, thresholds: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Net benefit of treating those predicted positive, and of treating all: a decision curve.

    ``true positives / N - false positives / N * t / (1 - t)``: treating at a probability of t or more implies that a
    miss is (1 - t) / t times as bad as a false alarm. Treating nobody has a net benefit of 0 at every t. The
    probabilities should be calibrated.

    Args:
        prob: (N,) probability of the positive class.
        label: (N,) 0 or 1.
        thresholds: (T,) in [0, 1); probabilities at or above are positive.

    Returns:
        (T,) of the model and (T,) of treating all, in true positives per case.

    Raises:
        ValueError: no rows, different lengths, labels other than 0 and 1, values outside their ranges.

    Example:
        >>> model, treat_all = net_benefit([0.1, 0.4, 0.8, 0.9], [0, 0, 1, 1], [0.2, 0.5])
        >>> model.round(4), treat_all.round(4)
        (array([0.4375, 0.5   ]), array([0.375, 0.   ]))

    Reference: Vickers and Elkin, Decision curve analysis: a novel method for evaluating prediction models, Medical
    Decision Making, 2006.
    """
    score, truth, cuts = np.asarray(prob, dtype=np.float64), np.asarray(label), np.asarray(thresholds, dtype=np.float64)
    if score.ndim != 1 or not score.size or truth.shape != score.shape or cuts.ndim != 1:
        shapes = f"{score.shape}, {truth.shape} and {cuts.shape}"
        raise ValueError(f"net_benefit: wanted prob (N >= 1,), label (N,) and thresholds (T,), got {shapes}")
    if (
        not np.isin(truth, (0, 1)).all()
        or not ((score >= -1e-6) & (score <= 1 + 1e-6)).all()
        or not ((cuts >= 0) & (cuts < 1)).all()
    ):
        raise ValueError("net_benefit: label must be 0 or 1, prob in [0, 1] and thresholds in [0, 1)")
    score, num, num_positive = score.clip(0, 1), len(score), int(truth.sum())
    true_positive, false_positive = _called(score, truth, cuts)
    odds = cuts / (1 - cuts)
    return (true_positive - false_positive * odds) / num, (num_positive - (num - num_positive) * odds) / num


def _best_cut(score: NDArray[np.float64], truth: NDArray[np.int64], name: str, target: float) -> float | None:
    """Threshold of one class; None without positive or without negative images."""
    num_positive = int(truth.sum())
    num_negative = len(truth) - num_positive
    if not num_positive or not num_negative:
        return None
    edges = np.unique(np.concatenate([[0.0], score.clip(0, 1), [1.0]]))
    thresholds = np.maximum((edges[:-1] + edges[1:]) / 2, np.nextafter(edges[:-1], 1))
    thresholds = thresholds[thresholds < 1]
    true_positive, false_positive = _called(score, truth, thresholds)
    true_negative = num_negative - false_positive
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


def _called(score: NDArray[np.float64], truth: NDArray[Any], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of positive and of negative rows at or above each threshold, (2, T)."""
    sides = (np.sort(score[truth == 1]), np.sort(score[truth == 0]))
    return np.stack([len(side) - np.searchsorted(side, thresholds) for side in sides])
