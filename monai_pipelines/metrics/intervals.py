"""How far a figure may be off: intervals that know which images belong to one patient."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_intervals"]

Figures = Callable[[NDArray[Any], NDArray[Any]], Mapping[str, float]]


def bootstrap_intervals(
    figures: Figures,
    prob: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable],
    num_resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of all figures, whole groups (patients) drawn with replacement.

    Images of one patient are alike; drawing images instead of patients makes intervals too narrow. Resamples in which
    a figure is undefined (a class is absent) do not count for that figure.

    Args:
        figures: gives name -> value from probabilities and labels, such as :func:`classification_metrics`.
        prob: (N, C) probabilities.
        label: (N,) or (N, C) labels.
        groups: (N,) whom each row belongs to.
        num_resamples: draws.
        level: of the interval.

    Returns:
        name -> (low, high); a figure that is undefined on the data themselves is left out.

    Raises:
        ValueError: lengths that differ, no resample, or a level outside (0, 1).

    Example:
        >>> def accuracy(prob, label):
        ...     return {"accuracy": (prob.argmax(1) == label).mean()}
        >>> bootstrap_intervals(accuracy, [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], ["a", "b", "b"])
        {'accuracy': (0.5, 1.0)}

    Reference: Davison and Hinkley, Bootstrap methods and their application, 1997, section 3.8.
    """
    scores, truth = np.asarray(prob), np.asarray(label)
    if not len(scores) == len(truth) == len(groups):
        lengths = f"{len(scores)}, {len(truth)} and {len(groups)}"
        raise ValueError(f"bootstrap_intervals: prob, label and groups must have one length, got {lengths}")
    if num_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap_intervals: wanted a resample or more and a level in (0, 1), got {num_resamples} and {level}"
        )
    rows_of: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    members = [np.array(rows) for rows in rows_of.values()]
    names = [name for name, value in figures(scores, truth).items() if not math.isnan(value)]
    rng = np.random.default_rng(0)
    values = np.empty((num_resamples, len(names)))
    for resample in range(num_resamples):
        rows = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        drawn = figures(scores[rows], truth[rows])
        values[resample] = [drawn[name] for name in names]
    tail = (1 - level) / 2
    return {
        name: (float(np.quantile(own, tail)), float(np.quantile(own, 1 - tail)))
        for name, column in zip(names, values.T, strict=True)
        if len(own := column[~np.isnan(column)])
    }
