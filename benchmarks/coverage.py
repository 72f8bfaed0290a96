"""How often 95% intervals cover the truth, in simulated studies of patients with several scans each.

A patient has one class and 1 to 8 scans; a scan's evidence is that of the class, plus a part that all scans of the
patient share (`correlation` of the noise), plus one of its own; probabilities are 1.5 times too sure. The truth is the
figure of 200,000 patients. Columns: share of the studies, in percent, whose interval holds the truth, for
`metric_intervals` by patient (`clustered`; `too_low`, `too_high`: the interval lies below or above the truth), for
percentiles of the same resamples (`percentiles`), and for `metric_intervals` with each scan as a patient of its own
(`unclustered`). With 1,000 studies a share of 95% is sure to +-1.4%.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import shlex
import sys
from pathlib import Path

import numpy as np

from monai_pipelines.metrics import classification_metrics, metric_intervals, resampled_metrics

COLUMNS = (
    *("date", "figure", "classes", "patients", "truth", "clustered", "too_low", "too_high", "percentiles"),
    *("unclustered", "width", "width_unclustered", "studies", "resamples", "correlation", "machine", "command"),
)
Study = tuple[np.ndarray, np.ndarray, np.ndarray]


def simulate(seed: int, num_patients: int, num_classes: int, correlation: float) -> Study:
    """Probabilities, labels and patients of a study; of class k there are fewer patients than of class k - 1."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 9, num_patients))
    prior = np.array([0.7, 0.3]) if num_classes == 2 else np.arange(num_classes, 0, -1) / sum(range(num_classes + 1))
    label = rng.choice(num_classes, num_patients, p=prior)[patient]
    shared, own = rng.normal(size=(num_patients, num_classes))[patient], rng.normal(size=(len(patient), num_classes))
    noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    signal = 1.1 if num_classes == 2 else 1.5
    logits = 1.5 * (signal * (noise + signal * np.eye(num_classes)[label]) + np.log(prior))
    prob = np.exp(logits - logits.max(axis=1, keepdims=True))
    return prob / prob.sum(axis=1, keepdims=True), label, patient


def main() -> None:
    """Simulate, count, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--patients", type=int, nargs="+", default=(100, 200))
    parser.add_argument("--classes", type=int, nargs="+", default=(2, 3))
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--correlation", type=float, default=0.6)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "coverage.csv")
    args = parser.parse_args()
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    new = not args.csv.exists()
    for num_classes in args.classes:
        prob, label, _ = simulate(12345, 200_000, num_classes, args.correlation)
        truth = classification_metrics(prob, label)
        for num_patients in args.patients:
            found: dict[str, list[tuple[float, float, float, float, float, float]]] = {name: [] for name in truth}
            for study in range(args.studies):
                prob, label, patient = simulate(study, num_patients, num_classes, args.correlation)
                drawn = {"num_resamples": args.resamples, "seed": study}
                resamples = resampled_metrics(prob, label, patient, **drawn)
                clustered = metric_intervals(prob, label, patient, **drawn).metrics
                alone = metric_intervals(prob, label, np.arange(len(label)), **drawn).metrics
                for name in clustered.keys() & alone.keys():
                    percentiles = np.nanquantile(resamples[name], (0.025, 0.975))
                    found[name].append((*clustered[name], *percentiles, *alone[name]))
            with args.csv.open("a", newline="", encoding="utf-8") as file:
                out_file = csv.writer(file, lineterminator="\n")
                if new:
                    out_file.writerow(COLUMNS)
                    new = False
                for name, rows in found.items():
                    low, high, low_percentile, high_percentile, low_alone, high_alone = np.array(rows).T
                    true = truth[name]
                    shares = {
                        "clustered": (low <= true) & (true <= high),
                        "too_low": high < true,
                        "too_high": low > true,
                        "percentiles": (low_percentile <= true) & (true <= high_percentile),
                        "unclustered": (low_alone <= true) & (true <= high_alone),
                    }
                    told = [round(100 * float(share.mean()), 1) for share in shares.values()]
                    row = [name, num_classes, num_patients, round(true, 4), *told, round((high - low).mean(), 4)]
                    row += [round((high_alone - low_alone).mean(), 4), len(rows), args.resamples, args.correlation]
                    row += [f"{platform.machine()}, numpy {np.__version__}", shlex.join(["python", *sys.argv])]
                    out_file.writerow([datetime.date.today(), *row])
                    print(f"{num_classes} classes, {num_patients} patients, {name:24} {told}")


if __name__ == "__main__":
    main()
