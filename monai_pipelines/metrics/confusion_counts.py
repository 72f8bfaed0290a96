"""Metrics from counts of true and predicted classes: accuracy, precision, recall, specificity, F1, MCC, kappa."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class ClassCounts(NamedTuple):
    """Weighted counts of each class against the rest, (C, R), and of all rows, (R,)."""

    true_positive: Array
    predicted: Array
    positive: Array
    total: Array

    @property
    def negative(self) -> Array:
        return self.total - self.positive

    @property
    def true_negative(self) -> Array:
        return self.negative - self.predicted + self.true_positive

    def metrics(self) -> dict[str, Array]:
        true_positive, predicted, positive, total = self
        negative, true_negative = self.negative, self.true_negative
        truth, prediction = np.stack([positive, negative]), np.stack([predicted, total - predicted])
        return {
            "precision": ratio(true_positive, predicted, positive > 0),
            "recall": ratio(true_positive, positive, positive > 0),
            "specificity": ratio(true_negative, negative, negative > 0),
            "npv": ratio(true_negative, total - predicted, negative > 0),
            "f1": ratio(2 * true_positive, positive + predicted, positive > 0),
            "mcc": _correlation(true_positive + true_negative, truth, prediction),
        }

    def multilabel_metrics(self, per_class: dict[str, Array]) -> dict[str, Array]:
        _, predicted, positive, total = self
        right = self.true_positive + self.true_negative
        by_chance = (positive * predicted + self.negative * (total - predicted)) / total
        return {
            "accuracy": right.mean(0) / total,
            "balanced_accuracy": mean_of_defined((per_class["recall"] + per_class["specificity"]) / 2),
            "kappa": mean_of_defined(ratio(right - by_chance, total - by_chance, (positive > 0) & (self.negative > 0))),
        }


def multiclass_metrics(table: Array, per_class: dict[str, Array]) -> dict[str, Array]:
    """Metrics of (C, C, R) counts, true classes in rows, predicted ones in columns."""
    num = len(table)
    right, predicted, positive = np.einsum("kkr->r", table), table.sum(0), table.sum(1)
    total, defined = positive.sum(0), (positive > 0).sum(0) > 1
    by_chance = (positive * predicted).sum(0) / total
    metrics = {
        "accuracy": right / total,
        "balanced_accuracy": mean_of_defined(per_class["recall"]),
        "mcc": _correlation(right, positive, predicted),
        "kappa": ratio(right - by_chance, total - by_chance, defined),
    }
    if num > 2:
        distance = (np.arange(num)[:, None] - np.arange(num)) ** 2
        observed = np.einsum("jk,jkr->r", distance, table)
        expected = np.einsum("jk,jr,kr->r", distance, positive, predicted)
        metrics["kappa_quadratic"] = 1 - ratio(observed * total, expected, defined)
        metrics["brier"] = per_class["brier"].sum(0)
    return metrics


def ratio(part: Array, whole: Array, defined: NDArray[np.bool_]) -> Array:
    """part / whole, 0 where the whole is 0, NaN where undefined."""
    quotient = np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)
    quotient[~defined] = np.nan
    return quotient


def mean_of_defined(values: Array) -> Array:
    """Mean over the first axis of (K, R), without NaN; NaN where all are."""
    defined: NDArray[np.bool_] = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(0), defined.sum(0), defined.sum(0) > 0)


def _correlation(right: Array, positive: Array, predicted: Array) -> Array:
    """Matthews correlation of (K, ..., R) counts of true and of predicted classes, undefined for one true class."""
    total = positive.sum(0)
    covariance = right * total - (positive * predicted).sum(0)
    spread = np.sqrt(total**2 - (positive**2).sum(0)) * np.sqrt(total**2 - (predicted**2).sum(0))
    return ratio(covariance, spread, (positive > 0).sum(0) > 1)
