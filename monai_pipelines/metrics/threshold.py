"""Where to draw the line between two classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from monai_pipelines.metrics.classification import checked_predictions

__all__ = ["check_rule", "choose_threshold"]


def choose_threshold(prob: ArrayLike, label: ArrayLike, rule: str = "youden") -> float | None:
    """Choose the probability from which the second of two classes is predicted.

    To be done on validation data, never on the test's. Thresholds lie midway between neighbouring scores (and between
    the outermost ones and 0 or 1), so an image scored a little differently falls on the same side. "youden" takes the
    highest sensitivity + specificity and, among equals, the higher sensitivity. "sensitivity=0.95" takes the highest
    specificity among the thresholds of at least that sensitivity (the highest sensitivity where none reaches it: a
    positive scored 0), and among equals the higher sensitivity; "specificity=0.9" the other way round.

    Args:
        prob: (N, 2) probabilities.
        label: (N,) 0 or 1.
        rule: "youden", "sensitivity=X" or "specificity=X" with X above 0 and at most 1.

    Returns:
        The threshold, inside (0, 1); None where one of the classes is absent.

    Raises:
        ValueError: another rule, not two classes, or as :func:`classification_metrics`.

    Example:
        >>> prob_ill = np.array([0.1, 0.2, 0.3, 0.4])
        >>> round(choose_threshold(np.stack([1 - prob_ill, prob_ill], 1), [0, 0, 1, 1]), 2)
        0.25

    Reference: Youden, Index for rating diagnostic tests, Cancer, 1950.
    """
    name, target = check_rule(rule)
    scores, truth = checked_predictions(prob, label, 2)
    if truth.ndim != 1:
        raise ValueError("choose_threshold: wanted label (N,), got several labels each, which have no common threshold")
    num_positive = int(truth.sum())
    num_negative = len(truth) - num_positive
    if not num_positive or not num_negative:
        return None
    edges = np.unique(np.concatenate([[0.0], scores[:, 1].clip(0, 1), [1.0]]))
    thresholds = np.maximum((edges[:-1] + edges[1:]) / 2, np.nextafter(edges[:-1], 1))
    thresholds = thresholds[thresholds < 1]
    found = num_positive - np.searchsorted(np.sort(scores[truth == 1, 1]), thresholds)  # true positives
    spared = np.searchsorted(np.sort(scores[truth == 0, 1]), thresholds)  # true negatives
    if name == "youden":
        order: tuple[np.ndarray, ...] = (found, found * num_negative + spared * num_positive)
    else:
        rate, wanted, other = found / num_positive, found, spared
        if name == "specificity":
            rate, wanted, other = spared / num_negative, spared, found
        reached = rate >= target
        order = (wanted, other, reached) if reached.any() else (other, wanted)
    return float(thresholds[np.lexsort(order)[-1]])


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
    if rule == "youden" or (name in ("sensitivity", "specificity") and 0 < target <= 1):
        return name, target
    raise ValueError(f"threshold rule: wanted youden, sensitivity=0.95 or specificity=0.9 (above 0 to 1), got {rule!r}")
