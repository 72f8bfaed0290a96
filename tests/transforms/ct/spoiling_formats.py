"""The healthy CT phantom as an enhanced multi-frame file, NIfTI, NRRD and MetaImage, and what can go wrong there."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from tests.transforms.ct.spoiling import AFFINE, HU, Spoil, stored_of


def enhanced(
    order: list[int] | None = None,
    positions: bool = True,
    shear: float = 0.0,
    stacks: bool = False,
    frames: bool = True,
    per_frame_rescale: bool = False,
    syntax: str | None = None,
) -> Spoil:
    """The series as one enhanced CT."""

    def spoil(folder: Path) -> Path:
        slices = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
        for file in list(folder.iterdir()):
            file.unlink()
        order_ = list(range(len(slices))) if order is None else order
        file = folder / "enhanced.dcm"
        whole = copy.deepcopy(slices[0])
        moved = ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "RescaleSlope", "RescaleType")
        shared = Dataset()
        shared.PixelMeasuresSequence = [_part(slices[0], "PixelSpacing", "SliceThickness")]
        shared.PlaneOrientationSequence = [_part(slices[0], "ImageOrientationPatient")]
        if not per_frame_rescale:
            shared.PixelValueTransformationSequence = [
                _part(slices[0], "RescaleSlope", "RescaleIntercept", "RescaleType")
            ]
        for name in (*moved, "RescaleIntercept", "ImagePositionPatient", "SpacingBetweenSlices", "SliceLocation"):
            whole.pop(name, None)
        items, pixels = [], []
        for number, index in enumerate(order_):
            item, place = Dataset(), _part(slices[index], "ImagePositionPatient")
            place.ImagePositionPatient[1] += shear * 5 * index
            if positions:
                item.PlanePositionSequence = [place]
            content = Dataset()
            content.StackID = str(number // len(slices) + 1) if stacks else "1"
            item.FrameContentSequence = [content]
            stored = stored_of(slices[index])
            if per_frame_rescale:
                rescale = Dataset()
                rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024 - index, "HU"
                item.PixelValueTransformationSequence = [rescale]
                stored = stored + np.uint16(index)
            items.append(item)
            pixels.append(stored)
        if frames:
            whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], items
        whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
        whole.NumberOfFrames, whole.PixelData = len(items), np.stack(pixels).tobytes()
        if syntax:
            whole.compress(syntax, generate_instance_uid=False)
        whole.save_as(file, enforce_file_format=True)
        return file

    return spoil


def twice(folder: Path) -> Path:
    """A folder with two copies of the enhanced CT."""
    file = enhanced()(folder)
    (folder / "copy.dcm").write_bytes(file.read_bytes())
    return folder


def _part(source: Dataset, *names: str) -> Dataset:
    part = Dataset()
    for name in names:
        if name in source:
            setattr(part, name, copy.deepcopy(source[name].value))
    return part


# ---- other formats


def nifti(
    change: Callable[[Any], Any] | None = None,
    values: Callable[[np.ndarray], np.ndarray] = lambda hu: hu,
    name: str = "volume.nii",
    damage: Callable[[bytearray], Any] | None = None,
) -> Spoil:
    """The phantom as NIfTI, its header changed where it lies in the file."""

    def spoil(folder: Path) -> Path:
        file = folder / "volume.nii"
        nib.save(nib.Nifti1Image(values(HU), AFFINE), file)
        raw = bytearray(file.read_bytes())
        if change:
            header = nib.Nifti1Header(bytes(raw[:348]), check=False)
            change(header)
            raw[:348] = header.binaryblock
        if name.endswith(".gz"):
            file.unlink()
            raw = bytearray(gzip.compress(bytes(raw)))
        if damage:
            damage(raw)
        (folder / name).write_bytes(raw)
        return folder / name

    return spoil


def unit(code: int, factor: float) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header["xyzt_units"] = code
        header["pixdim"][1:4] *= factor
        for name in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[name] = header[name] * factor

    return change


def codes(sform: int, qform: int) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header["sform_code"], header["qform_code"] = sform, qform

    return change


def set(name: str, value: Any, index: Any = ...) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header[name][index] = value

    return change


def disagreeing(header: Any) -> None:
    header["qform_code"] = header["sform_code"] = 1
    header["qoffset_z"] += 40


def flip_bit(raw: bytearray) -> None:
    raw[len(raw) // 2] ^= 16


def sheared(header: Any) -> None:
    header["sform_code"], header["qform_code"] = 1, 0
    header["srow_x"][1] = 0.8


def itk(name: str, change: Callable[[bytes], bytes] | None = None) -> Spoil:
    """The phantom as MetaImage or NRRD, the text of its header changed."""

    def spoil(folder: Path) -> Path:
        image = sitk.GetImageFromArray(HU.T.copy())
        image.SetSpacing([2, 2, 5])
        image.SetOrigin([-31, -27, -120])
        file = folder / name
        sitk.WriteImage(image, str(file))
        if change:
            file.write_bytes(change(file.read_bytes()))
        return file

    return spoil
