"""Writes a volume as a DICOM CT series."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from monai_pipelines.phantoms.scanners import SCANNERS, Scanner


def write_dicom_series(
    directory: str | PathLike[str],
    hu: np.ndarray,
    affine: np.ndarray,
    *,
    scanner: Scanner = SCANNERS[0],
    patient_id: str = "phantom",
    scan_id: str = "scan",
) -> Path:
    """Write a volume as a CT series, one file per slice along the last axis.

    Positions are converted from RAS to DICOM's LPS. The arguments determine every byte.

    Args:
        directory: folder to write to, created if missing.
        hu: (X, Y, Z) integers in HU; X runs along a DICOM row, Y along a column.
        affine: (4, 4) voxel indices -> RAS mm; the three axes at right angles, oblique allowed.
        scanner: gives names, slice thickness, pixel format, instance and file order.
        patient_id: written as the patient's id and name.
        scan_id: with `patient_id` the source of the UIDs.

    Returns:
        The directory.

    Raises:
        ValueError: a volume that is not 3D, axes not at right angles, or HU beyond the scanner's pixel format.

    Example:
        >>> import tempfile
        >>> volume = np.full((8, 8, 3), -1000, dtype=np.int16)
        >>> folder = write_dicom_series(tempfile.mkdtemp(), volume, np.diag([-1.0, -1.0, 5.0, 1.0]))
        >>> len(list(folder.iterdir()))
        3
    """
    hu, affine = np.asarray(hu), np.asarray(affine, dtype=np.float64)
    if hu.ndim != 3:
        raise ValueError(f"write_dicom_series: hu must be (X, Y, Z), got shape {hu.shape}")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing_mm = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing_mm
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise ValueError(f"write_dicom_series: the affine's axes must be at right angles, got {affine.tolist()}")
    dtype = np.dtype("<i2" if scanner.signed else "<u2")
    stored = hu.astype(np.int32) - scanner.intercept_hu
    if stored.min() < np.iinfo(dtype).min or stored.max() > np.iinfo(dtype).max:
        raise ValueError(
            f"write_dicom_series: {scanner.name} stores {dtype.name} from {scanner.intercept_hu} HU on, "
            f"got {hu.min()} to {hu.max()} HU (clip first?)"
        )
    stored = stored.astype(dtype)

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    header = _header(stored.shape, axes, spacing_mm, scanner, patient_id, scan_id)
    num_slices = hu.shape[2]
    for index in range(num_slices):
        number = num_slices - index if scanner.head_first else index + 1
        position = lps[:3, :3] @ [0, 0, index] + lps[:3, 3]
        uid = phantom_uid(patient_id, scan_id, f"slice {index}")
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = uid
        header.InstanceNumber = number
        header.ImagePositionPatient = decimals(position)
        header.SliceLocation = decimals([position @ axes[:, 2]])[0]
        header.PixelData = stored[:, :, index].T.tobytes()
        name = hashlib.md5(uid.encode()).hexdigest()[:12] if scanner.hashed_names else f"IM{number:04d}"
        header.save_as(folder / f"{name}{scanner.suffix}", enforce_file_format=True)
    return folder


def _header(
    shape: tuple[int, ...], axes: np.ndarray, spacing_mm: np.ndarray, scanner: Scanner, patient_id: str, scan_id: str
) -> Dataset:
    header = base_header(CTImageStorage, patient_id, scan_id)
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.AcquisitionDate, header.AcquisitionTime, header.AcquisitionNumber = "20000101", "120000", 1
    header.Modality = "CT"
    header.Manufacturer, header.ManufacturerModelName = scanner.manufacturer, scanner.name
    header.SeriesDescription = "Synthetic chest"
    header.KVP = 120
    header.ConvolutionKernel = scanner.kernel.upper()
    header.PatientPosition = "HFS"
    header.FrameOfReferenceUID = phantom_uid(patient_id, scan_id, "frame")
    header.PositionReferenceIndicator = ""
    header.ImageOrientationPatient = decimals([*axes[:, 0], *axes[:, 1]])
    header.PixelSpacing = decimals([spacing_mm[1], spacing_mm[0]])
    header.SliceThickness = decimals([scanner.thickness_mm])[0]
    header.SpacingBetweenSlices = decimals([spacing_mm[2]])[0]
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Columns, header.Rows = shape[:2]
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = int(scanner.signed)
    if scanner.outside_hu is not None:
        header.PixelPaddingValue = scanner.outside_hu - scanner.intercept_hu
    header.RescaleIntercept = scanner.intercept_hu
    header.RescaleSlope = 1
    header.RescaleType = "HU"
    return header


def base_header(sop_class: UID, patient_id: str, scan_id: str, prefix: str = "") -> Dataset:
    """Attributes that all DICOM files of phantoms share; `prefix` starts the sources of the UIDs."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = sop_class
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.StudyInstanceUID = phantom_uid(patient_id, scan_id, f"{prefix}study")
    header.SeriesInstanceUID = phantom_uid(patient_id, scan_id, f"{prefix}series")
    header.StudyDate = header.SeriesDate = header.ContentDate = "20000101"
    header.StudyTime = header.SeriesTime = header.ContentTime = "120000"
    header.AccessionNumber = header.ReferringPhysicianName = header.PatientBirthDate = header.PatientSex = ""
    header.PatientName = header.PatientID = patient_id
    header.BodyPartExamined, header.StudyID, header.SeriesNumber, header.SamplesPerPixel = "CHEST", "1", 1, 1
    return header


def decimals(values: np.ndarray | list[float]) -> list[DSfloat]:
    """Numbers as DICOM decimal strings."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def phantom_uid(*sources: str) -> UID:
    """A UID determined by its sources."""
    return generate_uid(entropy_srcs=["monai_pipelines phantom", *sources])
