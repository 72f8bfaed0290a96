"""Writes DICOM: a volume as a CT series, an X-ray as one image."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from monai_pipelines.phantoms.scanners import SCANNERS, Scanner
from monai_pipelines.phantoms.xray import ChestXray


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
        uid = _uid(patient_id, scan_id, f"slice {index}")
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = uid
        header.InstanceNumber = number
        header.ImagePositionPatient = [*map(_decimal, position)]
        header.SliceLocation = _decimal(position @ axes[:, 2])
        header.PixelData = stored[:, :, index].T.tobytes()
        name = hashlib.md5(uid.encode()).hexdigest()[:12] if scanner.hashed_names else f"IM{number:04d}"
        header.save_as(folder / f"{name}{scanner.suffix}", enforce_file_format=True)
    return folder


def write_dicom_xray(path: Path, xray: ChestXray, photometric: str, patient_id: str, scan_id: str) -> None:
    """Write a Computed Radiography object whose window shows the signal from 0 to 1.

    The standard's window runs from (center - 0.5) - (width - 1) / 2 to (center - 0.5) + (width - 1) / 2.
    """
    low, high = 800, 3200
    stored = np.clip(np.rint(low + (high - low) * xray.signal), 0, 4095).astype(np.uint16)
    center = (low + high) / 2 + 0.5
    if photometric == "MONOCHROME1":
        stored, center = 4095 - stored, 4096 - center
    header = _base_header(ComputedRadiographyImageStorage, patient_id, scan_id, "xray ")
    uid = _uid(patient_id, scan_id, "xray")
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = uid
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.Modality, header.Manufacturer, header.InstanceNumber = "CR", "Phantom Works", 1
    header.ViewPosition, header.PatientOrientation = xray.view, ["L", "F"]
    header.ImagerPixelSpacing = [_decimal(xray.pixel_mm)] * 2
    header.PhotometricInterpretation = photometric
    header.Rows, header.Columns = stored.shape
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.WindowCenter, header.WindowWidth = _decimal(center), _decimal(high - low + 1)
    header.PixelData = stored.tobytes()
    header.save_as(path, enforce_file_format=True)


def _header(
    shape: tuple[int, ...], axes: np.ndarray, spacing_mm: np.ndarray, scanner: Scanner, patient_id: str, scan_id: str
) -> Dataset:
    header = _base_header(CTImageStorage, patient_id, scan_id)
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.AcquisitionDate, header.AcquisitionTime, header.AcquisitionNumber = "20000101", "120000", 1
    header.Modality = "CT"
    header.Manufacturer, header.ManufacturerModelName = scanner.manufacturer, scanner.name
    header.SeriesDescription = "Synthetic chest"
    header.KVP = 120
    header.ConvolutionKernel = scanner.kernel.upper()
    header.PatientPosition = "HFS"
    header.FrameOfReferenceUID = _uid(patient_id, scan_id, "frame")
    header.PositionReferenceIndicator = ""
    header.ImageOrientationPatient = [*map(_decimal, axes[:, :2].T.flat)]
    header.PixelSpacing = [*map(_decimal, spacing_mm[1::-1])]
    header.SliceThickness = _decimal(scanner.thickness_mm)
    header.SpacingBetweenSlices = _decimal(spacing_mm[2])
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


def _base_header(sop_class: UID, patient_id: str, scan_id: str, prefix: str = "") -> Dataset:
    """Attributes that all DICOM files of phantoms share; `prefix` starts the sources of the UIDs."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = sop_class
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.StudyInstanceUID = _uid(patient_id, scan_id, f"{prefix}study")
    header.SeriesInstanceUID = _uid(patient_id, scan_id, f"{prefix}series")
    header.StudyDate = header.SeriesDate = header.ContentDate = "20000101"
    header.StudyTime = header.SeriesTime = header.ContentTime = "120000"
    header.AccessionNumber = header.ReferringPhysicianName = header.PatientBirthDate = header.PatientSex = ""
    header.PatientName = header.PatientID = patient_id
    header.BodyPartExamined, header.StudyID, header.SeriesNumber, header.SamplesPerPixel = "CHEST", "1", 1, 1
    return header


def _decimal(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)


def _uid(*sources: str) -> UID:
    """A UID determined by its sources."""
    return generate_uid(entropy_srcs=["monai_pipelines phantom", *sources])
