"""Writes cohorts of synthetic patients - chest CTs, chest X-rays, fundus photographs - with the truth beside them."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

from monai_pipelines.phantoms.anatomy import draw_patient
from monai_pipelines.phantoms.chest import FINDINGS, draw_chest
from monai_pipelines.phantoms.dicom import write_dicom_series, write_dicom_xray
from monai_pipelines.phantoms.retina import Camera, Eye, Spot, fundus_photo
from monai_pipelines.phantoms.scanners import SCANNERS
from monai_pipelines.phantoms.thorax import scan_patient
from monai_pipelines.phantoms.writing import balanced_kinds, draw_all, new_folder, write_csv
from monai_pipelines.phantoms.xray import Box, expose

FORMATS = ("MONOCHROME2", "MONOCHROME1", "png", "jpeg")
NO_FINDING = "No Finding"

Row = Sequence[object]
Written = list[tuple[Row, Sequence[Row]]]  # of each image of a patient: its row of the table, those of the truth


class _Plan(NamedTuple):
    """One patient: the name, what is to be found, the kind of each image (scanner, format, side)."""

    patient: str
    truth: Any
    kinds: Sequence[Any]
    seed: np.random.SeedSequence

    def generators(self) -> list[np.random.Generator]:
        """One for the patient, then one for each image."""
        return [np.random.default_rng(seed) for seed in self.seed.spawn(1 + len(self.kinds))]


def _plans(root: np.random.SeedSequence, truth: Sequence[Any], kinds: Iterable[Sequence[Any]]) -> list[_Plan]:
    members = enumerate(zip(truth, kinds, root.spawn(len(truth)), strict=True))
    return [_Plan(f"phantom-{index:04d}", *member) for index, member in members]


def _write(
    write: Callable[[_Plan], Written], plans: Sequence[_Plan], num_workers: int | None, progress: bool
) -> tuple[list[Row], list[Row]]:
    """Rows of the table, and of the truth."""
    images = [image for written in draw_all(write, plans, num_workers, progress) for image in written]
    return [row for row, _ in images], [row for _, truth in images for row in truth]


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

    `directory` gets `table.csv` (columns image, label, patient, scanner; label 1 is disease), `boxes.csv` for a
    detector (columns image, class, x_mm, y_mm, z_mm, diameter_mm, space; RAS), one DICOM series per scan under
    `scans/`, and `truth/`: `<scan>_lungs.nii.gz`, the lungs with vessels, lesions and the airways in them, and
    `lesions.csv` (RAS mm). One patient in eight is scanned twice, on two scanners.
    The same arguments give the same bytes, for any `num_workers`.

    Args:
        directory: new or empty folder.
        num_patients: at least 2.
        seed: random seed.
        matrix: rows and columns of a slice.
        slice_mm: distance between slices; None: that of each scanner.
        lesion_mm: smallest and largest lesion diameter; small nodules are (5, 12).
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
    root = np.random.SeedSequence(seed)
    rng = np.random.default_rng(root)
    labels = rng.permutation(np.arange(num_patients) % 2)
    twice = rng.permutation(np.arange(num_patients) % 8 == 0)
    first = balanced_kinds(rng, labels, len(SCANNERS))
    second = (first + rng.integers(1, len(SCANNERS), num_patients)) % len(SCANNERS)
    scanners = [[SCANNERS[k] for k in (a, b)[: 1 + both]] for a, b, both in zip(first, second, twice, strict=True)]
    write = partial(_write_cts, folder=folder, matrix=matrix, slice_mm=slice_mm, lesion_mm=lesion_mm)
    rows, lesions = _write(write, _plans(root, labels.tolist(), scanners), num_workers, progress)
    boxes = [[*lesion, "RAS"] for lesion in lesions]
    write_csv(folder / "boxes.csv", ["image", "class", "x_mm", "y_mm", "z_mm", "diameter_mm", "space"], boxes)
    write_csv(folder / "truth/lesions.csv", ["image", "kind", "x_mm", "y_mm", "z_mm", "diameter_mm"], lesions)
    return write_csv(folder / "table.csv", ["image", "label", "patient", "scanner"], rows)


def _write_cts(
    plan: _Plan, folder: Path, matrix: int, slice_mm: float | None, lesion_mm: tuple[float, float]
) -> Written:
    shared, *generators = plan.generators()
    patient = draw_patient(shared, bool(plan.truth), lesion_mm)
    written: Written = []
    for number, (scanner, rng) in enumerate(zip(plan.kinds, generators, strict=True), start=1):
        name = f"{plan.patient}_{number}"
        image = f"scans/{name}"
        scan = scan_patient(patient, scanner, rng, matrix, slice_mm)
        write_dicom_series(folder / image, scan.hu, scan.affine, scanner=scanner, patient_id=plan.patient, scan_id=name)
        mask = nib.Nifti1Image(scan.lungs.astype(np.uint8), scan.affine)
        mask.header.set_xyzt_units("mm")
        packed = gzip.compress(mask.to_bytes(), compresslevel=1, mtime=0)
        (folder / "truth" / f"{name}_lungs.nii.gz").write_bytes(packed)
        lesions = [[image, o.kind, *(f"{mm:.2f}" for mm in (*o.position_mm, o.diameter_mm))] for o in scan.lesions]
        written.append(([image, plan.truth, plan.patient, scanner.name], lesions))
    return written


def write_chest_xray_cohort(
    directory: str | PathLike[str],
    num_patients: int = 400,
    seed: int = 0,
    *,
    multilabel: bool = False,
    size: int = 256,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write chest X-rays of synthetic patients as a data set for a classifier.

    Half the patients are `normal`, half have `pneumonia` (opacities, sometimes with an effusion). With
    `multilabel` a third of the patients have each of opacity, nodule and effusion, and the label is their names joined
    by '|', or "No Finding". `directory` gets `table.csv` (columns image, label, patient, view), `boxes.csv` for a
    detector (columns image, class, x, y, width, height: edges in pixels), `images/` and `truth/boxes.csv` (columns
    image, finding, x, y, width, height in pixels). A quarter each are 12-bit DICOM with MONOCHROME2, with MONOCHROME1,
    8-bit PNG and JPEG, balanced in all classes. One patient in eight is X-rayed twice. The same arguments give the same
    bytes, for any `num_workers`.

    Args:
        directory, num_patients, seed, num_workers, progress: of `write_lung_ct_cohort`.
        multilabel: several findings at once.
        size: columns of an image, at least 64; rows follow the shape of the chest.

    Returns:
        Path of the table.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: fewer than 2 patients or 64 columns.

    Example:
        >>> import tempfile
        >>> table = write_chest_xray_cohort(tempfile.mkdtemp(), 2, size=64, num_workers=1, progress=False)
        >>> table.read_text().splitlines()[0]
        'image,label,patient,view'
    """
    if num_patients < 2:
        raise ValueError(f"write_chest_xray_cohort: num_patients must be at least 2, got {num_patients}")
    if size < 64:
        raise ValueError(f"write_chest_xray_cohort: size must be at least 64 columns, got {size}")
    folder = new_folder(directory, "write_chest_xray_cohort", "images", "truth")
    root = np.random.SeedSequence(seed)
    rng = np.random.default_rng(root)
    everyone = np.arange(num_patients)
    if multilabel:
        present = np.stack([rng.permutation(everyone % 3 == 0) for _ in FINDINGS], axis=1)
        labels = present @ [1, 2, 4]
    else:
        labels = rng.permutation(everyone % 2)
        present = np.stack([labels == 1, 0 * labels, (labels == 1) & (rng.random(num_patients) < 0.15)], axis=1)
    findings = [[name for name, is_present in zip(FINDINGS, row, strict=True) if is_present] for row in present]
    twice = rng.permutation(everyone % 8 == 0)
    first = balanced_kinds(rng, labels, len(FORMATS))
    formats = [(FORMATS[k], FORMATS[(k + 1) % len(FORMATS)])[: 1 + both] for k, both in zip(first, twice, strict=True)]
    write = partial(_write_xrays, folder=folder, multilabel=multilabel, size=size)
    rows, boxes = _write(write, _plans(root, findings, formats), num_workers, progress)
    write_csv(folder / "boxes.csv", ["image", "class", "x", "y", "width", "height"], boxes)
    write_csv(folder / "truth/boxes.csv", ["image", *Box._fields], boxes)
    return write_csv(folder / "table.csv", ["image", "label", "patient", "view"], rows)


def _write_xrays(plan: _Plan, folder: Path, multilabel: bool, size: int) -> Written:
    label = ("|".join(plan.truth) or NO_FINDING) if multilabel else ("normal", "pneumonia")[bool(plan.truth)]
    shared, *generators = plan.generators()
    chest = draw_chest(shared, plan.truth)
    written: Written = []
    for number, (stored_as, rng) in enumerate(zip(plan.kinds, generators, strict=True), start=1):
        xray = expose(chest, rng, size)
        is_dicom = stored_as.startswith("MONOCHROME")
        image = f"images/{plan.patient}_{number}.{'dcm' if is_dicom else stored_as}"
        if is_dicom:
            write_dicom_xray(folder / image, xray, stored_as, plan.patient, str(number))
        else:
            pixels = np.rint(255 * np.clip(xray.signal, 0, 1)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / image, quality=92)
        written.append(([image, label, plan.patient, xray.view], [[image, *box] for box in xray.boxes]))
    return written


def write_fundus_cohort(
    directory: str | PathLike[str],
    num_patients: int = 200,
    seed: int = 0,
    *,
    size: int = 400,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write both eyes of synthetic patients as `<class>/<patient>_left.jpeg` and `_right.jpeg`, half of them diseased.

    The classes are `disease` (diabetic retinopathy) and `normal`. `lesions.csv` has the columns image, kind, x, y
    and radius, in pixels. The same arguments give the same bytes, for any `num_workers`.

    Args:
        directory, num_patients, seed, num_workers, progress: of `write_lung_ct_cohort`.
        size: rows and columns, at least 64.

    Returns:
        The directory.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: fewer than 2 patients or 64 pixels.

    Example:
        >>> import tempfile
        >>> folder = write_fundus_cohort(tempfile.mkdtemp(), 2, size=64, num_workers=1, progress=False)
        >>> len(list(folder.glob("disease/*.jpeg"))), len(list(folder.glob("normal/*.jpeg")))
        (2, 2)
    """
    if num_patients < 2:
        raise ValueError(f"write_fundus_cohort: num_patients must be at least 2, one per class, got {num_patients}")
    if size < 64:
        raise ValueError(f"write_fundus_cohort: size must be at least 64 pixels, got {size}")
    folder = new_folder(directory, "write_fundus_cohort", "disease", "normal")
    root = np.random.SeedSequence(seed)
    diseased = np.random.default_rng(root).permutation(np.arange(num_patients) % 2 == 1)
    plans = _plans(root, diseased.tolist(), [("left", "right")] * num_patients)
    _, lesions = _write(partial(_write_eyes, folder=folder, size=size), plans, num_workers, progress)
    write_csv(folder / "lesions.csv", ["image", *Spot._fields], lesions)
    return folder


def _write_eyes(plan: _Plan, folder: Path, size: int) -> Written:
    shared, *generators = plan.generators()
    eye, camera = Eye.draw(shared), Camera.draw(shared)
    written: Written = []
    for side, rng in zip(plan.kinds, generators, strict=True):
        photo = fundus_photo(rng, diseased=plan.truth, left=side == "left", size=size, eye=eye, camera=camera)
        image = f"{'disease' if plan.truth else 'normal'}/{plan.patient}_{side}.jpeg"
        Image.fromarray(photo.rgb).save(folder / image, quality=92)
        lesions = [[image, spot.kind, *(f"{value:.1f}" for value in spot[1:])] for spot in photo.lesions]
        written.append(([image], lesions))
    return written
