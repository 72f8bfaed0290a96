"""Small images of every kind, each with markers (`tests/personal_data.py`) in its header, and what reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom.dataset import Dataset

from monai_pipelines.phantoms import write_dicom_series
from monai_pipelines.slides import Slide, close_slides, open_slide
from monai_pipelines.transforms import LoadCT, LoadXray
from tests.dicom_files import write_image
from tests.personal_data import MARKER, mark_dicom, mark_folder, mark_picture, mark_tiff
from tests.slides.slide_files import levels, write_lossless, write_slide

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
HU = np.random.default_rng(0).integers(-1000, 1000, (8, 8, 3)).astype(np.int16)
PIXELS = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
_APERIO = (
    f"Aperio Image Library v11\r\n256x256|AppMag = 20|MPP = 0.5|User = {MARKER}|Filename = {MARKER}|Date = 12/31/99"
)
_OME = {"axes": "YXS", "Name": MARKER, "Description": MARKER, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}


def write_ct(folder: Path, **options: Any) -> Path:
    """A series of three slices."""
    write_dicom_series(folder, HU, AFFINE, **options)
    mark_folder(folder)
    return folder


def write_xray(file: Path) -> Path:
    write_image(file, PIXELS[..., 0].astype(np.uint16), 12)
    mark_dicom(file)
    return file


def _picture(file: Path, **options: Any) -> None:
    Image.fromarray(PIXELS).save(file, **options)
    (mark_tiff if file.suffix == ".tif" else mark_picture)(file)


def _nifti(file: Path) -> None:
    image = nib.Nifti1Image(HU, AFFINE)
    for key in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[key] = f"{MARKER}N".encode()
    person = Dataset()
    person.PatientName = MARKER
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{MARKER} comment".encode()))
    image.header.extensions.append(nib.nifti1.Nifti1DicomExtension(2, person))
    nib.save(image, file)


def _itk(file: Path) -> None:
    volume = sitk.GetImageFromArray(HU.T)
    for key in ("PatientName", "comment", "DICOM_0010_0010", "ITK_InputFilterName"):
        volume.SetMetaData(key, MARKER)
    sitk.WriteImage(volume, str(file))


def _slide(file: Path, write: Callable[..., Path] = write_slide) -> None:
    write(file, levels(256, 256, (1, 2)), mpp=0.5)
    mark_tiff(file)


def _read_slide(file: Path) -> Slide:
    close_slides()
    slide = open_slide(file)
    slide.read_tiles([(0, 0), (64, 64)], slide.tile_size(64, slide.mpp))
    slide.thumbnail(4)
    return slide


_KINDS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "ct": ("a.dcm", lambda file: min(write_ct(file.parent / "ct").iterdir()).rename(file), LoadCT()),
    "xray": ("a.dcm", write_xray, LoadXray()),
    "png": ("a.png", _picture, LoadXray()),
    "jpeg": ("a.jpeg", _picture, LoadXray()),
    "tiff": ("a.tif", _picture, LoadXray()),
    "tiff, lzw": ("a.tif", lambda file: _picture(file, compression="tiff_lzw"), LoadXray()),
    "nii": ("a.nii", _nifti, LoadCT()),
    "nrrd": ("a.nrrd", _itk, LoadCT()),
    "mha": ("a.mha", _itk, LoadCT()),
    "slide": ("a.tif", _slide, _read_slide),
    "slide, lossless": ("a.tif", lambda file: _slide(file, write_lossless), _read_slide),
    "svs": ("a.svs", lambda file: write_slide(file, levels(256, 256, (1, 2)), description=_APERIO), _read_slide),
    "ome": (
        "a.ome.tif",
        lambda file: tifffile.imwrite(file, levels(256, 256)[0], photometric="rgb", ome=True, metadata=_OME),
        _read_slide,
    ),
}
KINDS = tuple(_KINDS)


def write_kind(kind: str, folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    """A file of this kind, and its reader."""
    name, write, read = _KINDS[kind]
    write(folder / name)
    return folder / name, read
