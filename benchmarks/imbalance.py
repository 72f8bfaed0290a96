"""Imbalanced classes, 1 tumour tile in 21: plain, weighted and focal loss, and a balanced sampler.

    .venv/bin/python benchmarks/imbalance.py [--seeds 0 1 2 3 4]

Phantom tiles of normal mucosa and tumour (new slides for each seed): 400 + 20 to train, 100 + 5 to validate,
200 + 200 to test, with the colorectal bundle's demo network and the epoch of lowest validation loss. Sensitivity and
specificity are at 0.5 unless a threshold is named. Appends to docs/imbalance.csv of the bundle and rewrites the table
made from it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from monai_pipelines.phantoms import write_histology_tiles

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "colorectal_histology_classification"
FILE, PAGE = BUNDLE / "docs" / "imbalance.csv", BUNDLE / "docs" / "README.md"
START, END = "<!-- imbalance: start -->", "<!-- imbalance: end -->"
METHODS: dict[str, dict[str, object]] = {
    "plain": {"class_weights": "none"},
    "plain, threshold by Youden": {"class_weights": "none", "threshold_by": "youden"},
    "weighted": {"class_weights": "inverse"},
    "focal": {"loss": {"_target_": "monai_pipelines.losses.FocalLoss", "gamma": 2.0}},
    "balanced batches": {"class_weights": "none", "sampling": "balanced"},
}
METRICS = ("roc_auc", "average_precision", "balanced_accuracy", "recall", "specificity")
COLUMNS = ("date", "method", "seed", *METRICS, "machine", "command")
COUNTS = {"train": {"NORM": 400, "TUM": 20}, "val": {"NORM": 100, "TUM": 5}, "test": {"NORM": 200, "TUM": 200}}


def run(method: str, seed: int, data: Path, output: Path) -> dict[str, float]:
    """Train and evaluate; returns the test metrics."""
    overrides = {
        "classes": ["NORM", "TUM"],
        "patient_pattern": None,
        "seed": seed,
        "key_metric": "loss",
        "max_epochs": 20,
    }
    overrides |= METHODS[method]
    overlay = output / "method.json"
    overlay.parent.mkdir(parents=True)
    overlay.write_text(json.dumps(overrides))
    files = str([*(str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "demo")), str(overlay)])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--bundle_root", str(BUNDLE)]
    command += ["--dataset_dir", str(data), "--output_dir", str(output), "--cache_dir", str(data.parent / "cache")]
    for run_id in ("run", "evaluate"):
        subprocess.run([*command, "--run_id", run_id], check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / "metrics.json").read_text())["metrics"]


def read_results() -> list[dict[str, str]]:
    """The rows of imbalance.csv."""
    return list(csv.DictReader(FILE.read_text("utf-8").splitlines())) if FILE.exists() else []


def table(rows: list[dict[str, str]]) -> str:
    """Mean and standard deviation over the seeds, as a Markdown table; nothing for none."""
    if not rows:
        return ""
    lines = ["| method | seeds | ROC AUC | average precision | balanced accuracy | sensitivity | specificity |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for method in METHODS:
        seeds = [row for row in rows if row["method"] == method]
        columns = [[float(row[metric]) for row in seeds] for metric in METRICS]
        cells = " | ".join(f"{statistics.mean(column):.3f} ± {statistics.stdev(column):.3f}" for column in columns)
        lines.append(f"| {method} | {len(seeds)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Run all methods for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "imbalance")
    args = parser.parse_args()
    for seed in args.seeds:
        data = args.runs / str(seed) / "data"
        for part, (split, counts) in enumerate(COUNTS.items()):
            write_histology_tiles(data / split, counts, seed=3 * seed + part, size=96, num_slides=20)
        for method in METHODS:
            metrics = run(method, seed, data, args.runs / str(seed) / method.replace(" ", "_").replace(",", ""))
            row = {
                "date": datetime.date.today(),
                "method": method,
                "seed": seed,
                **{name: round(metrics[name], 4) for name in METRICS},
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "command": f"python benchmarks/imbalance.py --seeds {seed}",
            }
            new = not FILE.exists()
            with FILE.open("a", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}\n{table(read_results())}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
