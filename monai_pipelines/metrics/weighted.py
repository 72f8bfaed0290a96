"""All metrics of a classifier at once, for weighted groups of rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from monai_pipelines.metrics.calibration_error import NUM_BINS, bin_indices, expected_calibration_error
from monai_pipelines.metrics.confusion_counts import Array, ClassCounts, mean_of_defined, multiclass_metrics
from monai_pipelines.metrics.roc_auc import Ranking, ranking_metrics

NAMES = (
    *("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "npv", "f1", "mcc", "kappa"),
    *("kappa_quadratic", "roc_auc", "roc_auc_micro", "average_precision", "average_precision_micro"),
    *("brier", "ece", "log_loss"),
)


class MetricValues(NamedTuple):
    """Metrics for R sets of weights, overall and of each of C classes against the rest; NaN is undefined."""

    overall: dict[str, Array]
    """name -> (R,)"""
    per_class: dict[str, Array]
    """name -> (C, R)"""
    gaps: Array
    """(B, R): probability minus observed share, in each bin; ECE is the sum of their absolute values"""


def group_indices(groups: Iterable[Hashable]) -> NDArray[np.int64]:
    """Index of each row's group, (N,), in order of appearance.

    Example:
        >>> group_indices(["b", "a", "b"])
        array([0, 1, 0])
    """
    indices: dict[Hashable, int] = {}
    return np.array([indices.setdefault(group, len(indices)) for group in groups], np.int64)


class WeightedMetrics:
    """Metrics of a classifier as a function of the weights of its groups of rows; rows are sorted only once.

    Weights of 1 give the metrics of the data; the number of times each patient was drawn, those of a bootstrap
    resample; a weight of 0, those without the patient. See
    :func:`~monai_pipelines.metrics.classification_metrics` for the formulas.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for multi-label data.
        predicted: predictions, in the shape of ``label``.
        group: (N,) index of each row's group, 0..G-1.

    Example:
        >>> prob, label = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), np.array([0, 0, 1])
        >>> metrics = WeightedMetrics(prob, label, prob.argmax(1), np.array([0, 1, 1]))
        >>> metrics([[1, 3], [1, 0]]).overall["accuracy"].round(2).tolist()
        [0.33, 1.0]
    """

    def __init__(self, prob: Array, label: NDArray[Any], predicted: NDArray[Any], group: NDArray[np.int64]) -> None:
        num = self.num_classes = prob.shape[1]
        self.multilabel = label.ndim == 2
        if self.multilabel:
            self.positive, self.predicted = label.astype(bool), predicted.astype(bool)
            cells = 4 * np.arange(num) + 2 * label + predicted
            stated, correct = prob, self.positive
            prob_of_truth = np.where(self.positive, prob, 1 - prob)
        else:
            self.positive, self.predicted = (column[:, None] == np.arange(num) for column in (label, predicted))
            cells = (num * label + predicted)[:, None]
            stated, correct = prob[:, 1:], self.positive[:, 1:]
            prob_of_truth = prob[self.positive][:, None]
            if num > 2:
                stated, correct = prob.max(axis=1, keepdims=True), (prob.argmax(axis=1) == label)[:, None]
        self.group, self.num_groups = group, int(group.max()) + 1
        self.cells = self._sums(cells, np.ones(cells.shape), (4 if self.multilabel else num) * num)
        columns = stated.shape[1]
        bins = bin_indices(stated) + NUM_BINS * np.arange(columns)
        self.gaps = self._sums(bins, (stated - correct) / columns, NUM_BINS * columns)
        tiny = np.finfo(np.float64).eps
        losses = -np.log(prob_of_truth.clip(tiny, 1 - tiny)).mean(axis=1, keepdims=True)
        errors = np.hstack([(prob - self.positive) ** 2, losses])
        self.errors = self._sums(np.broadcast_to(np.arange(num + 1), errors.shape), errors, num + 1)
        self.rankings = [Ranking(score, truth, group) for score, truth in zip(prob.T, self.positive.T, strict=True)]
        self.micro = None
        if self.multilabel or num > 2:
            self.micro = Ranking(prob.ravel(), self.positive.ravel(), np.repeat(group, num))

    def __call__(self, weights: ArrayLike) -> MetricValues:
        """Metrics of the data with the rows of group g counted ``weights[g, r]`` times, for every r.

        Args:
            weights: (G, R) whole numbers, 0 or more, not all 0 in any column.
        """
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        *squares, losses = self.errors @ weights
        cells = self.cells @ weights
        if self.multilabel:
            table = cells.reshape(self.num_classes, 2, 2, -1)
            true_positive, predicted, positive = table[:, 1, 1], table[:, :, 1].sum(1), table[:, 1].sum(1)
            total = table[0].sum((0, 1))
        else:
            table = cells.reshape(self.num_classes, self.num_classes, -1)
            true_positive, predicted, positive = np.einsum("kkr->kr", table), table.sum(0), table.sum(1)
            total = positive.sum(0)
        counts = ClassCounts(true_positive, predicted, positive, total)
        per_class = {
            **counts.metrics(),
            **ranking_metrics(self.rankings, weights, positive, counts.negative),
            "brier": np.array(squares) / total,
        }
        gaps = self.gaps @ weights / total
        overall = {
            name: values[1] if self.micro is None else mean_of_defined(values) for name, values in per_class.items()
        }
        overall |= {"ece": expected_calibration_error(gaps), "log_loss": losses / total}
        overall |= counts.multilabel_metrics(per_class) if self.multilabel else multiclass_metrics(table, per_class)
        if self.micro is not None:
            micro = ranking_metrics([self.micro], weights, positive.sum(0)[None], counts.negative.sum(0)[None])
            overall |= {f"{name}_micro": values[0] for name, values in micro.items()}
        return MetricValues({name: overall[name] for name in NAMES if name in overall}, per_class, gaps)

    def _sums(self, row: NDArray[Any], values: Array, num_rows: int) -> sparse.csr_matrix:
        """(num_rows, G): values (N, K) summed over each group, into the rows given by `row` (N, K)."""
        columns = np.repeat(self.group, values.shape[1])
        return sparse.csr_matrix((values.ravel(), (row.ravel(), columns)), shape=(num_rows, self.num_groups))
