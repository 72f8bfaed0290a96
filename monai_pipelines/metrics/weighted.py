"""All figures of a classifier at once, for data of which each group of rows counts so and so often."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

__all__ = ["Figures", "WeightedFigures", "bins_of", "numbered"]

NAMES = (
    *("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "npv", "f1", "mcc", "kappa"),
    *("kappa_quadratic", "roc_auc", "roc_auc_micro", "average_precision", "average_precision_micro"),
    *("brier", "ece", "log_loss"),
)
NUM_BINS = 10
Array = NDArray[np.float64]


class Figures(NamedTuple):
    """Figures of R weightings: of the whole, and of each of C classes against the rest; NaN is undefined."""

    whole: dict[str, Array]
    """name -> (R,)"""
    per_class: dict[str, Array]
    """name -> (C, R)"""
    gaps: Array
    """(B, R): probability minus share observed, in each bin; ECE is the sum of their absolute values"""


def numbered(groups: Iterable[Hashable]) -> NDArray[np.int64]:
    """(N,) numbers of the groups, in the order in which they come.

    Example:
        >>> numbered(["b", "a", "b"])
        array([0, 1, 0])
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


def bins_of(prob: ArrayLike, num_bins: int = NUM_BINS) -> NDArray[np.int64]:
    """Which of the equally wide bins each probability belongs to; upper edges belong to the bin.

    Example:
        >>> bins_of([0.0, 0.1, 0.11, 1.0])
        array([0, 0, 1, 9])
    """
    return np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], prob)


class WeightedFigures:
    """Figures of a classifier by sparse sums, sorted once: called with weights of groups it gives all of them.

    Weights of 1 give the figures of the data; how often a patient was drawn, those of a bootstrap resample; a weight of
    0, those without the patient. The formulas are told in
    :func:`~monai_pipelines.metrics.classification_metrics`.

    Args:
        prob: (N, C) probabilities, C >= 2.
        label: (N,) integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        predicted: what is predicted, in the shape of ``label``.
        group: (N,) number of each row's group, 0..G-1.

    Example:
        >>> prob, label = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), np.array([0, 0, 1])
        >>> figures = WeightedFigures(prob, label, prob.argmax(1), np.array([0, 1, 1]))
        >>> figures([[1, 3], [1, 0]]).whole["accuracy"].round(2).tolist()
        [0.33, 1.0]
    """

    def __init__(self, prob: Array, label: NDArray[Any], predicted: NDArray[Any], group: NDArray[np.int64]) -> None:
        num = self.num_classes = prob.shape[1]
        self.several = label.ndim == 2
        if self.several:
            positive, called = label.astype(bool), predicted.astype(bool)
            cells = 4 * np.arange(num) + 2 * label + predicted
            stated, right = prob, positive
            of_truth = np.where(positive, prob, 1 - prob)
        else:
            positive, called = label[:, None] == np.arange(num), predicted[:, None] == np.arange(num)
            cells = (num * label + predicted)[:, None]
            stated, right = prob[:, 1:], positive[:, 1:]
            of_truth = prob[positive][:, None]
            if num > 2:
                stated, right = prob.max(axis=1, keepdims=True), (prob.argmax(axis=1) == label)[:, None]
        self.positive, self.called, self.group, self.num_groups = positive, called, group, int(group.max()) + 1
        self.cells = self._sums(cells, np.ones(cells.shape), (4 if self.several else num) * num)
        num_stated, tiny = stated.shape[1], np.finfo(np.float64).eps
        bins = bins_of(stated) + NUM_BINS * np.arange(num_stated)
        self.gaps = self._sums(bins, (stated - right) / num_stated, NUM_BINS * num_stated)
        losses = -np.log(of_truth.clip(tiny, 1 - tiny)).mean(axis=1, keepdims=True)
        errors = np.hstack([(prob - positive) ** 2, losses])
        self.errors = self._sums(np.broadcast_to(np.arange(num + 1), errors.shape), errors, num + 1)
        self.rankings = [_Ranking(score, own, group) for score, own in zip(prob.T, positive.T, strict=True)]
        self.micro = None
        if self.several or num > 2:
            self.micro = _Ranking(prob.ravel(), positive.ravel(), np.repeat(group, num))

    def __call__(self, weights: ArrayLike) -> Figures:
        """Figures of the data in which the rows of group g count ``weights[g, r]`` times, for every r.

        Args:
            weights: (G, R) whole numbers, 0 or more, not all 0 in any column.
        """
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        *squares, losses = self.errors @ weights
        cells = self.cells @ weights
        if self.several:
            table = cells.reshape(self.num_classes, 2, 2, -1)
            found, called, positive = table[:, 1, 1], table[:, :, 1].sum(1), table[:, 1].sum(1)
            total = table[0].sum((0, 1))
        else:
            table = cells.reshape(self.num_classes, self.num_classes, -1)
            found, called, positive = np.einsum("kkr->kr", table), table.sum(0), table.sum(1)
            total = positive.sum(0)
        counts = _Counts(found, called, positive, total)
        per_class = {
            **counts.figures(),
            **_ranked(self.rankings, weights, positive, counts.negative),
            "brier": np.array(squares) / total,
        }
        gaps = self.gaps @ weights / total
        whole = {name: own[1] if self.micro is None else _mean(own) for name, own in per_class.items()}
        whole |= {"ece": np.abs(gaps).sum(0), "log_loss": losses / total}
        whole |= counts.of_several_labels(per_class) if self.several else _of_one_label(table, per_class)
        if self.micro is not None:
            micro = _ranked([self.micro], weights, positive.sum(0)[None], counts.negative.sum(0)[None])
            whole |= {f"{name}_micro": own[0] for name, own in micro.items()}
        return Figures({name: whole[name] for name in NAMES if name in whole}, per_class, gaps)

    def _sums(self, row: NDArray[Any], values: Array, num_rows: int) -> sparse.csr_matrix:
        """(num_rows, G): values (N, K) of each group added up, in the rows that are given, (N, K)."""
        columns = np.repeat(self.group, values.shape[1])
        return sparse.csr_matrix((values.ravel(), (row.ravel(), columns)), shape=(num_rows, self.num_groups))


class _Counts(NamedTuple):
    """Weighted counts of each class against the rest, (C, R), and of all rows, (R,)."""

    found: Array
    called: Array
    positive: Array
    total: Array

    @property
    def negative(self) -> Array:
        return self.total - self.positive

    @property
    def spared(self) -> Array:
        return self.negative - self.called + self.found

    def figures(self) -> dict[str, Array]:
        found, called, positive, total = self
        negative, spared = self.negative, self.spared
        return {
            "precision": _ratio(found, called, positive > 0),
            "recall": _ratio(found, positive, positive > 0),
            "specificity": _ratio(spared, negative, negative > 0),
            "npv": _ratio(spared, total - called, negative > 0),
            "f1": _ratio(2 * found, positive + called, positive > 0),
            "mcc": _correlation(found + spared, np.stack([positive, negative]), np.stack([called, total - called])),
        }

    def of_several_labels(self, per_class: dict[str, Array]) -> dict[str, Array]:
        _, called, positive, total = self
        right = self.found + self.spared
        chance = (positive * called + self.negative * (total - called)) / total
        return {
            "accuracy": right.mean(0) / total,
            "balanced_accuracy": _mean((per_class["recall"] + per_class["specificity"]) / 2),
            "kappa": _mean(_ratio(right - chance, total - chance, (positive > 0) & (self.negative > 0))),
        }


def _of_one_label(table: Array, per_class: dict[str, Array]) -> dict[str, Array]:
    """Figures of (C, C, R) counts, true classes in rows, predicted ones in columns."""
    num = len(table)
    right, called, positive = np.einsum("kkr->r", table), table.sum(0), table.sum(1)
    total, defined = positive.sum(0), (positive > 0).sum(0) > 1
    chance = (positive * called).sum(0) / total
    figures = {
        "accuracy": right / total,
        "balanced_accuracy": _mean(per_class["recall"]),
        "mcc": _correlation(right, positive, called),
        "kappa": _ratio(right - chance, total - chance, defined),
    }
    if num > 2:
        distance = (np.arange(num)[:, None] - np.arange(num)) ** 2
        seen, expected = np.einsum("jk,jkr->r", distance, table), np.einsum("jk,jr,kr->r", distance, positive, called)
        figures["kappa_quadratic"] = 1 - _ratio(seen * total, expected, defined)
        figures["brier"] = per_class["brier"].sum(0)
    return figures


class _Ranking:
    """Rows of one class against the rest, from the highest score down, cut where a positive one stands.

    Rows of equal score are one step. Steps without a positive row are added up with the next one that has any: neither
    ROC AUC nor average precision changes in them.
    """

    def __init__(self, score: Array, positive: NDArray[np.bool_], group: NDArray[np.int64]) -> None:
        order = np.argsort(-score)
        score, positive, group = score[order], positive[order], group[order]
        run: NDArray[np.int64] = np.cumsum(np.diff(score, prepend=score[0]) != 0)
        has_positive: NDArray[np.bool_] = np.bincount(run, weights=positive) > 0
        step: NDArray[np.int64] = (np.cumsum(has_positive) - has_positive)[run]
        self.num_steps = int(has_positive.sum())
        # 0: positive; 1: negative, above the positives of the step; 2: negative, of their score
        part: NDArray[np.int64] = np.where(positive, 0, np.where(has_positive[run], 2, 1))
        self.num_parts = 3 if (part == 2).any() else 2
        kept = step < self.num_steps
        self.sums = sparse.csr_matrix(
            (np.ones(int(kept.sum())), ((part * self.num_steps + step)[kept], group[kept])),
            shape=(self.num_parts * self.num_steps, int(group.max()) + 1),
        )

    def __call__(self, weights: Array, num_negative: Array) -> tuple[Array, Array]:
        """Pairs in the right order, and the sum of the precisions at each positive row: (R,) each."""
        parts = (self.sums @ weights).reshape(self.num_parts, self.num_steps, weights.shape[1])
        positive, alarms = parts[0], parts[1]
        if self.num_parts == 3:
            alarms = alarms + parts[2]
        found, alarms = np.cumsum(positive, axis=0), np.cumsum(alarms, axis=0)
        precision = found / np.maximum(found + alarms, 1)
        pairs = positive.sum(axis=0) * num_negative - np.einsum("sr,sr->r", positive, alarms)
        if self.num_parts == 3:
            pairs += np.einsum("sr,sr->r", positive, parts[2]) / 2  # a tie counts half
        return pairs, np.einsum("sr,sr->r", positive, precision)


def _ranked(rankings: list[_Ranking], weights: Array, positive: Array, negative: Array) -> dict[str, Array]:
    pairs, precisions = np.stack(
        [ranking(weights, others) for ranking, others in zip(rankings, negative, strict=True)], axis=1
    )
    return {
        "roc_auc": _ratio(pairs, positive * negative, (positive > 0) & (negative > 0)),
        "average_precision": _ratio(precisions, positive, positive > 0),
    }


def _ratio(part: Array, whole: Array, defined: NDArray[np.bool_]) -> Array:
    """part / whole, 0 where the whole is 0, NaN where undefined."""
    ratio = np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)
    ratio[~defined] = np.nan
    return ratio


def _correlation(right: Array, positive: Array, called: Array) -> Array:
    """Matthews correlation of (K, ..., R) counts of true and of predicted classes, undefined for one true class."""
    total = positive.sum(0)
    covariance = right * total - (positive * called).sum(0)
    spread = np.sqrt(total**2 - (positive**2).sum(0)) * np.sqrt(total**2 - (called**2).sum(0))
    return _ratio(covariance, spread, (positive > 0).sum(0) > 1)


def _mean(values: Array) -> Array:
    """Mean of the defined ones of (K, R); NaN where none is."""
    defined: NDArray[np.bool_] = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(0), defined.sum(0), defined.sum(0) > 0)
