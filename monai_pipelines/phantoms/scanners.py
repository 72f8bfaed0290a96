"""The CT scanners of the phantoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scanner:
    """A CT scanner with its reconstruction and its DICOM habits.

    Args:
        name: model name, written to the DICOM files and to the table.
        manufacturer: written to the DICOM files.
        fov_mm: side of the reconstructed square.
        slice_mm: distance between slice centers.
        thickness_mm: thickness of a slice.
        noise_hu: standard deviation of the noise.
        kernel: "soft" smooths the noise, "sharp" enhances edges.
        table: shape of the patient's table.
        table_gap_mm: air between the back and the table.
        outside_hu: value outside the circular field of view; None: the whole square is reconstructed.
        signed: whether stored pixels are signed.
        intercept_hu: HU of stored value 0.
        hashed_names: file names in no order.
        suffix: end of the file names.
        head_first: instance numbers run from head to feet.
    """

    name: str
    manufacturer: str = "Phantom Works"
    fov_mm: float = 420.0
    slice_mm: float = 2.5
    thickness_mm: float = 2.5
    noise_hu: float = 15.0
    kernel: Literal["soft", "sharp"] = "soft"
    table: Literal["curved", "flat"] = "curved"
    table_gap_mm: float = 5.0
    outside_hu: int | None = None
    signed: bool = True
    intercept_hu: int = -1024
    hashed_names: bool = False
    suffix: str = ".dcm"
    head_first: bool = False


SCANNERS = (
    Scanner("Plain 16", fov_mm=430, slice_mm=5, thickness_mm=5, noise_hu=12, intercept_hu=0),
    Scanner(
        "Lumen 64",
        manufacturer="Eastern Phantom",
        fov_mm=410,
        noise_hu=28,
        kernel="sharp",
        table="flat",
        table_gap_mm=8,
        outside_hu=-3024,
        hashed_names=True,
        suffix="",
    ),
    Scanner(
        "Spiral 128",
        manufacturer="Northern Phantom",
        fov_mm=400,
        slice_mm=1.25,
        thickness_mm=1.5,
        noise_hu=22,
        table_gap_mm=3,
        signed=False,
        head_first=True,
    ),
    Scanner(
        "Volume 320",
        manufacturer="Southern Phantom",
        fov_mm=450,
        slice_mm=3,
        thickness_mm=3,
        noise_hu=18,
        kernel="sharp",
        table="flat",
        table_gap_mm=12,
        signed=False,
        hashed_names=True,
    ),
)
