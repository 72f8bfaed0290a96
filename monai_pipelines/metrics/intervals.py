"""Confidence intervals of metrics, for images clustered by patient."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, stdtrit

from monai_pipelines.metrics.classification import Threshold, weighted_metrics
from monai_pipelines.metrics.weighted import MetricValues, WeightedMetrics, group_indices

LEVEL = 0.95
CHUNK = 16  # resamples at a time: a row of their weights fills two cache lines
BOUNDS: dict[str, tuple[float, float]] = {
    "mcc": (-1, 1),
    "kappa": (-1, 1),
    "kappa_quadratic": (-1, 1),
    "log_loss": (0, math.inf),
}
LOGARITHMIC = ("brier", "log_loss")
OF_ALL_ROWS = ("accuracy", "brier", "log_loss", "ece")
OF_CLASS = ("precision", "recall", "f1", "average_precision", "average_precision_micro")
OF_REST = ("specificity", "npv")
OF_PREDICTED = ("precision", "npv")

Array = NDArray[np.float64]
Interval = tuple[float, float]
Result = TypeVar("Result")


class Intervals(NamedTuple):
    """(low, high) of metrics, overall and of each class; metrics without an interval are left out."""

    metrics: dict[str, Interval]
    """name -> (low, high), for the metrics of :func:`classification_metrics`"""
    per_class: list[dict[str, Interval]]
    """the same for each class, for the metrics of :func:`per_class_metrics`"""


def bounds_of(multiclass: bool) -> dict[str, Interval]:
    """Lowest and highest value of the metrics that do not lie in 0..1; multiclass: of one label among three or more."""
    return {**BOUNDS, "brier": (0, 2)} if multiclass else BOUNDS


def metric_intervals(
    prob: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable],
    threshold: Threshold = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """95% bootstrap intervals of all metrics, resampling whole groups (patients) with replacement.

    Images of one patient are correlated; resampling images instead of patients makes intervals too narrow. With s, the
    standard deviation of a metric x over the resamples, and t, the quantile of Student's distribution, an interval is
    ``expit(logit(x) +- t s / (x (1 - x)))`` (MCC and kappas scaled to 0..1 first), and ``x exp(+-t s / x)`` for Brier
    score and log loss. Degrees of freedom are the number of relevant patients minus one: all of them for accuracy,
    Brier score, log loss and ECE; those with images of the class for recall, F1 and average precision; those with other
    images for specificity; those with images predicted as the class for precision, and as another for NPV; the fewer of
    those with the class and with others for the rest. For averages it is the mean over the classes where the metric is
    defined. Percentiles of the resamples are too narrow for a hundred patients, above all near 0 and 1 and for rare
    classes.

    A metric of 0 or 1 gets the exact (Clopper-Pearson) interval of as many patients, all wrong or all right. ECE is
    biased upwards by chance; its interval runs from ``ECE - q``, with q the quantile of the summed absolute errors of
    the bins, to ``ECE + t s``: conservative, and down to 0 if the model may well be calibrated.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for multi-label data.
        groups: (N,) group of each row.
        threshold: as in :func:`predicted_classes`.
        num_resamples, seed: of the bootstrap; 2 resamples or more.

    Returns:
        Intervals of the overall metrics and of those of each class. A metric is left out if it is undefined in more
        than half of the resamples (a class is absent), does not vary, or rests on fewer than two patients.

    Raises:
        ValueError: different lengths, too few resamples, or as :func:`classification_metrics`.

    Example:
        >>> label, patients = [0, 1] * 20, np.arange(40) // 2
        >>> prob = np.eye(2)[[0, 1, 0, 1, 0, 0, 1, 1] * 5]
        >>> low, high = metric_intervals(prob, label, patients).metrics["accuracy"]
        >>> f"{low:.2f} to {high:.2f}"
        '0.61 to 0.85'

    Reference: Efron and Tibshirani, An introduction to the bootstrap, 1993, chapters 12 and 13 (standard intervals on a
    transformed scale); Davison and Hinkley, Bootstrap methods and their application, 1997, section 3.8 (clusters).
    """
    metrics = weighted_metrics(prob, label, threshold, _checked_groups(groups, prob, label))
    num_groups = metrics.num_groups
    values, resamples = metrics(np.ones((num_groups, 1))), _resampled(metrics, num_resamples, seed)
    sides = np.array([_sides(rows, metrics.group) for rows in (metrics.positive, metrics.predicted)])
    averaged = sides[:, 1:] if metrics.micro is None else sides
    bounds = bounds_of(multiclass=metrics.micro is not None and not metrics.multilabel)
    overall = _intervals(values.overall, resamples.overall, bounds, averaged, num_groups)
    if (ece := float(values.overall["ece"][0])) and "ece" in overall:
        errors = np.abs(resamples.gaps - values.gaps).sum(axis=0)
        reach = float(resamples.overall["ece"].std(ddof=1)) * _quantile(num_groups)
        overall["ece"] = max(0.0, ece - float(np.quantile(errors, (1 + LEVEL) / 2))), min(1.0, ece + reach)
    per_class = [
        _intervals(_of_class(values, k), _of_class(resamples, k), BOUNDS, sides[:, [k]], num_groups)
        for k in range(sides.shape[1])
    ]
    return Intervals(overall, per_class)


def resampled_metrics(
    prob: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable],
    threshold: Threshold = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Metrics of bootstrap resamples of whole groups (patients).

    Resamples depend only on the seed and the order of the groups: two models on the same images get the same
    resamples, so their differences form a paired bootstrap.

    Args:
        prob, label, groups, threshold, num_resamples, seed: as in :func:`metric_intervals`.

    Returns:
        The metrics of :func:`classification_metrics`: name -> (num_resamples,), NaN where undefined.

    Raises:
        ValueError: as :func:`metric_intervals`.

    Example:
        >>> resamples = resampled_metrics([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], "abc", num_resamples=3)
        >>> resamples["accuracy"].round(2).tolist()
        [0.67, 0.33, 0.67]
    """
    metrics = weighted_metrics(prob, label, threshold, _checked_groups(groups, prob, label))
    return _resampled(metrics, num_resamples, seed).overall


def mean_interval(values: ArrayLike, groups: Sequence[Hashable]) -> Interval | None:
    """95% interval of the mean of values in [0, 1] from whole groups (patients).

    As in :func:`metric_intervals`, with ``s^2 = sum over groups of (sum of (x - mean))^2 / N^2`` in place of resamples.

    Args:
        values: (N,) in [0, 1].
        groups: (N,) group of each value.

    Returns:
        (low, high); None for a single group.

    Raises:
        ValueError: different lengths.

    Example:
        >>> low, high = mean_interval([0.6, 0.7, 0.9, 0.9], "aabc")
        >>> f"{low:.2f} to {high:.2f}"
        '0.25 to 0.97'
    """
    scores = np.asarray(values, dtype=np.float64)
    group = _checked_groups(groups, scores)
    mean, sums = float(scores.mean()), np.bincount(group, scores - scores.mean())
    return interval_from_std(mean, math.sqrt((sums**2).sum()) / len(scores), len(sums))


def interval_from_std(
    value: float, std: float, num_groups: float, bounds: Interval = (0, 1), logarithmic: bool = False
) -> Interval | None:
    """95% interval of a metric from its standard deviation over resamples of whole groups (patients).

    The t interval of :func:`metric_intervals`, on a scale that ends at the bounds.

    Args:
        value: the metric, within the bounds.
        std: standard deviation over the resamples.
        num_groups: number of relevant groups; the degrees of freedom are one fewer.
        bounds: the lowest and the highest value that the metric can have; a value equal to a finite bound gets the
            exact (Clopper-Pearson) interval of as many groups, all wrong or all right.
        logarithmic: of the form ``x exp(+-t s / x)``, for metrics from 0 up.

    Returns:
        (low, high); None for fewer than two groups, or if the metric does not vary.

    Example:
        >>> low, high = interval_from_std(0.9, 0.05, 30)
        >>> f"{low:.2f} to {high:.2f}"
        '0.74 to 0.97'
    """
    if num_groups < 2:
        return None
    (low, high), reach = bounds, std * _quantile(num_groups)
    share = round((value - low) / (high - low), 12)
    if share in (0, 1) and math.isfinite(high):
        exact = ((1 - LEVEL) / 2) ** (1 / num_groups)
        ends = (exact, 1.0) if share else (0.0, 1 - exact)
    elif not reach:
        return None
    elif logarithmic:
        factor = math.exp(min(reach / value, 50.0))
        return value / factor, min(value * factor, high)
    else:
        middle, reach = logit(share), reach / (high - low) / (share * (1 - share))
        ends = float(expit(middle - reach)), float(expit(middle + reach))
    return low + (high - low) * ends[0], low + (high - low) * ends[1]


def over_resamples(
    metrics: Callable[[NDArray[np.int64]], Result], num_groups: int, num_resamples: int, seed: int
) -> list[Result]:
    """Results of a function of weights for bootstrap resamples of whole groups (patients), a few resamples at a time.

    Args:
        metrics: called with (G, R) weights, how often each group occurs in each of R resamples, in several threads.
        num_groups: G.
        num_resamples, seed: of the bootstrap; 2 resamples or more.

    Returns:
        Results in the order of the resamples, which depend on the seed and the number of groups only.

    Raises:
        ValueError: too few resamples.

    Example:
        >>> over_resamples(lambda weights: weights.sum(axis=0).tolist(), 5, num_resamples=3, seed=0)
        [[5, 5, 5]]
    """
    if num_resamples < 2:
        raise ValueError(f"bootstrap: wanted 2 resamples or more, got num_resamples {num_resamples}")
    chunks = [range(start, min(start + CHUNK, num_resamples)) for start in range(0, num_resamples, CHUNK)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda chunk: metrics(_resample(num_groups, chunk, seed)), chunks))


def _sides(rows: NDArray[np.bool_], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C, 2): how many groups have a row outside of each class, and inside."""
    return np.array([[len(np.unique(group[column == side])) for side in (False, True)] for column in rows.T])


def _checked_groups(groups: Sequence[Hashable], *columns: ArrayLike) -> NDArray[np.int64]:
    lengths = [len(np.asarray(column)) for column in columns] + [len(groups)]
    if len(set(lengths)) > 1:
        raise ValueError(f"intervals: rows and groups must have one length, got {' and '.join(map(str, lengths))}")
    return group_indices(groups)


def _resampled(metrics: WeightedMetrics, num_resamples: int, seed: int) -> MetricValues:
    parts = over_resamples(metrics, metrics.num_groups, num_resamples, seed)
    return MetricValues(
        {name: np.concatenate([part.overall[name] for part in parts]) for name in parts[0].overall},
        {name: np.concatenate([part.per_class[name] for part in parts], axis=1) for name in parts[0].per_class},
        np.concatenate([part.gaps for part in parts], axis=1),
    )


def _resample(num_groups: int, indices: range, seed: int) -> NDArray[np.int64]:
    """(G, R): how often each group occurs in each resample."""
    counts = [
        np.bincount(np.random.default_rng([seed, index]).integers(num_groups, size=num_groups), minlength=num_groups)
        for index in indices
    ]
    return np.stack(counts, axis=1)


def _intervals(
    values: Mapping[str, Array],
    resamples: Mapping[str, Array],
    bounds: Mapping[str, Interval],
    sides: NDArray[np.int64],
    num_groups: int,
) -> dict[str, Interval]:
    """Intervals of metrics (1,) from resamples (R,).

    sides: (2, K, 2) groups with images outside and inside each class, and with images predicted so.
    """
    intervals = {}
    for name, column in resamples.items():
        true, predicted = (
            side[:, 1] if name in OF_CLASS else side[:, 0] if name in OF_REST else side.min(axis=1) for side in sides
        )
        relevant = (predicted if name in OF_PREDICTED else true)[true > 0]
        num = num_groups if name in OF_ALL_ROWS else float(relevant.sum()) / max(len(relevant), 1)
        defined = column[~np.isnan(column)]
        if len(defined) < max(2, len(column) / 2):
            continue
        value, std = float(values[name][0]), float(defined.std(ddof=1))
        interval = interval_from_std(value, std, num, bounds.get(name, (0, 1)), name in LOGARITHMIC)
        if interval is not None:
            intervals[name] = interval
    return intervals


def _of_class(values: MetricValues, k: int) -> dict[str, Array]:
    return {name: column[k] for name, column in values.per_class.items()}


def _quantile(num_groups: float) -> float:
    """Quantile of Student's t, times the factor by which a bootstrap's standard deviation is too small."""
    return float(stdtrit(num_groups - 1, (1 + LEVEL) / 2)) * math.sqrt(num_groups / (num_groups - 1))
