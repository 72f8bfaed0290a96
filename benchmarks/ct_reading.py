"""A healthy DICOM series of 250 x 512 x 512 read from disk: `LoadCT` against MONAI's and SimpleITK's readers.

    python benchmarks/ct_reading.py [--rounds 5] [--csv benchmarks/results/ct_reading.csv]

All read the same phantom series (warm file cache) into HU, and alternate in one process; medians and their ratio to
`LoadCT` are appended to the CSV with machine and date. ``equal``: the voxels are the phantom's, up to the order of axes
and slices. MONAI's ITKReader is left out where the package itk is not installed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
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
import SimpleITK as sitk
import torch
from monai.transforms import LoadImage
from recording import appended

from monai_pipelines.phantoms import thorax_phantom, write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS
from monai_pipelines.transforms import LoadCT

COLUMNS = (
    *("date", "method", "median_ms", "min_ms", "max_ms", "times_ours", "equal", "rounds", "volume", "machine"),
    "command",
)
OURS = "LoadCT"


def read_sitk(folder: str) -> np.ndarray:
    """SimpleITK's recipe: the series that GDCM finds in the folder."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    return sitk.GetArrayFromImage(reader.Execute())


def is_equal(volume: Any, hu: np.ndarray) -> bool:
    """Whether a volume has these voxels, in any order of its axes, each in either direction."""
    array = np.squeeze(np.asarray(volume))
    return any(
        np.array_equal(np.flip(array.transpose(order), flipped), hu)
        for order in itertools.permutations(range(3))
        if array.transpose(order).shape == hu.shape
        for number in range(4)
        for flipped in itertools.combinations(range(3), number)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=250)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "ct_reading.csv")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    methods: dict[str, Callable[[str], Any]] = {
        OURS: LoadCT(),
        "MONAI LoadImage, PydicomReader": LoadImage(reader="PydicomReader"),
        "SimpleITK ImageSeriesReader": read_sitk,
    }
    if importlib.util.find_spec("itk"):
        methods["MONAI LoadImage, ITKReader"] = LoadImage(reader="ITKReader")
    times: dict[str, list[float]] = {name: [] for name in methods}
    equal = {}
    with tempfile.TemporaryDirectory() as folder:
        scan = thorax_phantom(
            0, diseased=True, matrix=args.matrix, slice_mm=1.25, lesion_mm=(20, 40), scanner=SCANNERS[0]
        )
        hu = scan.hu[:, :, (scan.hu.shape[2] - args.slices) // 2 :][:, :, : args.slices]
        write_dicom_series(folder, hu, scan.affine)
        for round_ in range(args.rounds + 1):
            for name, method in methods.items():
                start = time.perf_counter()
                volume = method(folder)
                if round_:
                    times[name].append(1000 * (time.perf_counter() - start))
                else:
                    equal[name] = is_equal(volume, hu)
    base = statistics.median(times[OURS])
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, SimpleITK {sitk.__version__}"
    command = shlex.join(["python", *sys.argv])
    with appended(args.csv, COLUMNS) as out:
        for name, values in times.items():
            median = statistics.median(values)
            numbers = [round(median), round(min(values)), round(max(values)), round(median / base, 1)]
            volume_text = "x".join(map(str, hu.shape))
            out.writerow(
                [datetime.date.today(), name, *numbers, equal[name], args.rounds, volume_text, machine, command]
            )
            print(f"{name:32} {numbers[0]:6} ms ({numbers[1]}-{numbers[2]})  x{numbers[3]}  equal: {equal[name]}")


if __name__ == "__main__":
    main()
