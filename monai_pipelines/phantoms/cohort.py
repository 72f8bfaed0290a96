"""Writes a cohort of synthetic chest CTs: DICOM series, a table of labels, and the truth beside them."""

from __future__ import annotations

import gzip
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from monai_pipelines.phantoms.anatomy import Lesion, draw_patient
from monai_pipelines.phantoms.dicom import write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS, Scanner
from monai_pipelines.phantoms.thorax import scan_patient
from monai_pipelines.phantoms.writing import balanced_kinds, draw_all, new_folder, write_csv


class _Plan(NamedTuple):
    """One patient of the cohort."""

    patient: str
    label: int
    scanners: tuple[Scanner, ...]
    seed: np.random.SeedSequence


def write_lung_ct_cohort(
    directory: str | PathLike[str],
    num_patients: int = 40,
    seed: int = 0,
    *,
    matrix: int = 256,
    slice_mm: float | None = None,
    lesion_mm: tuple[float, float] = (20, 40),
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write chest CTs of synthetic patients, half of them diseased, as a data set for a classifier.

    `directory` gets `table.csv` (columns image, label, patient, scanner; label 1 is disease), one DICOM
    series per scan under `scans/`, and `truth/`: `<scan>_lungs.nii.gz`, the lungs with vessels, lesions and
    the airways in them, and `lesions.csv` (RAS mm). One patient in eight is scanned twice, on two scanners.
    The same arguments give the same bytes, for any `num_workers`.

    Args:
        directory: new or empty folder.
        num_patients: at least 2.
        seed: random seed.
        matrix: rows and columns of a slice.
        slice_mm: distance between slices; None: that of each scanner.
        lesion_mm: smallest and largest lesion diameter.
        num_workers: processes; None: one per core. More than one needs the usual `if __name__ == "__main__"`.
        progress: show a progress bar.

    Returns:
        Path of the table.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: fewer than 2 patients, or `lesion_mm` that does not rise.

    Example:
        >>> import tempfile
        >>> table = write_lung_ct_cohort(
        ...     tempfile.mkdtemp(), 2, matrix=32, slice_mm=20, num_workers=1, progress=False
        ... )
        >>> table.read_text().splitlines()[0]
        'image,label,patient,scanner'
    """
    if num_patients < 2:
        raise ValueError(f"write_lung_ct_cohort: num_patients must be at least 2, one per class, got {num_patients}")
    if not 0 < lesion_mm[0] < lesion_mm[1]:
        raise ValueError(f"write_lung_ct_cohort: lesion_mm must rise from above 0, got {lesion_mm} (swapped?)")
    folder = new_folder(directory, "write_lung_ct_cohort", "truth")
    plans = _plan(num_patients, seed)
    write = partial(_write_patient, folder=folder, matrix=matrix, slice_mm=slice_mm, lesion_mm=lesion_mm)
    rows: list[list[object]] = []
    lesion_rows: list[list[object]] = []
    for plan, scans in zip(plans, draw_all(write, plans, num_workers, progress), strict=True):
        for scanner, (image, lesions) in zip(plan.scanners, scans, strict=True):
            rows.append([image, plan.label, plan.patient, scanner.name])
            lesion_rows += [
                [image, one.kind, *(f"{v:.2f}" for v in (*one.position_mm, one.diameter_mm))] for one in lesions
            ]
    write_csv(folder / "truth/lesions.csv", ["image", "kind", "x_mm", "y_mm", "z_mm", "diameter_mm"], lesion_rows)
    table = folder / "table.csv"
    write_csv(table, ["image", "label", "patient", "scanner"], rows)
    return table


def _plan(num_patients: int, seed: int) -> list[_Plan]:
    """Half of the labels 1, scanners balanced in both classes, one patient in eight scanned twice."""
    root = np.random.SeedSequence(seed)
    rng = np.random.default_rng(root)
    labels = rng.permutation(np.arange(num_patients) % 2)
    twice = rng.permutation(np.arange(num_patients) % 8 == 0)
    first = balanced_kinds(rng, labels, len(SCANNERS))
    second = (first + rng.integers(1, len(SCANNERS), num_patients)) % len(SCANNERS)
    return [
        _Plan(
            f"phantom-{index:04d}",
            int(labels[index]),
            (SCANNERS[first[index]], SCANNERS[second[index]])[: 1 + twice[index]],
            child,
        )
        for index, child in enumerate(root.spawn(num_patients))
    ]


def _write_patient(
    plan: _Plan, folder: Path, matrix: int, slice_mm: float | None, lesion_mm: tuple[float, float]
) -> list[tuple[str, list[Lesion]]]:
    anatomy_seed, *scan_seeds = plan.seed.spawn(1 + len(plan.scanners))
    patient = draw_patient(np.random.default_rng(anatomy_seed), bool(plan.label), lesion_mm)
    written = []
    for number, (scanner, scan_seed) in enumerate(zip(plan.scanners, scan_seeds, strict=True), start=1):
        name = f"{plan.patient}_{number}"
        scan = scan_patient(patient, scanner, np.random.default_rng(scan_seed), matrix, slice_mm)
        write_dicom_series(
            folder / "scans" / name, scan.hu, scan.affine, scanner=scanner, patient_id=plan.patient, scan_id=name
        )
        mask = nib.Nifti1Image(scan.lungs.astype(np.uint8), scan.affine)
        mask.header.set_xyzt_units("mm")
        (folder / "truth" / f"{name}_lungs.nii.gz").write_bytes(
            gzip.compress(mask.to_bytes(), compresslevel=1, mtime=0)
        )
        written.append((f"scans/{name}", scan.lesions))
    return written
