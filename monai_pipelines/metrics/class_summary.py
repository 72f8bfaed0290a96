"""Detection metrics of each class and their means, with 95% intervals by patient, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.metrics.boxes import Array, Indices
from monai_pipelines.metrics.confusion_counts import mean_of_defined
from monai_pipelines.metrics.intervals import interval_from_std, over_resamples

WITHOUT_UPPER_BOUND = ("false_positives_per_image",)


class ClassMetrics(Protocol):
    """Metrics of each class as a function of the weights of patients."""

    @property
    def num_patients(self) -> Mapping[str, Indices]:
        """name -> (C,): how many patients a metric rests on."""

    def __call__(self, weights: NDArray[Any]) -> dict[str, Array]:
        """Metrics (C, R) of the data with patient g counted ``weights[g, r]`` times; NaN is undefined."""


def summary(metrics: ClassMetrics, num_groups: int, num_resamples: int, seed: int) -> dict[str, Any]:
    """Values and intervals of all metrics, see :func:`monai_pipelines.metrics.froc`.

    Returns:
        ``metrics`` (means over the classes where they are defined), ``intervals``, and for each class ``per_class`` and
        ``per_class_intervals``.
    """
    values = metrics(np.ones((num_groups, 1)))
    names, num_classes = list(values), len(next(iter(values.values())))
    result: dict[str, Any] = {
        "metrics": {name: _plain(mean_of_defined(values[name])) for name in names},
        "intervals": {},
        "per_class": [{name: _plain(values[name][k]) for name in names} for k in range(num_classes)],
        "per_class_intervals": [{} for _ in range(num_classes)],
    }
    if not num_resamples:
        return result
    parts = over_resamples(metrics, num_groups, num_resamples, seed)
    for name in names:
        resamples = np.concatenate([part[name] for part in parts], axis=1)
        num_patients = metrics.num_patients[name]
        averaged = num_patients[~np.isnan(values[name][:, 0])]
        columns = [(result["metrics"], result["intervals"], mean_of_defined(resamples), averaged)]
        columns += zip(
            result["per_class"], result["per_class_intervals"], resamples, num_patients[:, None], strict=True
        )
        for part, intervals, column, patients in columns:
            interval = _interval(name, part[name], column, patients)
            if interval is not None:
                intervals[name] = interval
    return result


def _interval(name: str, value: float | None, resamples: Array, num_patients: Indices) -> list[float] | None:
    defined = resamples[~np.isnan(resamples)]
    if value is None or len(defined) < max(2, len(resamples) / 2):
        return None
    unbounded = name in WITHOUT_UPPER_BOUND
    bounds = (0, math.inf if unbounded else 1)
    interval = interval_from_std(value, float(defined.std(ddof=1)), float(np.mean(num_patients)), bounds, unbounded)
    return interval and list(interval)


def _plain(value: Array) -> float | None:
    return None if np.isnan(value[0]) else float(value[0])
