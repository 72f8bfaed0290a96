"""Which cases a classifier is unsure of, and what is gained by leaving these to somebody else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.classification import Threshold, checked_predictions, classification_metrics

__all__ = ["RiskCoverage", "referral_table", "risk_coverage", "uncertainty"]


class RiskCoverage(NamedTuple):
    """Share of wrong cases among those kept, from the most certain case to all of them."""

    coverage: NDArray[np.float64]
    """(N,) share of the cases that is kept: 1/N .. 1."""
    risk: NDArray[np.float64]
    """(N,) share of these that is wrong."""
    area: float
    """Under the curve (AURC), the mean of ``risk``: lower is better."""


def uncertainty(prob: ArrayLike, threshold: Threshold = None, multilabel: bool = False) -> NDArray[np.float64]:
    """How unsure each prediction is, from its probabilities: 0 is certain.

    1 minus the probability of the predicted class. Where a threshold t decides, the odds are first divided by
    t / (1 - t), a shift on the logit scale that moves the threshold to 1/2; so those nearest to the threshold are the
    most uncertain, at 1/2. Of several labels each the least certain label counts.

    Args:
        prob: (N, C) probabilities.
        threshold: probability in [0, 1] from which the second of two classes is predicted, or each of several labels
            (one for all, or one for each); None: 1/2.
        multilabel: each class by itself.

    Returns:
        (N,) in [0, 1 - 1/C]; for two classes and several labels each in [0, 1/2].

    Raises:
        ValueError: a threshold for more than two classes, of a wrong number, or outside [0, 1].

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
    cut = np.asarray(0.5 if threshold is None else threshold, dtype=np.float64)
    wanted = ((), (scores.shape[1],)) if multilabel else ((),)
    if (scores.shape[1] != 2 and not multilabel) or cut.shape not in wanted or not ((cut >= 0) & (cut <= 1)).all():
        kind = f"{scores.shape[1]} labels each" if multilabel else f"{scores.shape[1]} classes"
        raise ValueError(
            f"uncertainty: wanted a threshold in [0, 1] for two classes or labels, got {threshold} for {kind}"
        )
    own, rest = (scores, 1 - scores) if multilabel else (scores[:, 1:], scores[:, :1])
    own, rest = own * (1 - cut), rest * cut
    both = own + rest  # 0 where the probability and the threshold are both 0 or both 1
    return np.divide(np.minimum(own, rest), both, out=np.full(both.shape, 0.5), where=both > 0).max(axis=1)


def risk_coverage(uncertainty: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """Share of wrong predictions among the most certain ones, for every number of them.

    Of equally uncertain cases none is preferred: the curve is the mean over their orders.

    Args:
        uncertainty: (N,) any scale, higher is less certain.
        wrong: (N,) whether the prediction is wrong, or the share of an image's labels that is.

    Raises:
        ValueError: no cases, lengths that differ, or an uncertainty that is not finite.

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
    kept = np.arange(1, len(unsure) + 1)
    risk = expected.cumsum() / kept
    return RiskCoverage(kept / len(unsure), risk, float(risk.mean()))


def referral_table(
    uncertainty: ArrayLike,
    prob: ArrayLike,
    label: ArrayLike,
    fractions: Sequence[float] = (0, 0.05, 0.1, 0.2, 0.3, 0.5),
    threshold: Threshold = None,
) -> list[dict[str, float]]:
    """How good the classifier is on what is left when the most uncertain cases are referred to somebody else.

    Args:
        uncertainty: (N,) any scale, higher is less certain.
        prob: (N, C) probabilities.
        label: (N,) integers, or (N, C) of 0 and 1 for several labels each.
        fractions: shares of the cases to be referred, in [0, 1); as many cases as reach the share, of equally
            uncertain ones the last.
        threshold: as in :func:`predicted_classes`.

    Returns:
        for each fraction ``referred`` (the fraction), ``num_left``, ``accuracy``, ``balanced_accuracy``, and for two
        classes ``recall`` and ``specificity``, of what is left (see :func:`classification_metrics`).

    Raises:
        ValueError: a fraction outside [0, 1), lengths that differ, or as :func:`classification_metrics`.

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
        num_left = math.floor(len(scores) * (1 - fraction) + 1e-9)
        kept = np.sort(order[: max(num_left, 1)])
        figures = classification_metrics(scores[kept], truth[kept], threshold=threshold)
        table.append({"referred": fraction, "num_left": len(kept), **{name: figures[name] for name in names}})
    return table
