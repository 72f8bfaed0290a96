"""Time for bootstrap intervals of all metrics: `metric_intervals` against a loop over scikit-learn's functions.

Each method resamples patients with replacement and computes all metrics of each resample. "scikit-learn loop" repeats
the rows of the resampled patients and calls scikit-learn's functions, each once for all classes where possible
(precision, recall and F1 come from one call); a few resamples are timed (``--timed``), and scaled to all. `metrics` is
how many each computes, `peak_mb` the peak memory of the process so far.
"""

from __future__ import annotations

import resource
from functools import partial

import numpy as np
from harness import arguments, record, timed
from sklearn import metrics as sk

from monai_pipelines.metrics import metric_intervals

OURS, LOOP = "monai_pipelines", "scikit-learn loop"


def sklearn_metrics(prob: np.ndarray, label: np.ndarray) -> list[float]:
    """Metrics of a resample by scikit-learn, overall and of each class."""
    num = prob.shape[1]
    predicted, truths = prob.argmax(1), np.eye(num, dtype=int)[label]
    metrics = [sk.accuracy_score(label, predicted), sk.balanced_accuracy_score(label, predicted)]
    metrics += [sk.matthews_corrcoef(label, predicted), sk.cohen_kappa_score(label, predicted)]
    metrics += [sk.log_loss(label, prob), sk.brier_score_loss(label, prob, labels=range(num))]
    per_class = [*sk.precision_recall_fscore_support(label, predicted, labels=range(num), zero_division=0)[:3]]
    tables = sk.multilabel_confusion_matrix(label, predicted, labels=range(num))
    tn, fp, fn = tables[:, 0, 0], tables[:, 0, 1], tables[:, 1, 0]
    per_class += [tn / (tn + fp), tn / np.maximum(tn + fn, 1)]
    per_class.append([sk.matthews_corrcoef(truths[:, k], predicted == k) for k in range(num)])
    per_class.append([sk.brier_score_loss(truths[:, k], prob[:, k]) for k in range(num)])
    per_class += [sk.roc_auc_score(truths, prob, average=None), sk.average_precision_score(truths, prob, average=None)]
    for values in per_class:
        metrics += [*values, np.mean(values)] if num > 2 else [*values]
    stated, correct = (prob.max(1), predicted == label) if num > 2 else (prob[:, 1], label)
    bins = np.searchsorted(np.linspace(0, 1, 11)[1:-1], stated)
    metrics.append(float(np.abs(np.bincount(bins, stated - correct)).sum() / len(label)))
    if num > 2:
        metrics.append(sk.cohen_kappa_score(label, predicted, weights="quadratic"))
        metrics += [sk.roc_auc_score(truths, prob, average="micro")]
        metrics += [sk.average_precision_score(truths, prob, average="micro")]
    return metrics


def sklearn_loop(prob: np.ndarray, label: np.ndarray, groups: np.ndarray, num_resamples: int) -> list[float]:
    """All metrics of some resamples; those of the last."""
    rng, num_patients = np.random.default_rng(0), groups.max() + 1
    rows = [np.flatnonzero(groups == k) for k in range(num_patients)]
    for _ in range(num_resamples):
        resample = np.concatenate([rows[k] for k in rng.integers(num_patients, size=num_patients)])
        metrics = sklearn_metrics(prob[resample], label[resample])
    return metrics


def main() -> None:
    parser = arguments(__doc__, "bootstrap.csv")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--patients", type=int, default=3_000)
    parser.add_argument("--classes", type=int, nargs="+", default=(2, 9))
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--timed", type=int, default=4, help="resamples of the loop to time in each round")
    args = parser.parse_args()
    for num in args.classes:
        rng = np.random.default_rng(0)
        label, groups = rng.integers(num, size=args.images), rng.integers(args.patients, size=args.images)
        logits = rng.normal(size=(args.images, num)) + 1.5 * np.eye(num)[label]
        prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        ours = partial(metric_intervals, prob, label, groups.tolist(), num_resamples=args.resamples)
        loop = partial(sklearn_loop, prob, label, groups, args.timed)
        intervals = ours()
        counts = {OURS: len(intervals.metrics) + sum(map(len, intervals.per_class)), LOOP: len(loop())}
        seconds = timed({OURS: ours, LOOP: loop}, args.rounds)
        seconds[LOOP] = [value / args.timed * args.resamples for value in seconds[LOOP]]
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        data = f"{args.images} images of {args.patients} patients, {num} classes, {args.resamples} resamples"
        record(
            args.csv, seconds, lambda name: OURS, {}, f"{data}; {args.timed} of the loop", "numpy", "scikit-learn",
            extra={"metrics": counts, "peak_mb": dict.fromkeys(counts, peak)},
        )  # fmt: skip


if __name__ == "__main__":
    main()
