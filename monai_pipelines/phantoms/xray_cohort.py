"""Writes a cohort of synthetic chest X-rays: DICOM, PNG and JPEG files, a table of labels, and the truth."""

from __future__ import annotations

from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage

from monai_pipelines.phantoms.chest import FINDINGS, draw_chest
from monai_pipelines.phantoms.dicom import base_header, decimals, phantom_uid
from monai_pipelines.phantoms.writing import balanced_kinds, draw_all, new_folder, write_csv
from monai_pipelines.phantoms.xray import Box, ChestXray, expose

FORMATS = ("MONOCHROME2", "MONOCHROME1", "png", "jpeg")
NO_FINDING = "No Finding"


class _Plan(NamedTuple):
    """One patient of the cohort and the file format of each X-ray."""

    patient: str
    label: str
    findings: tuple[str, ...]
    formats: tuple[str, ...]
    seed: np.random.SeedSequence


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
    by '|', or "No Finding". `directory` gets `table.csv` (columns image, label, patient, view),
    `images/` and `truth/boxes.csv` (columns image, finding, x, y, width, height in pixels). A quarter each are
    12-bit DICOM with MONOCHROME2, with MONOCHROME1, 8-bit PNG and JPEG, balanced in all classes. One patient in eight
    is X-rayed twice. The same arguments give the same bytes, for any `num_workers`.

    Args:
        directory: new or empty folder.
        num_patients: at least 2.
        seed: random seed.
        multilabel: several findings at once.
        size: columns of an image, at least 64; rows follow the shape of the chest.
        num_workers: processes; None: one per core. More than one needs the usual `if __name__ == "__main__"`.
        progress: show a progress bar.

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
    plans = _plan(num_patients, seed, multilabel)
    rows: list[list[object]] = []
    box_rows: list[list[object]] = []
    write = partial(_write_patient, folder=folder, size=size)
    for plan, xrays in zip(plans, draw_all(write, plans, num_workers, progress), strict=True):
        for image, view, boxes in xrays:
            rows.append([image, plan.label, plan.patient, view])
            box_rows += [[image, *box] for box in boxes]
    write_csv(folder / "truth/boxes.csv", ["image", *Box._fields], box_rows)
    table = folder / "table.csv"
    write_csv(table, ["image", "label", "patient", "view"], rows)
    return table


def _plan(num_patients: int, seed: int, multilabel: bool) -> list[_Plan]:
    root = np.random.SeedSequence(seed)
    rng = np.random.default_rng(root)
    everyone = np.arange(num_patients)
    if multilabel:
        present = np.stack([rng.permutation(everyone % 3 == 0) for _ in FINDINGS], axis=1)
        labels = present @ [1, 2, 4]
    else:
        labels = rng.permutation(everyone % 2)
        present = np.stack([labels == 1, 0 * labels, (labels == 1) & (rng.random(num_patients) < 0.15)], axis=1)
    twice = rng.permutation(everyone % 8 == 0)
    first = balanced_kinds(rng, labels, len(FORMATS))
    plans = []
    for index, child in enumerate(root.spawn(num_patients)):
        findings = tuple(name for name, is_present in zip(FINDINGS, present[index], strict=True) if is_present)
        label = "|".join(findings) or NO_FINDING if multilabel else ("normal", "pneumonia")[labels[index]]
        formats = tuple(FORMATS[(first[index] + number) % len(FORMATS)] for number in range(1 + twice[index]))
        plans.append(_Plan(f"phantom-{index:04d}", label, findings, formats, child))
    return plans


def _write_patient(plan: _Plan, folder: Path, size: int) -> list[tuple[str, str, list[Box]]]:
    anatomy_seed, *seeds = plan.seed.spawn(1 + len(plan.formats))
    chest = draw_chest(np.random.default_rng(anatomy_seed), plan.findings)
    written: list[tuple[str, str, list[Box]]] = []
    for number, (stored_as, seed) in enumerate(zip(plan.formats, seeds, strict=True), start=1):
        xray = expose(chest, np.random.default_rng(seed), size)
        name = f"images/{plan.patient}_{number}"
        if stored_as.startswith("MONOCHROME"):
            name += ".dcm"
            _write_dicom(folder / name, xray, stored_as, plan.patient, str(number))
        else:
            name += f".{stored_as}"
            pixels = np.rint(255 * np.clip(xray.signal, 0, 1)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name, quality=92)
        written.append((name, xray.view, xray.boxes))
    return written


def _write_dicom(path: Path, xray: ChestXray, photometric: str, patient_id: str, scan_id: str) -> None:
    """A Computed Radiography object whose window shows the signal from 0 to 1.

    The standard's window runs from (center - 0.5) - (width - 1) / 2 to (center - 0.5) + (width - 1) / 2.
    """
    low, high = 800, 3200
    stored = np.clip(np.rint(low + (high - low) * xray.signal), 0, 4095).astype(np.uint16)
    center = (low + high) / 2 + 0.5
    if photometric == "MONOCHROME1":
        stored, center = 4095 - stored, 4096 - center
    header = base_header(ComputedRadiographyImageStorage, patient_id, scan_id, "xray ")
    uid = phantom_uid(patient_id, scan_id, "xray")
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = uid
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.Modality, header.Manufacturer, header.InstanceNumber = "CR", "Phantom Works", 1
    header.ViewPosition, header.PatientOrientation = xray.view, ["L", "F"]
    header.ImagerPixelSpacing = decimals([xray.pixel_mm, xray.pixel_mm])
    header.PhotometricInterpretation = photometric
    header.Rows, header.Columns = stored.shape
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.WindowCenter, header.WindowWidth = decimals([center])[0], decimals([high - low + 1])[0]
    header.PixelData = stored.tobytes()
    header.save_as(path, enforce_file_format=True)
