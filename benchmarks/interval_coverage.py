"""Coverage of 95% intervals in simulated studies of patients with several images each.

A patient has one class and 1 to 8 images; an image's evidence is that of the class plus noise, partly shared by all
images of the patient (`correlation`); logits are 1.5 times too large. The truth is the metric of 200,000 patients.
Columns: percentage of the studies whose interval contains the truth, for `metric_intervals` by patient (`clustered`;
`too_low`, `too_high`: the interval lies below or above the truth), for percentiles of the same resamples
(`percentiles`), and for `metric_intervals` with each image as a separate patient (`unclustered`). With 1,000 studies a
coverage of 95% is accurate to +-1.4%.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import sys
from pathlib import Path

import numpy as np
from harness import appended

from monai_pipelines.metrics import classification_metrics, metric_intervals, resampled_metrics

COLUMNS = (
    *("date", "metric", "classes", "patients", "truth", "clustered", "too_low", "too_high", "percentiles"),
    *("unclustered", "width", "width_unclustered", "studies", "resamples", "correlation", "machine", "command"),
)
Study = tuple[np.ndarray, np.ndarray, np.ndarray]


def simulate(seed: int, num_patients: int, num_classes: int, correlation: float) -> Study:
    """Probabilities, labels and patients of a study; higher classes have fewer patients."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 9, num_patients))
    prior = np.array([0.7, 0.3]) if num_classes == 2 else np.arange(num_classes, 0, -1) / sum(range(num_classes + 1))
    label = rng.choice(num_classes, num_patients, p=prior)[patient]
    shared = rng.normal(size=(num_patients, num_classes))[patient]
    noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=(len(patient), num_classes))
    signal = 1.1 if num_classes == 2 else 1.5
    logits = 1.5 * (signal * (noise + signal * np.eye(num_classes)[label]) + np.log(prior))
    prob = np.exp(logits - logits.max(axis=1, keepdims=True))
    return prob / prob.sum(axis=1, keepdims=True), label, patient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--patients", type=int, nargs="+", default=(100, 200))
    parser.add_argument("--classes", type=int, nargs="+", default=(2, 3))
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--correlation", type=float, default=0.6)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "interval_coverage.csv")
    args = parser.parse_args()
    for num_classes in args.classes:
        prob, label, _ = simulate(12345, 200_000, num_classes, args.correlation)
        truth = classification_metrics(prob, label)
        for num_patients in args.patients:
            ends: dict[str, list[tuple[float, ...]]] = {name: [] for name in truth}
            for study in range(args.studies):
                prob, label, patient = simulate(study, num_patients, num_classes, args.correlation)
                options = {"num_resamples": args.resamples, "seed": study}
                resamples = resampled_metrics(prob, label, patient, **options)
                clustered = metric_intervals(prob, label, patient, **options).metrics
                unclustered = metric_intervals(prob, label, np.arange(len(label)), **options).metrics
                for name in clustered.keys() & unclustered.keys():
                    percentiles = np.nanquantile(resamples[name], (0.025, 0.975))
                    ends[name].append((*clustered[name], *percentiles, *unclustered[name]))
            with appended(args.csv, COLUMNS) as writer:
                for name, rows in ends.items():
                    low, high, low_percentile, high_percentile, low_unclustered, high_unclustered = np.array(rows).T
                    true = truth[name]
                    shares = {
                        "clustered": (low <= true) & (true <= high),
                        "too_low": high < true,
                        "too_high": low > true,
                        "percentiles": (low_percentile <= true) & (true <= high_percentile),
                        "unclustered": (low_unclustered <= true) & (true <= high_unclustered),
                    }
                    percent = [round(100 * float(share.mean()), 1) for share in shares.values()]
                    row = [name, num_classes, num_patients, round(true, 4), *percent, round((high - low).mean(), 4)]
                    row += [round((high_unclustered - low_unclustered).mean(), 4), len(rows)]
                    row += [args.resamples, args.correlation]
                    row += [f"{platform.machine()}, numpy {np.__version__}", shlex.join(["python", *sys.argv])]
                    writer.writerow([datetime.date.today(), *row])
                    print(f"{num_classes} classes, {num_patients} patients, {name:24} {percent}")


if __name__ == "__main__":
    main()
