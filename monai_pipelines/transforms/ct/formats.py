"""CT volumes in one file: NIfTI, NRRD, MetaImage."""

from __future__ import annotations

import gzip
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder

from monai_pipelines.errors import ScanError
from monai_pipelines.remarks import logged_remarks, printed_remarks
from monai_pipelines.transforms.ct.volume import LPS_TO_RAS, Volume, to_int16
from monai_pipelines.walk import is_utf8

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_COPY_AGAIN = "copy or convert it again"
_UNIT_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_MAX_DISAGREEMENT_MM = 1.0


def read_nifti(file: Path) -> Volume:
    """Read NIfTI-1 or -2, its checksum verified if it is compressed; metres and micrometres become mm.

    Raises:
        ScanError: damaged, not one volume of real numbers, or a place in space that is missing or contradicts itself.
    """
    data = file.read_bytes()
    try:
        if file.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
        with logged_remarks(nib.imageglobals.logger.name) as remarks:
            image = _nifti(data)
        stored = type(image.header).from_fileobj(BytesIO(data), check=False)
        if np.isinf([stored["scl_slope"], stored["scl_inter"]]).any():
            raise ScanError(file, "its scl_slope or scl_inter is infinite; convert it again")
        values = np.asanyarray(image.dataobj)
    except ScanError:
        raise
    except (EOFError, OSError, zlib.error) as error:
        raise ScanError(file, f"unreadable NIfTI ({type(error).__name__}), truncated?; {_COPY_AGAIN}") from None
    except Exception as error:
        raise ScanError(file, f"unreadable NIfTI ({type(error).__name__}); {_COPY_AGAIN}") from None
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or min(values.shape) == 0:
        raise ScanError(file, f"wanted one volume (X, Y, Z), got shape {values.shape}; save one volume")
    if values.dtype.kind not in "iuf":
        raise ScanError(file, f"wanted one real number per voxel, got {values.dtype}: color or complex, not CT")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.size(values) - int(np.isfinite(values).sum())
        raise ScanError(file, f"{bad} voxels are NaN or infinite; replace them by -1024")
    affine, notes = nifti_affine(file, image)
    repaired = [remark for remark in dict.fromkeys(remarks) if "leaving" not in remark]
    return Volume(np.array(to_int16(values)), affine, [*repaired, *notes])


def _nifti(data: bytes) -> Any:
    """The image in these bytes, NIfTI-1 or -2 by the size of its header."""
    second = 540 in (int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big"))
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    holder = FileHolder(fileobj=BytesIO(data))
    return kind.from_file_map({"header": holder, "image": holder})


def nifti_affine(file: Path, image: Any) -> tuple[np.ndarray, list[str]]:
    """Voxels -> RAS mm, and notes about its choice; a ScanError if sform and qform contradict each other."""
    header, notes = image.header, []
    unit = header.get_xyzt_units()[0]
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    if not sform_code and not qform_code:
        notes.append("no sform or qform: axes taken as RAS")
        affine = np.diag([*header.get_zooms()[:3], 1.0])
    else:
        affine = np.array(sform if sform_code else qform, float)
    if sform_code and qform_code:
        far = np.array([*image.shape[:3], 1.0])
        apart_mm = np.abs((sform - qform) @ np.stack([far, [0, 0, 0, 1]], axis=1))[:3].max() * _UNIT_MM[unit]
        if not apart_mm <= _MAX_DISAGREEMENT_MM:
            raise ScanError(
                file, f"its sform and qform disagree by up to {apart_mm:.3g} mm; set the code of the wrong one to 0"
            )
    if _UNIT_MM[unit] != 1:
        affine = np.diag([_UNIT_MM[unit]] * 3 + [1.0]) @ affine
        notes.append(f"unit {unit} converted to mm")
    return affine, notes


def read_itk(file: Path) -> Volume:
    """Read NRRD or MetaImage by SimpleITK.

    Raises:
        ScanError: damaged, a data file that is missing, not one volume of single values.
    """
    if not is_utf8(file):
        raise ScanError(file, "its name is not UTF-8, and SimpleITK cannot open it; rename it")
    import SimpleITK as sitk

    try:
        with printed_remarks():  # MetaImage's, beside the error
            image = sitk.ReadImage(str(file))
    except RuntimeError:  # its text quotes the header
        raise ScanError(
            file, f"unreadable: truncated, an invalid header, or its data file missing; {_COPY_AGAIN}"
        ) from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        size = f"{image.GetDimension()}D with {image.GetNumberOfComponentsPerPixel()} components"
        raise ScanError(file, f"wanted one volume of single values, got {size}")
    values = sitk.GetArrayFromImage(image).T
    if not np.isfinite(values).all():
        raise ScanError(file, "has NaN or infinite voxels; replace them by -1024")
    return Volume(to_int16(values), itk_affine(image))


def itk_affine(image: Any) -> np.ndarray:
    """Voxels -> RAS mm of a SimpleITK image, or of the reader that has read its header."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine
