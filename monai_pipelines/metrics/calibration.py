"""Calibration of probabilities: reliability diagram and temperature scaling."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit, softmax
from scipy.stats import binomtest

from monai_pipelines.metrics.calibration_error import bin_indices
from monai_pipelines.metrics.classification import checked_predictions

TEMPERATURES = (0.05, 20.0)  # lowest and highest


def fit_temperature(logits: ArrayLike, label: ArrayLike) -> float:
    """Fit the temperature that logits are divided by, so that probabilities match how often the network is right.

    Fit it on validation data, never on test data. Minimizes over T the negative log-likelihood of
    ``softmax(logits / T)``, or of ``sigmoid(logits / T)`` for one logit and for multi-label data. The likeliest class
    does not change. The target of the true class is (N + 1) / (N + 2), the remainder is spread over the others: Platt's
    smoothing, with the number of all images in place of the class's, because one number is fitted to all. So a small,
    perfectly separated set does not lead to infinite confidence. A temperature cannot correct classes that are
    predicted too often; see :func:`reliability`.

    Args:
        logits: (N, C), or (N, 1) for two classes.
        label: (N,) integers, or (N, C) of 0 and 1 for multi-label data (one temperature for all).

    Returns:
        T in 0.05..20: above 1 for an over-confident network. Uninformative logits also give 20.

    Raises:
        ValueError: no rows, mismatched shapes, labels outside the classes, logits that are not finite.

    Example:
        >>> logits = np.array([[8.0], [8.0], [8.0], [8.0], [-8.0], [-8.0], [-8.0], [-8.0]])
        >>> temperature = fit_temperature(logits, [1, 1, 1, 0, 0, 0, 0, 1])  # claims 0.9997, is right in 6 of 8
        >>> round(temperature, 1)
        9.4
        >>> round(1 / (1 + math.exp(-8 / temperature)), 2)
        0.7

    Reference: Guo et al., On calibration of modern neural networks, ICML 2017; Platt, Probabilistic outputs for
    support vector machines, 1999 (the targets).
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(label)
    if scores.ndim != 2 or not scores.size or truth.shape not in (scores.shape, scores.shape[:1]):
        shapes = f"{scores.shape} and {truth.shape}"
        raise ValueError(f"fit_temperature: wanted logits (N >= 1, C) and label (N,) or (N, C), got {shapes}")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores).all(axis=1)).sum())
        raise ValueError(f"fit_temperature: logits must be finite, got {bad} rows that are not")
    if truth.ndim == 1 and scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    num = 2 if truth.ndim == 2 else scores.shape[1]
    if not np.isin(truth, np.arange(num)).all():
        raise ValueError(f"fit_temperature: label must be integers in 0..{num - 1}, got {np.unique(truth)[:9]}")
    smoothed = (len(scores) + 1) / (len(scores) + 2)
    if truth.ndim == 2:
        target = np.where(truth == 1, smoothed, 1 - smoothed)

        def cost(log_temperature: float) -> float:
            scaled = scores * math.exp(-log_temperature)
            return -float((target * log_expit(scaled) + (1 - target) * log_expit(-scaled)).mean())
    else:
        positive = truth[:, None] == np.arange(scores.shape[1])
        target = np.where(positive, smoothed, (1 - smoothed) / (scores.shape[1] - 1))

        def cost(log_temperature: float) -> float:
            return -float((target * log_softmax(scores * math.exp(-log_temperature), axis=1)).sum(axis=1).mean())

    low, high = TEMPERATURES
    fit = minimize_scalar(cost, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-6})
    return math.exp(fit.x)


def temper(prob: ArrayLike, temperature: float, multilabel: bool = False) -> NDArray[np.float64]:
    """Apply a temperature to probabilities, as if the logits had been divided by it.

    ``p_k^(1/T) / sum_j p_j^(1/T)``; for multi-label data, the same for each label against its complement. Tempering by
    1/T reverses it, except for probabilities rounded to 0 or 1.

    Args:
        prob: (N, C) probabilities.
        temperature: above 0; values above 1 make probabilities less certain, below 1 more certain.
        multilabel: classes are not exclusive.

    Returns:
        (N, C).

    Raises:
        ValueError: the temperature is not above 0.

    Example:
        >>> temper([[0.9, 0.1]], 2).round(2)
        array([[0.75, 0.25]])
        >>> temper([[0.9, 0.5]], 2, multilabel=True).round(2)
        array([[0.75, 0.5 ]])
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temper: temperature must be above 0 and finite, got {temperature}")
    scores = np.asarray(prob, dtype=np.float64)
    if multilabel:
        return expit(logit(scores) / temperature)
    with np.errstate(divide="ignore"):  # a probability of 0 stays 0
        return softmax(np.log(scores) / temperature, axis=1)


def reliability(prob: ArrayLike, label: ArrayLike) -> list[dict[str, float]]:
    """Compare stated probabilities with observed frequencies: the points of a reliability diagram.

    For two classes, the probability of the second against how often it is true; for more, the confidence (the
    probability of the likeliest class) against how often that class is right; for multi-label data all labels of all
    images are pooled. The ten bins have equal width and include their upper edge; empty ones are left out.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for multi-label data.

    Returns:
        for each bin, in order: ``prob`` (mean), ``observed`` (share that is true), ``count``, and ``low``, ``high``:
        Wilson's 95% interval of the observed share, which treats images as independent.

    Raises:
        ValueError: as :func:`classification_metrics`.

    Example:
        >>> bins = reliability([[0.75, 0.25], [0.75, 0.25], [0.1, 0.9]], [0, 1, 1])
        >>> [(point["prob"], point["observed"], point["count"]) for point in bins]
        [(0.25, 0.5, 2), (0.9, 1.0, 1)]
        >>> round(bins[1]["low"], 3), bins[1]["high"]
        (0.207, 1.0)

    Reference: Guo et al., ICML 2017, section 2; Wilson, Probable inference, the law of succession, and statistical
    inference, 1927.
    """
    scores, truth = checked_predictions(prob, label)
    if truth.ndim == 2:
        stated, correct = scores.ravel(), truth.ravel()
    elif scores.shape[1] == 2:
        stated, correct = scores[:, 1], truth
    else:
        stated, correct = scores.max(axis=1), scores.argmax(axis=1) == truth
    indices = bin_indices(stated)
    points = []
    for index in np.unique(indices):
        inside = indices == index
        count, share = int(inside.sum()), correct[inside]
        low, high = binomtest(int(share.sum()), count).proportion_ci(method="wilson")
        observed = {"observed": float(share.mean()), "count": count, "low": float(low), "high": float(high)}
        points.append({"prob": float(stated[inside].mean()), **observed})
    return points
