"""Where to draw the line between two classes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.classification import checked_predictions

__all__ = ["check_rule", "choose_threshold"]


def choose_threshold(prob: ArrayLike, label: ArrayLike, rule: str = "youden") -> float | list[float] | None:
    """Choose the probability from which the second of two classes is predicted, or each of several labels.

    To be done on validation data, never on the test's. Thresholds lie midway between neighbouring scores (and between
    the outermost ones and 0 or 1), so an image scored a little differently falls on the same side. "youden" takes the
    highest sensitivity + specificity, "cost=5" the lowest ``5 * missed positives + false alarms``; among equals the
    higher sensitivity. "sensitivity=0.95" takes the highest specificity among the thresholds of at least that
    sensitivity (the highest sensitivity where none reaches it: a positive scored 0), and among equals the higher
    sensitivity; "specificity=0.9" the other way round.

    Args:
        prob: (N, 2) probabilities; (N, C) of several labels each.
        label: (N,) 0 or 1; (N, C) of 0 and 1 for several labels each.
        rule: "youden"; "sensitivity=X" or "specificity=X" with X above 0 and at most 1; "cost=R" with R above 0, how
            many false alarms a missed positive is worth.

    Returns:
        The threshold, inside (0, 1); None where one of the classes is absent. Of several labels each C thresholds,
        0.5 for a label that is on all images or on none.

    Raises:
        ValueError: another rule, not two classes, or as :func:`classification_metrics`.

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
    scores, truth = checked_predictions(prob, label, 2 if np.ndim(label) == 1 else None)
    if truth.ndim == 1:
        return _best_cut(scores[:, 1], truth, name, target)
    cuts = [_best_cut(score, own, name, target) for score, own in zip(scores.T, truth.T, strict=True)]
    return [0.5 if cut is None else cut for cut in cuts]


def check_rule(rule: str) -> tuple[str, float]:
    """Name and target of a rule of :func:`choose_threshold`; the target of "youden" is 0.

    Raises:
        ValueError: no such rule.

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
    """Of one class; None where it or its rest is absent."""
    num_positive = int(truth.sum())
    num_negative = len(truth) - num_positive
    if not num_positive or not num_negative:
        return None
    edges = np.unique(np.concatenate([[0.0], score.clip(0, 1), [1.0]]))
    thresholds = np.maximum((edges[:-1] + edges[1:]) / 2, np.nextafter(edges[:-1], 1))
    thresholds = thresholds[thresholds < 1]
    found = num_positive - np.searchsorted(np.sort(score[truth == 1]), thresholds)  # true positives
    spared = np.searchsorted(np.sort(score[truth == 0]), thresholds)  # true negatives
    order: tuple[np.ndarray, ...]  # the last is looked at first
    if name == "youden":
        order = found, found * num_negative + spared * num_positive
    elif name == "cost":
        order = found, target * found + spared
    else:
        rate, wanted, other = found / num_positive, found, spared
        if name == "specificity":
            rate, wanted, other = spared / num_negative, spared, found
        reached = rate >= target
        order = (wanted, other, reached) if reached.any() else (other, wanted)
    return float(thresholds[np.lexsort(order)[-1]])
