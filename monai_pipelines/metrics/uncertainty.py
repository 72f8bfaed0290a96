"""Uncertainty of predictions, and what is gained by referring uncertain cases to somebody else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.classification import (
    Threshold,
    checked_predictions,
    classification_metrics,
    predicted_classes,
)


class RiskCoverage(NamedTuple):
    """Share of wrong cases among the most certain ones, for every number of them."""

    coverage: NDArray[np.float64]
    """(N,) share of the cases that is included: 1/N .. 1."""
    risk: NDArray[np.float64]
    """(N,) share of these that is wrong."""
    area: float
    """Under the curve (AURC), the mean of ``risk``: lower is better."""


def uncertainty(prob: ArrayLike, threshold: Threshold = None, multilabel: bool = False) -> NDArray[np.float64]:
    """Uncertainty of each prediction, from its probabilities; 0 is certain.

    1 minus the probability of the predicted class. With a threshold t, the odds are first divided by t / (1 - t), a
    shift on the logit scale that moves the threshold to 1/2; so cases nearest to the threshold are the most uncertain,
    at 1/2. For multi-label data the least certain label counts.

    Args:
        prob: (N, C) probabilities.
        threshold, multilabel: as in :func:`predicted_classes`.

    Returns:
        (N,) in [0, 1 - 1/C]; for two classes and multi-label data in [0, 1/2].

    Raises:
        ValueError: as :func:`predicted_classes`.

    Example:
        >>> uncertainty([[0.9, 0.1], [0.5, 0.5]]).round(2)
        array([0.1, 0.5])
        >>> uncertainty([[0.9, 0.1], [0.5, 0.5]], threshold=0.1).round(2)
        array([0.5, 0.1])
        >>> uncertainty([[0.7, 0.2, 0.1]]).round(2)
        array([0.3])
    """
    scores = np.asarray(prob, dtype=np.float64)
    if threshold is None and not multilabel:
        return 1 - scores.max(axis=1)
    predicted_classes(scores, threshold, multilabel)  # checks the threshold
    cut = np.asarray(0.5 if threshold is None else threshold, dtype=np.float64)
    positive, negative = (scores, 1 - scores) if multilabel else (scores[:, 1:], scores[:, :1])
    positive, negative = positive * (1 - cut), negative * cut
    both = positive + negative  # 0 where the probability and the threshold are both 0 or both 1
    return np.divide(np.minimum(positive, negative), both, out=np.full(both.shape, 0.5), where=both > 0).max(axis=1)


def risk_coverage(uncertainty: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """Share of wrong predictions among the most certain ones, for every number of them.

    The curve is averaged over all orders of equally uncertain cases.

    Args:
        uncertainty: (N,) any scale, higher is less certain.
        wrong: (N,) whether the prediction is wrong, or the share of an image's labels that is.

    Raises:
        ValueError: no cases, different lengths, or an uncertainty that is not finite.

    Example:
        >>> curve = risk_coverage([0.1, 0.2, 0.4, 0.4], [False, False, True, False])
        >>> curve.coverage.tolist(), curve.risk.round(3).tolist(), round(curve.area, 3)
        ([0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.167, 0.25], 0.104)

    Reference: Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
    """
    unsure, errors = np.asarray(uncertainty, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    if unsure.ndim != 1 or unsure.shape != errors.shape or not unsure.size or not np.isfinite(unsure).all():
        shapes = f"{unsure.shape} and {errors.shape}"
        raise ValueError(f"risk_coverage: wanted finite uncertainty (N >= 1,) and wrong (N,), got {shapes}")
    _, run, sizes = np.unique(unsure, return_inverse=True, return_counts=True)
    expected = np.repeat(np.bincount(run, errors) / sizes, sizes)
    num_included = np.arange(1, len(unsure) + 1)
    risk = expected.cumsum() / num_included
    return RiskCoverage(num_included / len(unsure), risk, float(risk.mean()))


def referral_table(
    uncertainty: ArrayLike,
    prob: ArrayLike,
    label: ArrayLike,
    fractions: Sequence[float] = (0, 0.05, 0.1, 0.2, 0.3, 0.5),
    threshold: Threshold = None,
) -> list[dict[str, float]]:
    """Metrics on the remaining cases when the most uncertain ones are referred to somebody else.

    Args:
        uncertainty: (N,) any scale, higher is less certain.
        prob: (N, C) probabilities.
        label: (N,) integers, or (N, C) of 0 and 1 for multi-label data.
        fractions: shares of the cases to be referred, in [0, 1), rounded up to whole cases; of equally uncertain ones
            the last.
        threshold: as in :func:`predicted_classes`.

    Returns:
        for each fraction ``referred`` (the fraction), ``num_left``, ``accuracy``, ``balanced_accuracy``, and for two
        classes ``recall`` and ``specificity`` of the remaining cases (see :func:`classification_metrics`).

    Raises:
        ValueError: a fraction outside [0, 1), different lengths, or as :func:`classification_metrics`.

    Example:
        >>> prob = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]]
        >>> [row["accuracy"] for row in referral_table([0.1, 0.4, 0.2, 0.1], prob, [0, 1, 1, 1], (0, 0.25))]
        [0.75, 1.0]
    """
    scores, truth = checked_predictions(prob, label)
    unsure = np.asarray(uncertainty, dtype=np.float64)
    if unsure.shape != (len(scores),) or any(not 0 <= fraction < 1 for fraction in fractions):
        raise ValueError(
            f"referral_table: wanted {len(scores)} uncertainties and fractions in [0, 1), "
            f"got {unsure.shape} and {fractions}"
        )
    order = np.argsort(unsure, kind="stable")
    names = ["accuracy", "balanced_accuracy"]
    if truth.ndim == 1 and scores.shape[1] == 2:
        names += ["recall", "specificity"]
    table = []
    for fraction in fractions:
        num_left = max(math.floor(len(scores) * (1 - fraction) + 1e-9), 1)
        left = np.sort(order[:num_left])
        metrics = classification_metrics(scores[left], truth[left], threshold=threshold)
        table.append({"referred": fraction, "num_left": num_left, **{name: metrics[name] for name in names}})
    return table
