"""Cohorts of scans with planted problems."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from monai_pipelines.phantoms.dicom import write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS
from monai_pipelines.transforms import LoadCT

Row = dict[str, str]


def small_scans(folder: Path, number: int) -> Path:
    """Chests of noise, 48 x 48 x 40, one for each patient, half of them in each class; returns the table."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, 40)), indexing="ij")
    rows = []
    for k in range(number):
        rng = np.random.default_rng(k)
        wide, deep, apart, high = rng.uniform((0.65, 0.35, 0.36, 0.2), (0.9, 0.6, 0.48, 0.4))
        body = x**2 / wide + y**2 / deep < 1
        lungs = ((np.abs(x) - apart) ** 2 / 0.08 + y**2 / 0.2 + (z - high) ** 2 / 0.6 < 1) & body
        spine = x**2 + (y + 0.5 * np.sqrt(deep)) ** 2 < 0.02
        texture = gaussian_filter(rng.standard_normal(x.shape), 0.8)
        hu = np.where(lungs, -850 + 400 * texture, np.where(body, 40 + 300 * texture + 500 * spine, -1000))
        name = f"scans/s{k:03d}"
        hu = np.clip(hu + rng.normal(0, 10, x.shape), -1000, 1500).astype(np.int16)
        scanner = SCANNERS[k % len(SCANNERS)]
        write_dicom_series(folder / name, hu, np.diag([-7.0, -7, 8, 1]), scanner=scanner, patient_id=f"p{k}")
        rows.append({"image": name, "label": "ab"[k // 4 % 2], "patient": f"p{k}"})
    return write_table(folder, rows)


def write_table(folder: Path, rows: list[Row]) -> Path:
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def split_rows(table: Path) -> list[Row]:
    """The rows of a table with a split by patient: one in three for each."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    patients = list(dict.fromkeys(row["patient"] for row in rows))
    splits = {p: ("train", "validation", "test")[k // 8 % 3] for k, p in enumerate(patients)}
    return [
        {key: row[key] for key in ("image", "label", "patient")} | {"split": splits[row["patient"]]} for row in rows
    ]


def _mirrored(volume: MetaTensor) -> NDArray[np.float64]:
    """The affine of a volume whose first axis runs the other way."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = volume.shape[1] - 1
    return volume.affine.numpy() @ flip


class Planted(NamedTuple):
    """Names of what an audit must find."""

    unreadable: set[str]
    blank: set[str]
    not_hu: set[str]
    outliers: set[str]
    exact: set[frozenset[str]]
    near: set[frozenset[str]]
    repaired: set[str]
    torn: str
    """Image of the patient in several splits."""


def plant(folder: Path, rows: list[Row]) -> Planted:
    """Change scans of a cohort, add others, and write its table."""
    names = [row["image"] for row in rows]
    gap, cut, two, spaced, turned, bright, torn, copied, relabeled, resampled, blank, plain = names[::3][:12]
    files = sorted((folder / gap).iterdir(), key=lambda f: float(pydicom.dcmread(f).ImagePositionPatient[2]))
    files[len(files) // 2].unlink()
    file = min((folder / cut).iterdir())
    file.write_bytes(file.read_bytes()[:-500])
    small, id_ = LoadCT()(folder / two), pydicom.dcmread(min((folder / two).iterdir())).PatientID
    write_dicom_series(
        folder / two / "other", small[0, :, :, :6].numpy(), small.affine.numpy(), patient_id=id_, scan_id="other"
    )

    def nifti(name: str, change, affine=None) -> str:  # type: ignore[no-untyped-def]
        """A scan replaced by a changed copy of it, as NIfTI."""
        volume = LoadCT()(folder / name)
        hu = change(volume[0].numpy().astype(np.float32))
        nib.save(
            nib.Nifti1Image(hu.astype(np.int16), volume.affine.numpy() if affine is None else affine(volume)),
            folder / f"{name}.nii.gz",
        )
        return f"{name}.nii.gz"

    def replaced(name: str, *change) -> str:  # type: ignore[no-untyped-def]
        new = nifti(name, *change)
        shutil.rmtree(folder / name)
        rows[names.index(name)]["image"] = new
        return new

    def added(name: str, **changed: str) -> None:
        index = names.index(changed.pop("of"))
        rows.append({**rows[index], "image": name, "patient": f"new {name}", **changed})

    rng = np.random.default_rng(0)
    spaced = replaced(spaced, lambda hu: hu, lambda volume: volume.affine.numpy() @ np.diag([0.2, 0.2, 1, 1]))
    turned = replaced(turned, lambda hu: hu[:, ::-1, ::-1])
    bright = replaced(bright, lambda hu: hu + 600)
    blank = replaced(blank, lambda hu: 0 * hu - 1000)
    plain = replaced(plain, lambda hu: np.clip((hu + 1000) / 10, 0, 255))
    split = rows[names.index(copied)]["split"]
    copy = nifti(copied, lambda hu: hu[::-1], _mirrored)
    added(copy, of=copied, split="test" if split == "train" else "train")
    shutil.copytree(folder / relabeled, folder / "scans/relabeled")
    label = {rows[0]["label"], *(row["label"] for row in rows)} - {rows[names.index(relabeled)]["label"]}
    added("scans/relabeled", of=relabeled, label=label.pop())
    near = nifti(
        resampled,
        lambda hu: zoom(hu + rng.normal(0, 5, hu.shape), (1.5, 1.5, 1.2), order=1),
        lambda volume: volume.affine.numpy() @ np.diag([1 / 1.5, 1 / 1.5, 1 / 1.2, 1]),
    )
    added(near, of=resampled)
    other = next(row for row in rows if row["split"] != rows[names.index(torn)]["split"])
    rows[names.index(torn)]["patient"] = other["patient"]
    rows.append({**rows[0], "image": "scans/lost", "patient": "lost"})
    write_table(folder, rows)
    return Planted(
        unreadable={gap, cut},
        blank={blank},
        not_hu={plain},
        outliers={spaced, turned, bright, blank, plain},
        exact={frozenset((copied, copy)), frozenset((relabeled, "scans/relabeled"))},
        near={frozenset((resampled, near))},
        repaired={two},
        torn=torn,
    )
