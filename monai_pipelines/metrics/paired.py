"""Paired comparison of two models on the same images: which metrics differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import norm, rankdata

from monai_pipelines.metrics.boxes import Detections, Lesions, checked_study
from monai_pipelines.metrics.class_summary import WITHOUT_UPPER_BOUND, ClassMetrics
from monai_pipelines.metrics.classification import classification_metrics
from monai_pipelines.metrics.confusion_counts import mean_of_defined
from monai_pipelines.metrics.detection import metrics_of_study
from monai_pipelines.metrics.intervals import bounds_of, over_resamples, resampled_metrics
from monai_pipelines.metrics.weighted import group_indices

_ROUNDING = 1e-12


def compare_predictions(
    prob_a: ArrayLike,
    prob_b: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable],
    threshold_a: float | Sequence[float] | None = None,
    threshold_b: float | Sequence[float] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences between two models in all metrics on the same images, with intervals and p values.

    Both models are scored on the same resampled patients, so what makes an image hard for both cancels. The 95%
    interval is ``difference +- t s``, cut at the largest possible difference, with s the standard deviation of the
    resampled differences times ``sqrt(n / (n - 1))`` for n patients, and t the quantile of Student's distribution with
    n - 1 degrees of freedom; p is the two-sided p value of ``difference / s``. Percentiles of the resamples are too
    narrow for few patients. Areas under the ROC curve are also compared by :func:`delong_test`. The calibration error
    is biased upwards on few images, and more so in resamples: its interval is approximate.

    Args:
        prob_a, prob_b: (N, C) probabilities of the models, rows in the same order.
        label: (N,) integers, or (N, C) of 0 and 1 for multi-label data.
        groups: (N,) group of each row (patients).
        threshold_a, threshold_b: of :func:`classification_metrics`.
        num_resamples, seed: of the bootstrap.

    Returns:
        ``metrics``: each metric of :func:`classification_metrics` -> ``a``, ``b``, ``difference`` (B - A), ``low``,
        ``high`` and ``p``. The last three are NaN if the metric is undefined, on the data or in more than half of the
        resamples, if it differs by the same amount in all of them, or for a single patient. ``delong``: the fields of
        :class:`DeLong` for class 1 of two, or for each of more classes.

    Raises:
        ValueError: different shapes, or as :func:`classification_metrics`.

    Example:
        >>> label = np.arange(40) % 2
        >>> good, bad = (np.clip(0.5 + s * (label - 0.5) + np.sin(np.arange(40)) / 3, 0, 1) for s in (0.5, 0.1))
        >>> a, b = np.stack([1 - bad, bad], 1), np.stack([1 - good, good], 1)
        >>> auc = compare_predictions(a, b, label, range(40), num_resamples=200)["metrics"]["roc_auc"]
        >>> auc["low"] > 0, auc["p"] < 0.05
        (True, True)

    Reference: Davison and Hinkley, Bootstrap methods and their application, 1997, chapter 5; Efron and
    Tibshirani, An introduction to the bootstrap, 1993, chapter 12.
    """
    scores, truth = [np.asarray(prob, dtype=np.float64) for prob in (prob_a, prob_b)], np.asarray(label)
    if scores[0].shape != scores[1].shape:
        raise ValueError(
            f"compare_predictions: prob_a and prob_b must have one shape, got {scores[0].shape} and {scores[1].shape}"
        )
    (a, boot_a), (b, boot_b) = (
        (classification_metrics(prob, truth, t), resampled_metrics(prob, truth, groups, t, num_resamples, seed))
        for prob, t in zip(scores, (threshold_a, threshold_b), strict=True)
    )
    positive = truth == 1 if truth.ndim == 2 else truth[:, None] == np.arange(scores[0].shape[1])
    classes = [1] if positive.shape[1] == 2 and truth.ndim == 1 else range(positive.shape[1])
    num = len(set(groups))
    bounds = bounds_of(multiclass=len(classes) > 1 and truth.ndim == 1)
    metrics = {}
    for name in a:
        low, high = bounds.get(name, (0, 1))
        difference = _difference(b[name] - a[name], boot_b[name] - boot_a[name], num, high - low)
        metrics[name] = {"a": a[name], "b": b[name], **difference}
    return {
        "metrics": metrics,
        "delong": [delong_test(positive[:, k], scores[0][:, k], scores[1][:, k], groups)._asdict() for k in classes],
    }


def compare_detections(
    found_a: Sequence[Detections],
    found_b: Sequence[Detections],
    lesions: Sequence[Lesions],
    groups: Sequence[Hashable] | None = None,
    *,
    num_classes: int = 1,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Differences between two detectors in all metrics on the same images, as those of :func:`compare_predictions`.

    Args:
        found_a, found_b: of the detectors, one for each image.
        lesions: of each image.
        groups: patient of each image; None: one image per patient.
        num_classes: labels are 0..C-1.
        num_resamples, seed: of the bootstrap.

    Returns:
        each metric of :func:`detection_metrics` -> ``a``, ``b``, ``difference`` (B - A), ``low``, ``high`` and ``p``;
        NaN where undefined.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> lesions = [Lesions([[0, 0, 8, 8]]), Lesions([])] * 20
        >>> good = [Detections([[1, 0, 9, 8]], [0.9]), Detections([[40, 0, 48, 8]], [0.3])] * 20
        >>> bad = [Detections([[1, 0, 9, 8]], [0.2 + 0.1 * (k % 3)]) for k in range(40)]
        >>> cpm = compare_detections(bad, good, lesions, num_resamples=200)["cpm"]
        >>> cpm["b"], cpm["low"] > 0
        (1.0, True)
    """
    a, b = (checked_study(found, lesions, groups, num_classes) for found in (found_a, found_b))
    num = a.num_groups
    differences = {}
    for metrics_a, metrics_b in zip(metrics_of_study(a), metrics_of_study(b), strict=True):
        (values_a, boot_a), (values_b, boot_b) = (
            _with_resamples(metrics, num, num_resamples, seed) for metrics in (metrics_a, metrics_b)
        )
        for name, in_a in values_a.items():
            in_b, largest = values_b[name], math.inf if name in WITHOUT_UPPER_BOUND else 1
            difference = _difference(in_b - in_a, boot_b[name] - boot_a[name], num, largest)
            differences[name] = {"a": in_a, "b": in_b, **difference}
    return differences


def _with_resamples(
    metrics: ClassMetrics, num_groups: int, num_resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Means over the classes: of the data, and of each resample."""
    values = metrics(np.ones((num_groups, 1)))
    parts = over_resamples(metrics, num_groups, num_resamples, seed)
    return (
        {name: float(mean_of_defined(of_class)[0]) for name, of_class in values.items()},
        {name: mean_of_defined(np.concatenate([part[name] for part in parts], axis=1)) for name in values},
    )


def _difference(value: float, resamples: NDArray[np.float64], num_groups: int, largest: float) -> dict[str, float]:
    """Interval and p value of a difference that lies in -largest..largest."""
    defined = resamples[np.isfinite(resamples)]
    low = high = p = math.nan
    if not math.isnan(value) and 2 * len(defined) >= len(resamples) and num_groups > 1:
        error = float(defined.std()) * math.sqrt(num_groups / (num_groups - 1))
        if error > _ROUNDING:
            reach = float(stdtrit(num_groups - 1, 0.975)) * error
            low, high = max(-largest, value - reach), min(largest, value + reach)
            p = 2 * float(stdtr(num_groups - 1, -abs(value) / error))
        elif abs(value) <= _ROUNDING:
            low, high, p = value, value, 1.0
    return {"difference": value, "low": low, "high": high, "p": p}


class DeLong(NamedTuple):
    """Result of :func:`delong_test`; undefined values are NaN."""

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
        the areas, their difference B - A with its 95% interval, and the two-sided p value of no difference. All are
        NaN if a class is absent; interval and p if a class has fewer than two patients, or if the areas differ and no
        share varies.

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
