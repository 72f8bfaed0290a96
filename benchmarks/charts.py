"""The chart of the README, `results/speed.svg`, from the CSVs of the other benchmarks: how much longer others take.

    python benchmarks/charts.py

Each benchmark is represented by its last run that includes all methods. Bars show the ratio of each median to that of
our method for the same job.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from harness import RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.rcParams["svg.hashsalt"] = "speed"  # the same file from the same numbers

TICKS = (1, 2, 5, 10, 20, 50, 100, 200)


class Panel(NamedTuple):
    """One subject: its CSV, our method, and the other methods with their labels."""

    title: str
    file: str
    ours: str
    methods: dict[str, str]
    data: str = ""


PANELS = (
    Panel(
        "CT series to the network's input, with lung mask",
        "ct_chain",
        "lung_ct, masking: air",
        {
            "recipe: pydicom, scikit-image, scipy": "pydicom, scikit-image, scipy",
            "TorchIO, recipe's mask": "TorchIO",
            "MONAI lazy, recipe's mask": "MONAI, lazy",
            "MONAI, recipe's mask, PydicomReader": "MONAI",
        },
    ),
    Panel(
        "Reading a CT series",
        "ct_reading",
        "LoadCT",
        {"SimpleITK ImageSeriesReader": "SimpleITK", "MONAI LoadImage, PydicomReader": "MONAI, PydicomReader"},
    ),
    Panel(
        "A prepared volume from the cache on disk",
        "loading",
        "PreparedDataset on disk",
        {"MONAI PersistentDataset": "MONAI PersistentDataset"},
    ),
    Panel(
        "3D augmentation of a volume, elastic",
        "augment3d",
        "augment_ct",
        {
            "MONAI Rand3DElastic, intensity": "MONAI",
            "TorchIO with elastic": "TorchIO",
            "recipe: scipy, elasticdeform": "scipy, elasticdeform",
        },
    ),
    Panel(
        "2D augmentation of 128 images",
        "augment2d",
        "monai_pipelines augment_image2d",
        {"MONAI transforms, one affine": "MONAI, one affine", "MONAI transforms": "MONAI"},
    ),
    Panel(
        "1,000 tiles of a slide, one thread",
        "slide_reading",
        "monai_pipelines, 1 thread(s)",
        {"OpenSlide": "OpenSlide", "MONAI MaskedPatchWSIDataset": "MONAI MaskedPatchWSIDataset"},
        data="aligned",
    ),
    Panel(
        "Bootstrap intervals of 32 metrics",
        "bootstrap",
        "monai_pipelines",
        {"scikit-learn loop": "loop over scikit-learn"},
        data="10000 images of 3000 patients, 2 classes",
    ),
)


def last_run(panel: Panel) -> dict[str, dict[str, str]]:
    """The rows of the last run that has all methods, on the panel's data."""
    runs: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    with (RESULTS / f"{panel.file}.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["data"].startswith(panel.data):
                runs.setdefault((row["date"], row["command"]), {})[row["method"]] = row
    return next(run for run in reversed(runs.values()) if {panel.ours, *panel.methods} <= run.keys())


def readable(row: dict[str, str]) -> str:
    """The median with its unit."""
    milliseconds = float(row["median_ms"])
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"


def draw(axes: Axes, panel: Panel, top: float) -> float:
    """A title and bars from ``top`` downwards; returns where the next subject starts."""
    rows = last_run(panel)
    title = f"{panel.title} (ours: {readable(rows[panel.ours])})"
    axes.text(1.02, top, title, va="center", size=9, weight="bold")
    for place, (name, label) in enumerate(panel.methods.items(), 1):
        ratio = float(rows[name]["times_ours"])
        axes.barh(top + place, ratio - 1, left=1, color="#4878a8", height=0.7)
        axes.text(0.96, top + place, label, va="center", ha="right", size=8)
        times = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
        axes.text(ratio * 1.05, top + place, f"{times}x  ({readable(rows[name])})", va="center", size=8)
    return top + len(panel.methods) + 1.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.svg")
    args = parser.parse_args()
    figure = Figure(figsize=(7.6, 7), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    end = 0.0
    for panel in PANELS:
        end = draw(axes, panel, end)
    axes.set_ylim(end - 1, -0.7)
    axes.set_xlim(1, 300)
    axes.set_xticks(TICKS, map(str, TICKS), size=8)
    axes.set_yticks([])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("times as long as ours (logarithmic axis)", size=8)
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
