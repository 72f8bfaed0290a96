"""A bundle over several seeds: test metrics with 95% intervals by patient, beside the strongest shortcut's.

On phantoms, new ones for each seed (`make demo`):
    .venv/bin/python benchmarks/bundle_seeds.py BUNDLE --seeds 0 1 2
On your images, called "my images" in the table:
    .venv/bin/python benchmarks/bundle_seeds.py BUNDLE --data FOLDER --name "my images" --options "--max_epochs 30"

Appends a row per seed to the bundle's docs/results.csv and rewrites the table made from it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
METRICS = ("roc_auc", "accuracy")
COLUMNS = (
    *("date", "data", "config", "seed", "num_images", "num_patients"),
    *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")),
    *("shortcut", "shortcut_roc_auc", "sensitivity", "specificity", "seconds", "machine", "command"),
)
START, END = "<!-- results: start -->", "<!-- results: end -->"


def docs(bundle: str) -> Path:
    """The folder of a bundle's results and page."""
    return ROOT / "bundles" / bundle / "docs"


def run_demo(bundle: str, seed: int, folder: Path) -> str:
    """`make demo` with a seed; returns the command."""
    command = ["make", "demo", f"BUNDLE={bundle}", f"SEED={seed}"]
    subprocess.run([*command, f"DEMO={folder}"], cwd=ROOT, check=True)
    return shlex.join(command)


def run_data(bundle: str, seed: int, folder: Path, data: Path, options: str) -> str:
    """Train with the demo's overlay and evaluate; returns the training command without its paths."""
    configs = ROOT / "bundles" / bundle / "configs"
    files = str([str(configs / f"{name}.yaml") for name in ("train", "demo")])
    for run_id in ("run", "evaluate"):
        command = [sys.executable, "-m", "monai.bundle", "run", "--run_id", run_id, "--config_file", files]
        command += ["--bundle_root", str(configs.parent), "--dataset_dir", str(data), "--output_dir", str(folder)]
        subprocess.run([*command, "--seed", str(seed), *shlex.split(options)], cwd=ROOT, check=True)
    shown = "['configs/train.yaml','configs/demo.yaml']"
    return f'python -m monai.bundle run --config_file "{shown}" --dataset_dir DATA --seed {seed} {options}'.strip()


def row(bundle: str, seed: int, folder: Path, data: str, command: str, seconds: float) -> dict[str, object]:
    """The results of a run."""
    evaluation = json.loads((folder / "metrics.json").read_text())
    metrics, intervals = evaluation["metrics"], evaluation["intervals"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "date": datetime.date.today(),
        "data": data,
        "config": "demo.yaml",
        "seed": seed,
        "num_images": evaluation["num_images"],
        "num_patients": evaluation["num_patients"] or "unknown",
        **{name: round(metrics[name], 4) for name in METRICS},
        **{
            f"{name}_{end}": round(v, 4)
            for name in METRICS
            for end, v in zip(("low", "high"), intervals[name], strict=True)
        },
        "shortcut": evaluation["shortcut_name"],
        "shortcut_roc_auc": round(evaluation["shortcut"]["roc_auc"], 4),
        "sensitivity": round(metrics["recall"], 4),
        "specificity": round(metrics["specificity"], 4),
        "seconds": round(seconds),
        "machine": f"{os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads, {platform.machine()}, {device}",
        "command": command,
    }


def table(rows: list[dict[str, str]]) -> str:
    """The rows as a Markdown table; nothing for none."""
    if not rows:
        return ""
    lines = ["| data | seed | test images (patients) | ROC AUC (95%) | shortcut's | accuracy (95%) | time |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        auc, accuracy = (
            f"{float(r[f]):.3f} ({float(r[f + '_low']):.3f} to {float(r[f + '_high']):.3f})" for f in METRICS
        )
        lines.append(
            f"| {r['data']} | {r['seed']} | {r['num_images']} ({r['num_patients']}) | **{auc[:5]}**{auc[5:]} "
            f"| {float(r['shortcut_roc_auc']):.3f} ({r['shortcut']}) | {accuracy} | {r['seconds']} s |"
        )
    return "\n".join(lines)


def read_results(bundle: str) -> list[dict[str, str]]:
    """The rows of a bundle's results.csv."""
    file = docs(bundle) / "results.csv"
    return list(csv.DictReader(file.read_text("utf-8").splitlines())) if file.exists() else []


def write_table(bundle: str) -> None:
    """Write the table of results.csv between the marks of the bundle's page."""
    page = docs(bundle) / "README.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    made = table(read_results(bundle))
    page.write_text(f"{before}{START}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """Run the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name", default="phantoms")
    parser.add_argument("--options", default="", help="overrides for the bundle, with --data")
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    args = parser.parse_args()
    file = docs(args.bundle) / "results.csv"
    for seed in args.seeds:
        folder = ROOT / args.runs / args.bundle / args.name.replace(" ", "_") / str(seed)
        if folder.exists():
            raise SystemExit(f"{folder} exists: remove it, its files would be reused and the time be wrong")
        start = time.perf_counter()
        if args.data is None:
            command = run_demo(args.bundle, seed, folder)
        else:
            command = run_data(args.bundle, seed, folder, args.data, args.options)
        made = row(args.bundle, seed, folder, args.name, command, time.perf_counter() - start)
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(made)
    if file.exists():
        write_table(args.bundle)


if __name__ == "__main__":
    main()
