"""ROC AUC and average precision, from rankings sorted once and weighted often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from monai_pipelines.metrics.confusion_counts import Array, ratio


class Ranking:
    """Rows of one class against the rest, from the highest score down, in steps that end with a positive row.

    Rows of equal score share a step. Scores without a positive row are merged into the next step: they change neither
    ROC AUC nor average precision.
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
        ranked = step < self.num_steps
        self.sums = sparse.csr_matrix(
            (np.ones(int(ranked.sum())), ((part * self.num_steps + step)[ranked], group[ranked])),
            shape=(self.num_parts * self.num_steps, int(group.max()) + 1),
        )

    def __call__(self, weights: Array, num_negative: Array) -> tuple[Array, Array]:
        """Pairs in the right order, and the sum of the precisions at each positive row: (R,) each."""
        parts = (self.sums @ weights).reshape(self.num_parts, self.num_steps, weights.shape[1])
        positive, negative = parts[0], parts[1]
        if self.num_parts == 3:
            negative = negative + parts[2]
        true_positive, false_positive = np.cumsum(positive, axis=0), np.cumsum(negative, axis=0)
        precision = true_positive / np.maximum(true_positive + false_positive, 1)
        pairs = positive.sum(axis=0) * num_negative - np.einsum("sr,sr->r", positive, false_positive)
        if self.num_parts == 3:
            pairs += np.einsum("sr,sr->r", positive, parts[2]) / 2  # a tie counts half
        return pairs, np.einsum("sr,sr->r", positive, precision)


def ranking_metrics(rankings: Sequence[Ranking], weights: Array, positive: Array, negative: Array) -> dict[str, Array]:
    """ROC AUC and average precision (C, R), from counts of positive and negative rows (C, R)."""
    pairs, precisions = np.stack(
        [ranking(weights, num_negative) for ranking, num_negative in zip(rankings, negative, strict=True)], axis=1
    )
    return {
        "roc_auc": ratio(pairs, positive * negative, (positive > 0) & (negative > 0)),
        "average_precision": ratio(precisions, positive, positive > 0),
    }
