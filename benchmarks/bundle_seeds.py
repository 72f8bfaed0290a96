"""A bundle over several seeds: test metrics with 95% intervals by patient, beside the strongest shortcut's.

On phantoms, new ones for each seed (`make demo`), optionally with an overlay after demo.yaml:
    .venv/bin/python benchmarks/bundle_seeds.py BUNDLE --seeds 0 1 2
    .venv/bin/python benchmarks/bundle_seeds.py chest_xray_detection --seeds 0 --overlay grid
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
METRICS = {"classification": ("roc_auc", "accuracy"), "detection": ("cpm", "sensitivity_at_1", "ap50")}
START, END = "<!-- results: start -->", "<!-- results: end -->"


def docs(bundle: str) -> Path:
    """The folder of a bundle's results and page."""
    return ROOT / "bundles" / bundle / "docs"


def run_demo(bundle: str, seed: int, folder: Path, overlay: str | None) -> str:
    """`make demo` with a seed; returns the command."""
    command = ["make", "demo", f"BUNDLE={bundle}", f"SEED={seed}", *([f"OVERLAY={overlay}"] if overlay else [])]
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


def task(bundle: str) -> str:
    """What it does."""
    return bundle.rpartition("_")[2]


def row(
    bundle: str, seed: int, folder: Path, data: str, config: str, command: str, seconds: float
) -> dict[str, object]:
    """The results of a run."""
    evaluation = json.loads((folder / "metrics.json").read_text())
    metrics, intervals = evaluation["metrics"], evaluation["intervals"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if task(bundle) == "detection":
        beside = {
            "baseline_cpm": round(evaluation["baseline"]["metrics"]["cpm"], 4),
            "num_lesions": evaluation["num_lesions"],
        }
    else:
        beside = {
            "shortcut": evaluation["shortcut_name"],
            "shortcut_roc_auc": round(evaluation["shortcut"]["roc_auc"], 4),
            "sensitivity": round(metrics["recall"], 4),
            "specificity": round(metrics["specificity"], 4),
        }
    return {
        "date": datetime.date.today(),
        "data": data,
        "config": config,
        "seed": seed,
        "num_images": evaluation["num_images"],
        "num_patients": evaluation["num_patients"] or "unknown",
        **{
            f"{name}{end}": round(value, 4)
            for name in METRICS[task(bundle)]
            for end, value in zip(("", "_low", "_high"), (metrics[name], *intervals[name]), strict=True)
        },
        **beside,
        "seconds": round(seconds),
        "machine": f"{os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads, {platform.machine()}, {device}",
        "command": command,
    }


def table(rows: list[dict[str, str]]) -> str:
    """The rows as a Markdown table; nothing for none."""
    if not rows:
        return ""
    return "\n".join(_detection_lines(rows) if "cpm" in rows[0] else _classification_lines(rows))


def _classification_lines(rows: list[dict[str, str]]) -> list[str]:
    lines = ["| data | seed | test images (patients) | ROC AUC (95%) | shortcut's | accuracy (95%) | time |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        auc, accuracy = (_with_interval(r, metric) for metric in METRICS["classification"])
        lines.append(
            f"| {r['data']} | {r['seed']} | {r['num_images']} ({r['num_patients']}) | **{auc[:5]}**{auc[5:]} "
            f"| {float(r['shortcut_roc_auc']):.3f} ({r['shortcut']}) | {accuracy} | {r['seconds']} s |"
        )
    return lines


def _detection_lines(rows: list[dict[str, str]]) -> list[str]:
    lines = ["| data | config | seed | test images (patients), lesions | CPM (95%) | bright spots | "
             "sensitivity at 1 FP (95%) | AP50 (95%) |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        cpm, sensitivity, ap50 = (_with_interval(r, metric) for metric in METRICS["detection"])
        images = f"{r['num_images']} ({r['num_patients']}), {r['num_lesions']}"
        lines.append(
            f"| {r['data']} | {r['config']} | {r['seed']} | {images} | **{cpm[:5]}**{cpm[5:]} "
            f"| {float(r['baseline_cpm']):.3f} | {sensitivity} | {ap50} |"
        )
    return lines


def _with_interval(r: dict[str, str], metric: str) -> str:
    value, low, high = (float(r[f"{metric}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


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
    parser.add_argument("--overlay", help="a config after demo.yaml, without --data")
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    args = parser.parse_args()
    file = docs(args.bundle) / "results.csv"
    for seed in args.seeds:
        config = " + ".join(f"{name}.yaml" for name in ("demo", args.overlay) if name)
        folder = ROOT / args.runs / args.bundle / args.name.replace(" ", "_") / (args.overlay or "") / str(seed)
        if folder.exists():
            raise SystemExit(f"{folder} exists: remove it, its files would be reused and the time be wrong")
        start = time.perf_counter()
        if args.data is None:
            command = run_demo(args.bundle, seed, folder, args.overlay)
        else:
            command = run_data(args.bundle, seed, folder, args.data, args.options)
        made = row(args.bundle, seed, folder, args.name, config, command, time.perf_counter() - start)
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(made), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(made)
    if file.exists():
        write_table(args.bundle)


if __name__ == "__main__":
    main()
