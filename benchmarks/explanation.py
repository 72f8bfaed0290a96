"""How often the maximum of a map lies in a lesion, on the diseased phantoms that a run classified correctly.

A hit is a maximum in or within 20 mm of a true lesion of the phantom. For comparison: a random point in the lungs (the
expected share, from the true lungs), the center of the lungs, and networks with random weights. Intervals are 95%, by
bootstrap of patients. ``make demo`` leaves the run.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from harness import appended
from numpy.typing import NDArray
from rich.progress import track

from monai_pipelines.data import PreparedDataset
from monai_pipelines.explain import METHODS, explain_class, stages
from monai_pipelines.runs import inference_config

NEAR_MM = 20
DISEASE = 1
POINTS = 4000  # random, in the lungs
COLUMNS = (
    *("date", "weights", "method", "stage", "cells", "cell_mm", "images", "patients", "hit", "hit_low", "hit_high"),
    *("in_lesion", "median_mm", "times_random_point", "seed", "machine", "command"),
)


class Phantom(NamedTuple):
    """A diseased phantom and where its lesions are."""

    patient: str
    image: Any  # MetaTensor (1, X, Y, Z)
    lesions: NDArray[np.float64]  # (L, 4): center in RAS mm, diameter in mm
    lungs_mm: NDArray[np.float64]  # (V, 3): voxels of the lungs

    def outside_mm(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance of points (N, 3) from the nearest lesion's surface, negative inside."""
        distances = np.linalg.norm(points_mm[:, None] - self.lesions[None, :, :3], axis=2)
        return (distances - self.lesions[:, 3] / 2).min(axis=1)


class Measured(NamedTuple):
    """Distances of a method's maxima from the nearest lesion, (networks, phantoms)."""

    weights: str
    method: str
    stage: str
    cells: str
    cell_mm: float | str
    mm: NDArray[np.float64]


def detected_phantoms(run: Path, data: Path) -> list[Phantom]:
    """The diseased phantoms of the test set that the run classified as diseased."""
    with (run / "predictions.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["label_name"] == row["predicted_name"] == "disease"]
    lesions: dict[str, list[list[float]]] = {}
    with (data / "truth" / "lesions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            lesion = [float(row[key]) for key in ("x_mm", "y_mm", "z_mm", "diameter_mm")]
            lesions.setdefault(row["image"], []).append(lesion)
    items = [{"image": str(data / row["image"]), "name": row["image"], "patient": row["patient"]} for row in rows]
    phantoms = []
    for item in PreparedDataset(items, inference_config(run).get_parsed_content("preprocessing"), run / "cache"):
        lungs = nib.load(data / "truth" / f"{Path(item['name']).name}_lungs.nii.gz")
        lungs_mm = nib.affines.apply_affine(lungs.affine, np.argwhere(np.asarray(lungs.dataobj) > 0))
        phantoms.append(Phantom(item["patient"], item["image"], np.array(lesions[item["name"]]), lungs_mm))
    return phantoms


def measure(run: Path, phantoms: Sequence[Phantom], weights: str, method: str, networks: int) -> list[Measured]:
    """Explain the disease in each phantom at each stage, with the trained network or with random ones."""
    distances: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(networks):
        torch.manual_seed(number)
        network = inference_config(run).get_parsed_content("network").eval()
        if weights == "trained":
            network.load_state_dict(torch.load(run / "best.pt", map_location="cpu", weights_only=True)["model"])
        for phantom in track(phantoms, f"{weights} weights {number + 1}/{networks}, {method}"):
            image, affine = phantom.image.as_tensor()[None], phantom.image.affine.numpy()
            names = [None] if method == "occlusion" else [stage.name for stage in stages(network, image)]
            for name in names:
                explanation = explain_class(network, image, DISEASE, method, name)
                peak = nib.affines.apply_affine(affine, explanation.peak)[None]
                mm = phantom.outside_mm(peak)[0] if explanation.map.any() else np.inf
                cell_mm = max(phantom.image.pixdim.numpy() * explanation.cell_px)
                cells = "x".join(map(str, explanation.cells))
                distances.setdefault((name or "", cells), []).append((mm, cell_mm))
    rows = []
    for (stage, cells), values in distances.items():
        mm, cell_mm = np.array(values).T
        rows.append(Measured(weights, method, stage, cells, round(np.median(cell_mm), 1), mm.reshape(networks, -1)))
    return rows


def interval(shares: NDArray[np.float64], patients: Sequence[str], seed: int) -> tuple[float, float]:
    """95% interval of the mean over images, by bootstrap of patients."""
    names, group = np.unique(patients, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), 2000)
    weight = counts[:, group]
    low, high = np.percentile((weight * shares).sum(1) / weight.sum(1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    """Measure each method and stage and write one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo/lung_ct_classification"))
    parser.add_argument("--data", type=Path, help="the phantoms; default: phantoms-SEED of the run")
    parser.add_argument("--random-networks", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "explanation.csv")
    args = parser.parse_args()
    seed = json.loads((args.run / "run.json").read_text())["seed"]
    phantoms = detected_phantoms(args.run, args.data or args.run / f"phantoms-{seed}")
    patients = [phantom.patient for phantom in phantoms]
    rng = np.random.default_rng(seed)
    points = np.array([p.outside_mm(p.lungs_mm[rng.integers(len(p.lungs_mm), size=POINTS)]) for p in phantoms])
    centers = np.array([p.outside_mm(p.lungs_mm.mean(0)[None]) for p in phantoms])
    measured = [
        Measured("none", "random point in the lungs", "", "", "", points.T),
        Measured("none", "center of the lungs", "", "", "", centers.T),
    ]
    for method in METHODS:
        measured += measure(args.run, phantoms, "trained", method, 1)
    for method in ("gradcam", "gradcam++"):
        measured += measure(args.run, phantoms, "random", method, args.random_networks)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    with appended(args.csv, COLUMNS) as out:
        for one in measured:
            shares = (one.mm <= NEAR_MM).mean(axis=0)
            low, high = interval(shares, patients, seed)
            times = shares.mean() / (points <= NEAR_MM).mean()
            values = [round(float(v), 3) for v in (shares.mean(), low, high, (one.mm <= 0).mean())]
            row = [*one[:5], len(phantoms), len(set(patients)), *values, round(float(np.median(one.mm)), 1)]
            row += [round(float(times), 1), seed, machine, shlex.join(["python", *sys.argv])]
            out.writerow([datetime.date.today(), *row])
            print(f"{' '.join(one[:4]):46} hit {values[0]:.3f} ({low:.3f}-{high:.3f})")


if __name__ == "__main__":
    main()
