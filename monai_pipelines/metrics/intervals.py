"""How far a figure may be off: intervals that know which images belong to one patient."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, stdtrit

from monai_pipelines.metrics.classification import Threshold, weighted_figures
from monai_pipelines.metrics.weighted import Figures, WeightedFigures, numbered

__all__ = ["Intervals", "bootstrap_intervals", "metric_intervals", "resampled_metrics"]

CHUNK = 16  # resamples at a time: a row of their weights fills two cache lines
BOUNDS = {"mcc": (-1, 1), "kappa": (-1, 1), "kappa_quadratic": (-1, 1), "log_loss": (0, math.inf)}
LOGARITHMIC = ("brier", "log_loss")
OF_ALL_ROWS = ("accuracy", "brier", "log_loss", "ece")
OF_CLASS = ("precision", "recall", "f1", "average_precision", "average_precision_micro")
OF_REST = ("specificity", "npv")
OF_CALLED = ("precision", "npv")

Array = NDArray[np.float64]
Interval = tuple[float, float]


class Intervals(NamedTuple):
    """(low, high) of figures of the whole and of each class; a figure without an interval is left out."""

    metrics: dict[str, Interval]
    """name -> (low, high), of the figures of :func:`classification_metrics`"""
    per_class: list[dict[str, Interval]]
    """the same for each class, of the figures of :func:`per_class_metrics`"""


def metric_intervals(
    prob: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable],
    num_classes: int | None = None,
    threshold: Threshold = None,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Bootstrap intervals of all figures, whole groups (patients) drawn with replacement.

    Images of one patient are alike; drawing images instead of patients makes intervals too narrow. With s, the standard
    deviation of a figure x over the resamples, and t, the quantile of Student's distribution, an interval is
    ``expit(logit(x) +- t s / (x (1 - x)))`` (MCC and kappas scaled to 0..1 first), and ``x exp(+-t s / x)`` for Brier
    score and log loss. Degrees of freedom are one less than the patients that count: all of them for accuracy, Brier
    score, log loss and ECE; those with images of the class for recall, F1 and average precision; those with others for
    specificity; those with images that are given the class for precision, and not given it for NPV; the fewer of those
    with the class and with others for the rest. For averages it is the mean over the classes that have the figure.
    Percentiles of the resamples are too narrow for a hundred patients, above all near 0 and 1 and for rare classes.

    A figure that is 0 or 1 gets the exact (Clopper-Pearson) interval of as many patients, all wrong or all right. ECE,
    which chance makes larger, goes from ``ECE - q``, with q the quantile of the sum of the absolute errors of the bins,
    to ``ECE + t s``: cautious, and down to 0 where the model may well be calibrated.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        groups: (N,) whom each row belongs to.
        num_classes: the C that is wanted; None takes it from ``prob``.
        threshold: as in :func:`predicted_classes`.
        num_resamples: draws, 2 or more.
        level: of the interval.
        seed: of the draws.

    Returns:
        Intervals of the figures of the whole and of each class. Left out is a figure that is undefined in more than
        half of the resamples (a class is absent) or does not vary in them, and one of fewer than two patients.

    Raises:
        ValueError: lengths that differ, too few resamples, a level outside (0, 1), or as
            :func:`classification_metrics`.

    Example:
        >>> label, patients = [0, 1] * 20, np.arange(40) // 2
        >>> prob = np.eye(2)[[0, 1, 0, 1, 0, 0, 1, 1] * 5]
        >>> low, high = metric_intervals(prob, label, patients).metrics["accuracy"]
        >>> f"{low:.2f} to {high:.2f}"
        '0.61 to 0.85'

    Reference: Efron and Tibshirani, An introduction to the bootstrap, 1993, chapters 12 and 13 (standard intervals on a
    transformed scale); Davison and Hinkley, Bootstrap methods and their application, 1997, section 3.8 (clusters).
    """
    _check(level)
    figures = _figures(prob, label, groups, num_classes, threshold)
    num_groups = figures.num_groups
    found, drawn = figures(np.ones((num_groups, 1))), _resampled(figures, num_resamples, seed)
    sides = np.array([_sides(own, figures.group) for own in (figures.positive, figures.called)])
    averaged = sides[:, 1:] if figures.micro is None else sides
    bounds = BOUNDS if figures.micro is None or figures.several else {**BOUNDS, "brier": (0, 2)}
    metrics = _intervals(found.whole, drawn.whole, bounds, averaged, num_groups, level)
    if (ece := float(found.whole["ece"][0])) and "ece" in metrics:
        errors = np.abs(drawn.gaps - found.gaps).sum(axis=0)
        spread = float(drawn.whole["ece"].std(ddof=1)) * _quantile(num_groups, level)
        metrics["ece"] = max(0.0, ece - float(np.quantile(errors, (1 + level) / 2))), min(1.0, ece + spread)
    per_class = [
        _intervals(_of_class(found, k), _of_class(drawn, k), BOUNDS, sides[:, [k]], num_groups, level)
        for k in range(sides.shape[1])
    ]
    return Intervals(metrics, per_class)


def resampled_metrics(
    prob: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable],
    num_classes: int | None = None,
    threshold: Threshold = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Figures of bootstrap resamples, whole groups (patients) drawn with replacement.

    The draws depend on the seed and on the order of the groups alone: two models on the same images get the same
    resamples, so that their differences are those of a paired bootstrap.

    Args:
        prob, label, groups, num_classes, threshold, num_resamples, seed: as in :func:`metric_intervals`.

    Returns:
        The figures of :func:`classification_metrics`: name -> (num_resamples,), NaN where undefined.

    Raises:
        ValueError: as :func:`metric_intervals`.

    Example:
        >>> drawn = resampled_metrics([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], "abc", num_resamples=3)
        >>> drawn["accuracy"].round(2).tolist()
        [0.67, 0.33, 0.67]
    """
    return _resampled(_figures(prob, label, groups, num_classes, threshold), num_resamples, seed).whole


def bootstrap_intervals(
    figures: Callable[[NDArray[Any], NDArray[Any]], Mapping[str, float]],
    prob: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable],
    num_resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of figures of one's own, whole groups (patients) drawn with replacement.

    Args:
        figures: gives name -> value from probabilities and labels.
        prob: (N, ...) probabilities.
        label: (N, ...) labels.
        groups: (N,) whom each row belongs to.
        num_resamples: draws.
        level: of the interval.

    Returns:
        name -> (low, high); a figure that is undefined in more than half of the resamples is left out.

    Raises:
        ValueError: lengths that differ, fewer than two resamples, or a level outside (0, 1).

    Example:
        >>> def accuracy(prob, label):
        ...     return {"accuracy": (prob.argmax(1) == label).mean()}
        >>> bootstrap_intervals(accuracy, [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], ["a", "b", "b"])
        {'accuracy': (0.5, 1.0)}
    """
    scores, truth = np.asarray(prob), np.asarray(label)
    _check(level)
    group = _checked_groups(groups, scores, truth)
    rows = np.arange(len(group))
    drawn = [
        figures(scores[own], truth[own])
        for resamples in _chunks(num_resamples)
        for own in (np.repeat(rows, often[group]) for often in _draw(int(group.max()) + 1, resamples, 0).T)
    ]
    values = {name: np.array([own[name] for own in drawn]) for name in drawn[0]}
    return {name: own for name, column in values.items() if (own := _percentiles(column, level))}


def _figures(
    prob: ArrayLike, label: ArrayLike, groups: Sequence[Hashable], num_classes: int | None, threshold: Threshold
) -> WeightedFigures:
    return weighted_figures(prob, label, num_classes, threshold, _checked_groups(groups, prob, label))


def _sides(rows: NDArray[np.bool_], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C, 2): how many groups have a row outside of each class, and inside."""
    return np.array([[len(np.unique(group[own == side])) for side in (False, True)] for own in rows.T])


def _checked_groups(groups: Sequence[Hashable], prob: ArrayLike, label: ArrayLike) -> NDArray[np.int64]:
    lengths = len(np.asarray(prob)), len(np.asarray(label)), len(groups)
    if len(set(lengths)) > 1:
        raise ValueError("bootstrap: prob, label and groups must have one length, got {}, {} and {}".format(*lengths))
    return numbered(groups)


def _resampled(figures: WeightedFigures, num_resamples: int, seed: int) -> Figures:
    num_groups = figures.num_groups
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(lambda own: figures(_draw(num_groups, own, seed)), _chunks(num_resamples)))
    return Figures(
        {name: np.concatenate([part.whole[name] for part in parts]) for name in parts[0].whole},
        {name: np.concatenate([part.per_class[name] for part in parts], axis=1) for name in parts[0].per_class},
        np.concatenate([part.gaps for part in parts], axis=1),
    )


def _chunks(num_resamples: int) -> list[range]:
    if num_resamples < 2:
        raise ValueError(f"bootstrap: wanted 2 resamples or more, got num_resamples {num_resamples}")
    return [range(start, min(start + CHUNK, num_resamples)) for start in range(0, num_resamples, CHUNK)]


def _draw(num_groups: int, resamples: range, seed: int) -> NDArray[np.int64]:
    """(G, R): how often each group is in each resample."""
    drawn = [
        np.bincount(np.random.default_rng([seed, own]).integers(num_groups, size=num_groups), minlength=num_groups)
        for own in resamples
    ]
    return np.stack(drawn, axis=1)


def _intervals(
    found: Mapping[str, Array],
    drawn: Mapping[str, Array],
    bounds: Mapping[str, Interval],
    sides: NDArray[np.int64],
    num_groups: int,
    level: float,
) -> dict[str, Interval]:
    """Intervals of figures (1,) by resamples (R,).

    sides: (2, K, 2) groups with images of the rest and of each class, and with images given the rest and the class.
    """
    intervals = {}
    for name, values in drawn.items():
        true, called = (
            own[:, 1] if name in OF_CLASS else own[:, 0] if name in OF_REST else own.min(axis=1) for own in sides
        )
        counted = (called if name in OF_CALLED else true)[true > 0]
        num = num_groups if name in OF_ALL_ROWS else float(counted.sum()) / max(len(counted), 1)
        defined = values[~np.isnan(values)]
        if 2 * len(defined) < len(values) or num < 2:
            continue
        reach = float(defined.std(ddof=1)) * _quantile(num, level)
        own = _interval(name, float(found[name][0]), reach, bounds.get(name, (0, 1)), ((1 - level) / 2) ** (1 / num))
        if own is not None:
            intervals[name] = own
    return intervals


def _of_class(figures: Figures, k: int) -> dict[str, Array]:
    return {name: values[k] for name, values in figures.per_class.items()}


def _interval(name: str, value: float, reach: float, bounds: Interval, exact: float) -> Interval | None:
    """Value with that reach on a scale that ends at the bounds; `exact`: share that all right are told apart from."""
    low, high = bounds
    share = round((value - low) / (high - low), 12)
    if share in (0, 1) and math.isfinite(high):
        ends = (exact, 1.0) if share else (0.0, 1 - exact)
    elif not reach:
        return None
    elif name in LOGARITHMIC:
        factor = math.exp(min(reach / value, 50.0))
        return value / factor, min(value * factor, high)
    else:
        middle, reach = logit(share), reach / (high - low) / (share * (1 - share))
        ends = float(expit(middle - reach)), float(expit(middle + reach))
    return low + (high - low) * ends[0], low + (high - low) * ends[1]


def _quantile(num_groups: float, level: float) -> float:
    """Of Student's t, times what a bootstrap's standard deviation is too small by."""
    return float(stdtrit(num_groups - 1, (1 + level) / 2)) * math.sqrt(num_groups / (num_groups - 1))


def _percentiles(values: Array, level: float) -> Interval | None:
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: wanted a level in (0, 1), got {level}")
