"""Net benefit of acting on a classifier, over all trade-offs between a miss and a false alarm."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    true_positive = num_positive - np.searchsorted(np.sort(score[truth == 1]), cuts)
    false_positive = num - num_positive - np.searchsorted(np.sort(score[truth == 0]), cuts)
    odds = cuts / (1 - cuts)
    return (true_positive - false_positive * odds) / num, (num_positive - (num - num_positive) * odds) / num
