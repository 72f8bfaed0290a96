"""CT from disk in Hounsfield units."""

from __future__ import annotations

import logging
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Transform
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms.ct.grid import placed
from monai_pipelines.transforms.keyed import EachKeyd

logger = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NATIVE_TRANSFER_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit and explicit VR little endian
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
SIDECARS = (".csv", ".tsv", ".txt", ".json", ".yaml", ".md", ".xml", ".html", ".pdf", ".png", ".jpg", ".raw", ".zraw",
            ".raw.gz", ".nii", ".nii.gz", *ITK_SUFFIXES, "dicomdir", "thumbs.db")  # fmt: skip
_TAGS = [
    "BitsAllocated", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "Modality", "NumberOfFrames",
    "PixelData", "PixelRepresentation", "PixelSpacing", "RescaleIntercept", "RescaleSlope", "Rows", "SamplesPerPixel",
    "SeriesInstanceUID", "SliceThickness", "SpacingBetweenSlices",
]  # fmt: skip


class LoadCT(Transform):
    """Read a CT into Hounsfield units with its position in space.

    Takes a folder with one DICOM series, one DICOM file, NIfTI (``.nii``, ``.nii.gz``), NRRD or MetaImage. DICOM slices
    are ordered by position along the slice normal, never by file name or InstanceNumber; each has its rescale slope and
    intercept. Voxels keep the order of the file; the affine locates them.

    Differs from `monai.transforms.LoadImage`: int16 instead of float32; a series that is not one regular stack (two
    series in a folder, a missing or duplicate slice, gantry tilt) is an error instead of a wrong volume.

    Returns:
        `MetaTensor` (1, X, Y, Z) int16 in HU; ``affine`` (4, 4) float64 maps voxels to RAS mm;
        ``meta["filename_or_obj"]`` is the given path.

    Raises:
        ScanError: an unreadable file or irregular series; says how to fix it.

    Example:
        >>> from monai_pipelines.transforms import LoadCT
        >>> from pydicom.data import get_testdata_file
        >>> volume = LoadCT()(get_testdata_file("CT_small.dcm"))
        >>> volume.shape, volume.dtype
        (torch.Size([1, 128, 128, 1]), torch.int16)

    Reference: DICOM PS3.3 C.7.6.2 (image plane), C.11.1 (modality LUT).
    """

    def __call__(self, path: str | PathLike[str]) -> MetaTensor:
        file = Path(path)
        if file.is_dir():
            hu, affine = _read_series(file)
        elif not file.exists():
            raise ScanError(path, "no such file or folder; paths in a table are relative to the table")
        elif file.name.lower().endswith((".nii", ".nii.gz")):
            hu, affine = _read_nifti(file)
        elif file.suffix.lower() in ITK_SUFFIXES:
            hu, affine = _read_itk(file)
        else:
            hu, affine = _read_dicom_file(file)
        return placed(torch.from_numpy(hu)[None], affine, {"filename_or_obj": str(path)})


class LoadCTd(EachKeyd):
    """`LoadCT` for dictionaries: each of ``keys`` holds a path."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, LoadCT(), allow_missing_keys)


def _read_series(folder: Path) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    slices: list[tuple[Path, Dataset]] = []
    others = []
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        try:
            slices.append((file, _header(file)))
        except InvalidDicomError:
            others.append(file.name)
    if not slices:
        content = f"{len(others)} other files, first {others[0]!r}" if others else "no files"
        raise ScanError(folder, f"wanted a folder with one DICOM series, got {content}; name the series folder itself")
    for name in others:
        if not name.lower().endswith(SIDECARS):
            raise ScanError(folder / name, "not DICOM (truncated?); copy it again or remove it")
    if others:
        logger.info("%s: skipped %d files that are not DICOM: %s", folder, len(others), ", ".join(others[:5]))
    if len(slices) == 1:
        if int(slices[0][1].get("NumberOfFrames") or 1) > 1:
            return _read_itk(slices[0][0])
        raise ScanError(folder, "wanted a series, got a single slice; to read it alone, name the file")
    for name in ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        kinds = {_comparable(header.get(name)) for _, header in slices}
        if len(kinds) > 1:
            values = "" if name == "SeriesInstanceUID" else f": {', '.join(sorted(kinds)[:4])}"
            raise ScanError(folder, f"slices with {len(kinds)} different {name}{values}; keep one series per folder")
    orientation = np.array(slices[0][1].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    slices.sort(key=lambda s: float(np.dot(normal, np.array(s[1].ImagePositionPatient, float))))
    origins = np.array([header.ImagePositionPatient for _, header in slices], float)
    _check_regular(folder, origins, normal)
    first = slices[0][1]
    stack = np.empty((len(slices), int(first.Rows), int(first.Columns)), np.int16)
    for plane, (file, header) in zip(stack, slices, strict=True):
        plane[:] = _pixels_hu(file, header)
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    return stack.transpose(2, 1, 0), _dicom_affine(first, step)


def _comparable(value: Any) -> str:
    """A header value as text, numbers rounded to 4 decimals: "0.70" equals 0.7 and -0 equals 0."""
    return str(value) if isinstance(value, (str, int)) else str(np.round(np.array(value, float), 4) + 0.0)


def _read_dicom_file(file: Path) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    try:
        header = _header(file)
    except InvalidDicomError:
        raise ScanError(
            file, f"wanted a DICOM series folder, DICOM, NIfTI, {', '.join(ITK_SUFFIXES)}; this is none of them"
        ) from None
    if int(header.get("NumberOfFrames") or 1) > 1:
        return _read_itk(file)
    orientation = np.array(header.ImageOrientationPatient, float)
    thickness = float(header.get("SliceThickness") or header.get("SpacingBetweenSlices") or 1.0)
    affine = _dicom_affine(header, np.cross(orientation[:3], orientation[3:]) * thickness)
    return _pixels_hu(file, header).T[..., None], affine


def _header(file: Path) -> Dataset:
    """Read one slice and check that it is a CT image with a position in space."""
    try:
        header = pydicom.dcmread(file, specific_tags=_TAGS)
        if header.get("Modality") != "CT":
            raise ScanError(file, f"wanted Modality CT, got {header.get('Modality')!r}; LoadCT reads Hounsfield units")
        single = int(header.get("NumberOfFrames") or 1) == 1
        needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if single else ()
        for name in ("Rows", "Columns", "PixelData", *needed):
            if header.get(name) is None:
                raise ScanError(file, f"no {name}: truncated, or not a CT slice; export the series again")
        if header.get("SamplesPerPixel", 1) != 1:
            raise ScanError(
                file, f"wanted one value per pixel, got {header.SamplesPerPixel}: a color image, not a CT slice"
            )
    except (EOFError, OSError, ValueError, TypeError, struct.error) as error:
        if isinstance(error, (ScanError, InvalidDicomError)):
            raise
        raise ScanError(file, f"unreadable DICOM ({error}); export the series again") from error
    return header


def _pixels_hu(file: Path, header: Dataset) -> NDArray[np.int16]:
    if header.file_meta.TransferSyntaxUID in NATIVE_TRANSFER_SYNTAXES and header.get("BitsAllocated") == 16:
        raw = header.PixelData
        shape = int(header.Rows), int(header.Columns)
        if len(raw) < 2 * shape[0] * shape[1]:
            raise ScanError(
                file, f"truncated: wanted {2 * shape[0] * shape[1]} bytes of pixels, got {len(raw)}; copy it again"
            )
        kind = "<i2" if header.get("PixelRepresentation") else "<u2"
        stored = np.frombuffer(raw, kind, shape[0] * shape[1]).reshape(shape)
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        fits = int(stored.min()) + intercept >= -(2**15) and int(stored.max()) + intercept < 2**15
        if slope == 1 and intercept.is_integer() and abs(intercept) < 2**15 and fits:
            return stored.astype(np.int16) + np.int16(intercept)
        return _int16(stored * slope + intercept)
    return _itk_volume(file)[0][:, :, 0].T  # compressed or big endian: GDCM decodes and rescales


def _dicom_affine(header: Dataset, step_lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel (column, row, slice) -> RAS mm (DICOM PS3.3 C.7.6.2.1.1; PixelSpacing is row distance, column distance)."""
    orientation = np.array(header.ImageOrientationPatient, float)
    row_mm, column_mm = (float(v) for v in header.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = orientation[:3] * column_mm, orientation[3:] * row_mm, step_lps_mm
    affine[:3, 3] = np.array(header.ImagePositionPatient, float)
    return LPS_TO_RAS @ affine


def _check_regular(folder: Path, origins: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Slices must lie on one line along the normal, at equal steps (tolerance 1% of a step, at least 0.05 mm)."""
    steps = np.diff(origins, axis=0)
    along = steps @ normal
    typical = float(np.median(along))
    tolerance = max(0.05, 0.01 * typical)
    if along.min() < tolerance:
        raise ScanError(folder, "two slices at the same position; remove duplicates (two series in one folder?)")
    if np.abs(along - typical).max() > tolerance:
        raise ScanError(
            folder,
            f"slices are {along.min():.2f} to {along.max():.2f} mm apart: some are missing; export the whole series",
        )
    sideways = float(np.linalg.norm(steps - along[:, None] * normal, axis=1).max())
    if sideways > tolerance:
        tilt = np.degrees(np.arctan2(sideways, typical))
        raise ScanError(folder, f"gantry tilt of {tilt:.1f} degrees; straighten the series first (dcm2niix does)")


def _read_nifti(file: Path) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    try:
        image: Any = nib.load(file)
        values = np.asanyarray(image.dataobj)
    except (ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ScanError(file, f"unreadable NIfTI ({error}); copy or convert it again") from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3 or min(values.shape) == 0:
        raise ScanError(file, f"wanted one volume (X, Y, Z), got shape {values.shape}")
    if values.dtype.kind not in "iuf":
        raise ScanError(file, f"wanted one real number per voxel, got {values.dtype}: color or complex, not CT")
    if image.affine is None or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise ScanError(file, "its affine is singular or missing; set the sform or qform")
    if values.dtype == np.int16:
        return np.array(values), np.array(image.affine, float)
    if not np.isfinite(values).all():
        raise ScanError(
            file, f"{np.size(values) - np.isfinite(values).sum()} voxels are NaN or infinite; replace them by -1024"
        )
    return _int16(values), np.array(image.affine, float)


def _read_itk(file: Path) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    values, image = _itk_volume(file)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return values, LPS_TO_RAS @ affine


def _itk_volume(file: Path) -> tuple[NDArray[np.int16], sitk.Image]:
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(file, f"unreadable ({reason}); copy or convert it again") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        size = f"{image.GetDimension()}D with {image.GetNumberOfComponentsPerPixel()} components"
        raise ScanError(file, f"wanted one volume of single values, got {size}")
    values = sitk.GetArrayFromImage(image).T
    if not np.isfinite(values).all():
        raise ScanError(file, "has NaN or infinite voxels; replace them by -1024")
    return _int16(values), image


def _int16(values: NDArray[Any]) -> NDArray[np.int16]:
    """Round to int16; values outside its range (padding, metal) are clipped."""
    if values.dtype == np.int16:
        return values
    return np.clip(np.rint(values), -(2**15), 2**15 - 1).astype(np.int16)
