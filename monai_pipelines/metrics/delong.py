"""DeLong's test: the difference between two areas under the ROC curve on the same images."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

from monai_pipelines.metrics.weighted import group_indices

_ROUNDING = 1e-12


class DeLong(NamedTuple):
    """Result of :func:`delong_test`; undefined values are NaN.

    Attributes:
        auc_a, auc_b: areas under the ROC curve.
        difference: ``auc_b - auc_a``.
        low, high: 95% interval of the difference.
        p: two-sided p value of no difference.
    """

    auc_a: float
    auc_b: float
    difference: float
    low: float
    high: float
    p: float


def delong_test(
    label: ArrayLike, score_a: ArrayLike, score_b: ArrayLike, groups: Sequence[Hashable] | None = None
) -> DeLong:
    """Compare the areas under the ROC curve of two scores of the same images.

    Each positive image has a share of negatives scored below it (a tie counts half), each negative a share of positives
    scored above it; the variance of the area follows from the variance of these shares. Images of one patient are
    correlated, so with ``groups`` the shares are first summed over each patient, and the variance is that between
    patients (Obuchowski); with one image per patient this is DeLong's test.

    Args:
        label: (N,) 0 or 1.
        score_a, score_b: (N,) of any scale, higher for 1.
        groups: (N,) patient of each image; None: one image per patient.

    Returns:
        the areas, their difference B - A with its 95% interval, and p. All are NaN if a class is absent; interval and p
        are NaN if a class has fewer than two patients, or if the areas differ and no share varies.

    Raises:
        ValueError: different lengths, labels other than 0 and 1, or scores that are not finite.

    Example:
        >>> result = delong_test([0, 0, 0, 1, 1, 1], [1, 4, 2, 3, 6, 5], [1, 2, 4, 5, 3, 6])
        >>> round(result.auc_a, 3), result.difference, result.p
        (0.889, 0.0, 1.0)

    Reference: DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated receiver operating
    characteristic curves, Biometrics, 1988. Obuchowski, Nonparametric analysis of clustered ROC curve data,
    Biometrics, 1997. Sun and Xu, Fast implementation of DeLong's algorithm, IEEE Signal Processing Letters, 2014.
    """
    truth, scores = np.asarray(label), np.array([score_a, score_b], dtype=np.float64)
    patient = np.arange(truth.size) if groups is None else group_indices(groups)
    if truth.ndim != 1 or scores.shape[1:] != truth.shape or patient.shape != truth.shape:
        raise ValueError(
            "delong_test: label, scores and groups must have one length, got "
            f"{truth.shape}, {scores.shape[1:]} and {patient.shape}"
        )
    if not np.isin(truth, (0, 1)).all() or not np.isfinite(scores).all():
        raise ValueError("delong_test: wanted labels 0 or 1 and finite scores")
    positive = truth == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return DeLong(*[math.nan] * 6)
    ranks = rankdata(scores, axis=1)
    above = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / num_negative
    below = 1 - (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / num_positive
    auc_a, auc_b = above.mean(axis=1)
    difference = float(auc_b - auc_a)
    spread = [
        np.bincount(patient[side], share[1] - share[0] - difference, patient.max() + 1) / side.sum()
        for side, share in ((positive, above), (~positive, below))
    ]
    counts = [len(np.unique(patients)) for patients in (patient[positive], patient[~positive], patient)]
    if min(counts[:2]) < 2:
        return DeLong(float(auc_a), float(auc_b), difference, math.nan, math.nan, math.nan)
    terms = (spread[0] ** 2).sum(), (spread[1] ** 2).sum(), 2 * (spread[0] * spread[1]).sum()
    error = math.sqrt(max(0, sum(term * num / (num - 1) for term, num in zip(terms, counts, strict=True))))
    if error > _ROUNDING:
        low, high = (max(-1.0, min(1.0, float(difference + z * error))) for z in norm.ppf((0.025, 0.975)))
        p = float(2 * norm.sf(abs(difference) / error))
    else:
        low, high, p = (difference, difference, 1.0) if abs(difference) <= _ROUNDING else (math.nan,) * 3
    return DeLong(float(auc_a), float(auc_b), difference, low, high, p)
