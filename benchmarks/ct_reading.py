"""A healthy DICOM series of 250 x 512 x 512 read from disk: `LoadCT` against MONAI's and SimpleITK's readers.

    python benchmarks/ct_reading.py [--rounds 5] [--csv benchmarks/results/ct_reading.csv]

All read the same phantom series (warm file cache) into HU, and alternate in one process; medians and their ratio to
`LoadCT` are appended to the CSV with machine and date. ``equal``: the voxels are the phantom's, up to the order of axes
and slices. MONAI's ITKReader is left out where the package itk is not installed.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk
from harness import arguments, installed, record, timed
from monai.transforms import LoadImage
from series import write_chest_series

from monai_pipelines.transforms import LoadCT

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
    parser = arguments(__doc__, "ct_reading.csv")
    parser.add_argument("--slices", type=int, default=250)
    parser.add_argument("--matrix", type=int, default=512)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    methods: dict[str, Callable[[str], Any]] = {
        OURS: LoadCT(),
        "MONAI LoadImage, PydicomReader": LoadImage(reader="PydicomReader"),
        "SimpleITK ImageSeriesReader": read_sitk,
    }
    if installed("itk"):
        methods["MONAI LoadImage, ITKReader"] = LoadImage(reader="ITKReader")
    with tempfile.TemporaryDirectory() as folder:
        hu = write_chest_series(folder, args.matrix, args.slices)
        equal = {name: f"equal: {is_equal(method(folder), hu)}" for name, method in methods.items()}
        seconds = timed({name: partial(method, folder) for name, method in methods.items()}, args.rounds)
    data = f"DICOM {'x'.join(map(str, hu.shape))}"
    record(args.csv, seconds, lambda name: OURS, equal, data, "torch", "monai", "pydicom", "SimpleITK", "itk")


if __name__ == "__main__":
    main()
