"""The demo over several seeds: new phantoms, new split, new weights for each; test figures beside the shortcut's.

    .venv/bin/python benchmarks/demo_seeds.py [--seeds 0 1 2] [--runs runs/seeds]

Appends a row for each seed to the bundle's docs/results.csv and rewrites the tables made from it in the READMEs.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "bundles" / "lung_ct_classification" / "docs"
COLUMNS = ("date", "config", "seed", "num_scans", "num_patients", "roc_auc", "shortcut_roc_auc", "sensitivity",
           "specificity", "seconds", "machine", "command")  # fmt: skip
START, END = "<!-- results: start -->", "<!-- results: end -->"


def run_seed(seed: int, folder: Path) -> dict[str, object]:
    """`make demo` with its own seed; returns a row."""
    command = ["make", "demo", f"SEED={seed}", f"DEMO={folder}"]
    start = time.perf_counter()
    if (ROOT / folder).exists():
        raise SystemExit(f"{folder} exists: what lies there would be used again, and the time would be none")
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    metrics = json.loads((ROOT / folder / "metrics.json").read_text())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    own, shortcut = metrics["metrics"], metrics["shortcut"]
    return {
        "date": datetime.date.today(),
        "config": "demo.yaml",
        "seed": seed,
        "num_scans": metrics["num_scans"],
        "num_patients": metrics["num_patients"],
        "roc_auc": round(own["roc_auc"], 4),
        "shortcut_roc_auc": round(shortcut["roc_auc"], 4),
        "sensitivity": round(own["recall"], 4),
        "specificity": round(own["specificity"], 4),
        "seconds": round(seconds),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {device}",
        "command": f"make demo SEED={seed}",
    }


def table(rows: list[dict[str, str]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| config | seed | test scans (patients) | ROC AUC | shortcut's | sensitivity | specificity | time |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r['config']} | {r['seed']} | {r['num_scans']} ({r['num_patients']}) | **{float(r['roc_auc']):.3f}** "
        f"| {float(r['shortcut_roc_auc']):.3f} | {float(r['sensitivity']):.3f} | {float(r['specificity']):.3f} "
        f"| {r['seconds']} s |"
        for r in rows
    ]
    return "\n".join(lines)


def read_results() -> list[dict[str, str]]:
    """The rows of results.csv."""
    with open(DOCS / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_tables() -> None:
    """Put the table made from results.csv between the marks of the READMEs."""
    made = table(read_results())
    for readme in (ROOT / "README.md", DOCS / "README.md"):
        text = readme.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        readme.write_text(f"{before}{START}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """Run the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    args = parser.parse_args()
    for seed in args.seeds:
        row = run_seed(seed, args.runs / str(seed))
        file = DOCS / "results.csv"
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
    write_tables()


if __name__ == "__main__":
    main()
