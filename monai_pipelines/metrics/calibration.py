"""Whether probabilities mean what they say, and the one number that makes them do so."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit, softmax

from monai_pipelines.metrics.classification import checked_predictions
from monai_pipelines.metrics.weighted import bins_of

__all__ = ["fit_temperature", "reliability", "temper"]

TEMPERATURES = (0.05, 20.0)  # the lowest and the highest that is fitted
WILSON_Z = 1.959963984540054  # 97.5 % of a standard normal lie below


def fit_temperature(logits: ArrayLike, label: ArrayLike) -> float:
    """Fit the number by which logits are divided, so that probabilities tell how often the network is right.

    To be done on validation data, never on the test's. Minimises over T the negative log-likelihood of
    ``softmax(logits / T)``, or ``sigmoid(logits / T)`` of one logit and of several labels each. Which class is the
    likeliest stays the same. The target of the true class is (N + 1) / (N + 2), with the rest spread over the others:
    Platt's smoothing, by the number of all images in place of the class's, as one number is fitted to all. So a small
    set that is separated without a fault does not ask for infinite confidence. One number cannot mend classes that
    are called too often; see :func:`reliability`.

    Args:
        logits: (N, C), or (N, 1) for two classes.
        label: (N,) integers, or (N, C) of 0 and 1 for several labels each (one temperature for all).

    Returns:
        T in 0.05..20: above 1 for an over-confident network. 20 is also what logits get that tell nothing.

    Raises:
        ValueError: no rows, shapes that do not fit, labels that are no classes, logits that are not finite.

    Example:
        >>> logits = np.array([[8.0], [8.0], [8.0], [8.0], [-8.0], [-8.0], [-8.0], [-8.0]])
        >>> temperature = fit_temperature(logits, [1, 1, 1, 0, 0, 0, 0, 1])  # says 0.9997, is right in 6 of 8
        >>> round(temperature, 1)
        9.4
        >>> round(1 / (1 + math.exp(-8 / temperature)), 2)
        0.7

    Reference: Guo et al., On calibration of modern neural networks, ICML 2017; Platt, Probabilistic outputs for
    support vector machines, 1999 (the targets).
    """
    scores, truth = _checked_logits(logits, label)
    surely = (len(scores) + 1) / (len(scores) + 2)
    if truth.ndim == 2:
        target = np.where(truth == 1, surely, 1 - surely)

        def cost(log_temperature: float) -> float:
            scaled = scores * math.exp(-log_temperature)
            return -float((target * log_expit(scaled) + (1 - target) * log_expit(-scaled)).mean())
    else:
        own = truth[:, None] == np.arange(scores.shape[1])
        target = np.where(own, surely, (1 - surely) / (scores.shape[1] - 1))

        def cost(log_temperature: float) -> float:
            return -float((target * log_softmax(scores * math.exp(-log_temperature), axis=1)).sum(axis=1).mean())

    low, high = TEMPERATURES
    found = minimize_scalar(cost, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def temper(prob: ArrayLike, temperature: float, multilabel: bool = False) -> NDArray[np.float64]:
    """Probabilities as they would be, had the logits been divided by a temperature.

    ``p_k^(1/T) / sum_j p_j^(1/T)``; of several labels each the same for every label and its rest. Tempering by 1/T
    takes it back, as far as the probabilities are not rounded to 0 or 1.

    Args:
        prob: (N, C) probabilities.
        temperature: above 0; above 1 less certain, below 1 more certain.
        multilabel: each class by itself.

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


def reliability(prob: ArrayLike, label: ArrayLike, num_bins: int = 10) -> list[dict[str, float]]:
    """How often the network is right, where it says how sure it is: the points of a reliability diagram.

    For two classes the probability of the second against how often it is true; for more the confidence (the
    probability of the likeliest class) against how often that class is right; several labels each are pooled, every
    label of every image one point. The bins are of equal width, with their upper ends; empty ones are left out.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        num_bins: between 0 and 1.

    Returns:
        for each bin, in order: ``prob`` (mean), ``observed`` (share that is true), ``count``, and ``low``, ``high``:
        Wilson's 95 % interval of the observed share, which takes images for independent.

    Raises:
        ValueError: no bin, or as :func:`classification_metrics`.

    Example:
        >>> bins = reliability([[0.75, 0.25], [0.75, 0.25], [0.1, 0.9]], [0, 1, 1])
        >>> [(own["prob"], own["observed"], own["count"]) for own in bins]
        [(0.25, 0.5, 2), (0.9, 1.0, 1)]
        >>> round(bins[1]["low"], 3), bins[1]["high"]
        (0.207, 1.0)

    Reference: Guo et al., ICML 2017, section 2; Wilson, Probable inference, the law of succession, and statistical
    inference, 1927.
    """
    if num_bins < 1:
        raise ValueError(f"reliability: num_bins must be 1 or more, got {num_bins}")
    scores, truth = checked_predictions(prob, label)
    if truth.ndim == 2:
        stated, right = scores.ravel(), truth.ravel()
    elif scores.shape[1] == 2:
        stated, right = scores[:, 1], truth
    else:
        stated, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    place = bins_of(stated, num_bins)
    bins = []
    for own in np.unique(place):
        count, mean, share = int((place == own).sum()), float(stated[place == own].mean()), right[place == own].mean()
        low, high = _wilson(float(share), count)
        bins.append({"prob": mean, "observed": float(share), "count": count, "low": low, "high": high})
    return bins


def _wilson(share: float, count: int) -> tuple[float, float]:
    weight = WILSON_Z**2 / count
    centre = share + weight / 2
    half = WILSON_Z * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, (centre - half) / (1 + weight)), min(1.0, (centre + half) / (1 + weight))


def _checked_logits(logits: ArrayLike, label: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits (N, C >= 2) of exclusive classes and labels (N,), or of several labels each and labels (N, C)."""
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
    return scores, truth.astype(np.int64)
