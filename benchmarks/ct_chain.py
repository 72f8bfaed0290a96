"""A DICOM chest CT of 250 x 512 x 512 to the network's 128^3: `lung_ct` against plain MONAI transforms.

    python benchmarks/ct_chain.py [--rounds 5] [--csv benchmarks/results/ct_chain.csv]

Both read the same phantom series (warm file cache), segment the lungs, window, crop to the lungs and resize. Methods
alternate in one process; medians and their ratio are appended to the CSV with machine and date. MONAI has no lung
segmentation, so its chain uses a published recipe at full resolution (threshold, largest components, closing); both
chains are also timed without a mask.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
)
from scipy import ndimage

from monai_pipelines import load_chain
from monai_pipelines.phantoms import thorax_phantom, write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS

SIZE = (128, 128, 128)


def recipe_lungs(hu: np.ndarray) -> np.ndarray:
    """The published recipe at full resolution: air below -320 HU, not connected to the border, two largest, closed."""
    labels, _ = ndimage.label(hu < -320)
    border = np.unique(
        np.concatenate([labels[0].ravel(), labels[-1].ravel(), labels[:, 0].ravel(), labels[:, -1].ravel()])
    )
    sizes = np.bincount(labels.ravel())
    sizes[border] = 0
    lungs = np.isin(labels, np.argsort(sizes)[-2:])
    closed = ndimage.binary_closing(lungs, iterations=3)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(closed, 2, 0)], axis=2)


def add_mask(data: dict[str, Any]) -> dict[str, Any]:
    """Add the recipe's mask to the item."""
    mask = recipe_lungs(data["image"][0].numpy())
    return {**data, "lungs": MetaTensor(torch.from_numpy(mask[None].astype(np.float32)), affine=data["image"].affine)}


class Monai:
    """The same with MONAI's dictionary transforms, with or without the recipe's mask."""

    def __init__(self, mask: bool) -> None:
        self.mask = mask
        self.load = Compose(
            [
                LoadImaged("image", reader="PydicomReader", image_only=True),
                EnsureChannelFirstd("image"),
                Orientationd("image", axcodes="RAS", labels=None),
            ]
        )
        keys, modes = (["image", "lungs"], ["bilinear", "nearest"]) if mask else (["image"], ["bilinear"])
        crop = [CropForegroundd(keys, source_key="lungs", margin=10, allow_smaller=True)] if mask else []
        resize = [
            Resized(
                keys,
                SIZE,
                mode=["trilinear", "nearest"] if mask else ["trilinear"],
                anti_aliasing=[True, False] if mask else [True],
            )
        ]
        self.prepare = Compose(
            [
                Spacingd(keys, pixdim=(1, 1, 1), mode=modes),
                *crop,
                *resize,
                ScaleIntensityRanged("image", -1000, 400, 0, 1, clip=True),
            ]
        )

    def __call__(self, series: str) -> torch.Tensor:
        data = self.load({"image": series})
        return self.prepare(add_mask(data) if self.mask else data)["image"]


def ours(mask: bool) -> Callable[[str], torch.Tensor]:
    """`lung_ct`; without the mask the whole scan is resampled."""
    off = None if mask else {"lungs": None, "measure": None, "mask": None}
    return load_chain("lung_ct", steps=off, size=SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=250)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "ct_chain.csv")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        scan = thorax_phantom(
            0, diseased=True, matrix=args.matrix, slice_mm=1.25, lesion_mm=(20, 40), scanner=SCANNERS[0]
        )
        hu = scan.hu[:, :, (scan.hu.shape[2] - args.slices) // 2 :][:, :, : args.slices]
        write_dicom_series(folder, hu, scan.affine)
        methods: dict[str, Callable[[str], Any]] = {
            "monai_pipelines lung_ct": ours(mask=True),
            "MONAI transforms + recipe's mask": Monai(mask=True),
            "monai_pipelines lung_ct, no mask": ours(mask=False),
            "MONAI transforms, no mask": Monai(mask=False),
        }
        times: dict[str, list[float]] = {name: [] for name in methods}
        for round_ in range(args.rounds + 1):
            for name, method in methods.items():
                start = time.perf_counter()
                method(folder)
                if round_:
                    times[name].append(time.perf_counter() - start)
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    new = not args.csv.exists()
    with args.csv.open("a", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        if new:
            out.writerow(
                [
                    "date",
                    "method",
                    "median_ms",
                    "min_ms",
                    "max_ms",
                    "ratio_to_ours",
                    "rounds",
                    "volume",
                    "machine",
                    "command",
                ]
            )
        for name, values in times.items():
            base = medians["monai_pipelines lung_ct" + (", no mask" if "no mask" in name else "")]
            row = [name, *(round(v) for v in (medians[name], 1000 * min(values), 1000 * max(values)))]
            row += [round(medians[name] / base, 1), args.rounds, "x".join(map(str, hu.shape))]
            machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
            out.writerow([datetime.date.today(), *row, machine, shlex.join(["python", *sys.argv])])
            print(f"{row[0]:36} {row[1]:7} ms ({row[2]}-{row[3]})  x{row[4]}")


if __name__ == "__main__":
    main()
