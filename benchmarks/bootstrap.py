"""Time for bootstrap intervals of all metrics: `metric_intervals` against a loop over scikit-learn's functions.

Each method resamples patients with replacement and computes all metrics of each resample. "scikit-learn loop" repeats
the rows of the resampled patients and calls scikit-learn's functions, each once for all classes where possible
(precision, recall and F1 come from one call); a few resamples are timed (`timed`), and scaled to all. Rounds
alternate; `seconds` is the median. `peak_mb` is the peak memory of the process so far.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import sklearn
from sklearn import metrics as sk

from monai_pipelines.metrics import metric_intervals

COLUMNS = (
    *("date", "method", "classes", "metrics", "seconds", "min_s", "max_s", "times_ours", "timed", "resamples"),
    *("images", "patients", "peak_mb", "machine", "command"),
)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--patients", type=int, default=3_000)
    parser.add_argument("--classes", type=int, nargs="+", default=(2, 9))
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--timed", type=int, default=4, help="resamples of the loop to time in each round")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "bootstrap.csv")
    args = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}, scikit-learn {sklearn.__version__}"
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    new = not args.csv.exists()
    for num in args.classes:
        rng = np.random.default_rng(0)
        label, groups = rng.integers(num, size=args.images), rng.integers(args.patients, size=args.images)
        logits = rng.normal(size=(args.images, num)) + 1.5 * np.eye(num)[label]
        prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        rows = [np.flatnonzero(groups == k) for k in range(args.patients)]
        times: dict[str, list[float]] = {"monai_pipelines": [], "scikit-learn loop": []}
        for _ in range(args.rounds):
            start = time.perf_counter()
            intervals = metric_intervals(prob, label, groups.tolist(), num_resamples=args.resamples)
            times["monai_pipelines"].append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(args.timed):
                resample = np.concatenate([rows[k] for k in rng.integers(args.patients, size=args.patients)])
                metrics = sklearn_metrics(prob[resample], label[resample])
            times["scikit-learn loop"].append((time.perf_counter() - start) / args.timed * args.resamples)
        counts = {
            "monai_pipelines": len(intervals.metrics) + sum(map(len, intervals.per_class)),
            "scikit-learn loop": len(metrics),
        }
        ours = statistics.median(times["monai_pipelines"])
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        with args.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(COLUMNS)
                new = False
            for name, values in times.items():
                median = statistics.median(values)
                row = [name, num, counts[name], *(round(value, 2) for value in (median, min(values), max(values)))]
                row += [round(median / ours, 1), args.resamples if name == "monai_pipelines" else args.timed]
                row += [args.resamples, args.images, args.patients, peak, machine]
                writer.writerow([datetime.date.today(), *row, shlex.join(["python", *sys.argv])])
                print(f"{num} classes, {name:18} {counts[name]:3} metrics {median:9.2f} s  x{median / ours:.0f}")


if __name__ == "__main__":
    main()
