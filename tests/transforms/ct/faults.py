"""Faults of CT data, each made from one healthy phantom, and what `LoadCT` and MONAI make of them.

``python -m tests.transforms.ct.faults > bundles/lung_ct_classification/docs/faults.md`` writes the documentation.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import monai
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from monai.transforms import LoadImage
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from monai_pipelines.errors import ScanError
from monai_pipelines.phantoms import Scanner, write_dicom_series
from monai_pipelines.transforms import LoadCT

SHAPE = (32, 28, 14)
SCANNER = Scanner("Healthy", signed=False, intercept_hu=-1024, slice_mm=5, thickness_mm=5)
AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
AFFINE[:3, 3] = 31, 27, -120
MARKER = "MUSTERMANN"


def field_hu(x_mm: np.ndarray, y_mm: np.ndarray, z_mm: np.ndarray) -> np.ndarray:
    """A smooth field without symmetry."""
    return np.rint(
        -400
        + 250 * np.sin(x_mm / 13) * np.cos(y_mm / 17 + 0.4)
        + 6 * (z_mm + 85)
        + 300 * np.exp(-((x_mm - 9) ** 2 + (y_mm + 7) ** 2) / 150)
    )


def healthy_hu(shear: float = 0.0) -> np.ndarray:
    """The phantom (X, Y, Z); sheared: each slice higher up lies further along the columns."""
    voxels = np.indices(SHAPE).reshape(3, -1)
    x, y, z = nib.affines.apply_affine(AFFINE, voxels.T).T.reshape(3, *SHAPE)
    return field_hu(x, y + shear * (z - z.min()), z).astype(np.int16)


HU = healthy_hu()
Spoil = Callable[[Path], Path | None]


@dataclass(frozen=True)
class Fault:
    """A fault and its outcome.

    Args:
        name: as in the documentation.
        spoil: changes the healthy series in a folder; returns the path to be read, if it is another one.
        outcome: "equal" to the healthy volume, "repaired" (close to it), or the message (regular expression).
        options: of `LoadCT`.
        verdict: regular expression.
    """

    name: str
    spoil: Spoil
    outcome: str
    options: dict[str, Any] = field(default_factory=dict)
    verdict: str = "ok"
    kind: Literal["series", "enhanced", "NIfTI", "NRRD, MetaImage"] = "series"


def write_healthy(folder: Path, **options: Any) -> Path:
    return write_dicom_series(folder, HU, AFFINE, scanner=SCANNER, patient_id=MARKER, **options)


def edit(change: Callable[[Dataset], Any], only: int | None = None, **how: Any) -> Spoil:
    """Change all slices, or one, counted from the feet."""

    def spoil(folder: Path) -> None:
        for index, file in enumerate(sorted(folder.iterdir())):
            if only is None or index == only:
                dataset = pydicom.dcmread(file)
                change(dataset)
                dataset.save_as(file, **how)

    return spoil


def put(name: str, text: bytes, only: int | None = None) -> Spoil:
    """Write bytes as they are."""

    def change(dataset: Dataset) -> None:
        element = dataset[name]
        raw = RawDataElement(Tag(name), element.VR, len(text), text, 0, False, True)
        dataset._dict[Tag(name)] = raw

    return edit(change, only)


def drop(*names: str, only: int | None = None) -> Spoil:
    return edit(lambda dataset: [delattr(dataset, name) for name in names], only)


def change_to(name: str, value: Any, only: int | None = None) -> Spoil:
    return edit(lambda dataset: setattr(dataset, name, value), only)


def _stored(dataset: Dataset) -> np.ndarray:
    return np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)


def _overlay_bits(dataset: Dataset) -> None:
    stored = _stored(dataset).copy()
    stored[3:9, 3:9] |= 0xF000
    dataset.BitsStored, dataset.HighBit, dataset.PixelData = 12, 11, stored.tobytes()


def _signed_12_bits(dataset: Dataset) -> None:
    stored = _stored(dataset).astype(int) - 1024
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation, dataset.RescaleIntercept = 12, 11, 1, 0
    dataset.PixelData = (stored & 0xFFF).astype("<u2").tobytes()


def _left_justified(dataset: Dataset) -> None:
    dataset.BitsStored, dataset.HighBit = 12, 15
    dataset.PixelData = (_stored(dataset) << 4).tobytes()


def _eight_bits(dataset: Dataset) -> None:
    """A smaller range of values, as bytes."""
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = (_stored(dataset) >> 4).astype(np.uint8).tobytes()
    dataset.RescaleSlope = 16


def _stored_hu(dataset: Dataset) -> None:
    dataset.PixelData = (_stored(dataset).astype(int) - 1024).astype("<i2").tobytes()
    dataset.PixelRepresentation = 1
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType


def _pad(dataset: Dataset) -> None:
    """The first rows are air in the healthy phantom's place; here they are padding."""
    stored = _stored(dataset).copy()
    stored[:2] = 63488
    dataset.PixelData = stored.tobytes()
    dataset.add_new("PixelPaddingValue", "US", 63488)


def _big_endian(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = _stored(dataset).astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False, force_encoding=True)


def _without_meta(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)


def _without_syntax(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.file_meta.TransferSyntaxUID
        dataset.save_as(file, implicit_vr=False, little_endian=True, enforce_file_format=False)


def compress(syntax: str, compressor: str = "") -> Spoil:
    """By pydicom, or by GDCM's encoder."""

    def change(dataset: Dataset) -> None:
        if not compressor:
            dataset.compress(syntax, generate_instance_uid=False)
            return
        image = sitk.GetImageFromArray(_stored(dataset))
        writer = sitk.ImageFileWriter()
        file = Path(os.environ.get("TMPDIR", "/tmp")) / f"{generate_uid()}.dcm"
        writer.SetFileName(str(file))
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(image)
        made = pydicom.dcmread(file)
        file.unlink()
        dataset.PixelData = made.PixelData
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = made.file_meta.TransferSyntaxUID
        assert made.file_meta.TransferSyntaxUID == syntax

    return edit(change)


def _cut_stream(folder: Path) -> None:
    compress(RLELossless)(folder)
    file = sorted(folder.iterdir())[4]
    dataset = pydicom.dcmread(file)
    dataset.PixelData = encapsulate([next(pydicom.encaps.generate_fragments(dataset.PixelData))[:300]])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)


def _gzipped(folder: Path) -> None:
    for file in list(folder.iterdir()):
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def _cut(end: int) -> Spoil:
    def spoil(folder: Path) -> None:
        file = sorted(folder.iterdir())[4]
        file.write_bytes(file.read_bytes()[:end])

    return spoil


def _companions(folder: Path) -> None:
    files = FileSet()
    for file in folder.iterdir():
        files.add(file)
    files.write(folder.parent / "media")
    shutil.copy(folder.parent / "media" / "DICOMDIR", folder)
    (folder / "README").write_text("A description without suffix")
    (folder / "report.PDF").write_bytes(b"%PDF-1.4\n%\xff\xff")
    (folder / "preview.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\0\0")
    (folder / ".DS_Store").write_bytes(bytes(100))
    (folder / "@eaDir").mkdir()
    shutil.copy(folder / "DICOMDIR", folder / "@eaDir" / "IM0001")


def _beside(**tags: Any) -> Spoil:
    """One more file of another kind and series."""

    def spoil(folder: Path) -> None:
        dataset = pydicom.dcmread(min(folder.iterdir()))
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = generate_uid(), generate_uid()
        for name, value in tags.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.save_as(folder / "another.dcm")

    return spoil


def _add_series(folder: Path, num: int = 5, description: str = "other", **tags: Any) -> None:
    """A second, smaller series in the same folder."""
    other = write_healthy(folder.parent / "other", scan_id="other")
    for file in sorted(other.iterdir())[:num]:
        dataset = pydicom.dcmread(file)
        dataset.SeriesNumber, dataset.SeriesDescription = 7, description
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / f"other-{file.name}")


def second_series(**tags: Any) -> Spoil:
    return lambda folder: _add_series(folder, **tags)


def _uid_of_healthy(folder: Path) -> str:
    return pydicom.dcmread(min(folder.iterdir())).SeriesInstanceUID


def _same_uid(**tags: Any) -> Spoil:
    """A second reconstruction of five slices with the UID of the first."""
    return lambda folder: _add_series(folder, SeriesInstanceUID=_uid_of_healthy(folder), **tags)


def _blank_uids(folder: Path) -> None:
    _add_series(folder, Rows=14, PixelData=bytes(14 * 32 * 2))
    edit(lambda dataset: setattr(dataset, "SeriesInstanceUID", ""))(folder)


def _links(folder: Path) -> None:
    store = folder.parent / "store"
    folder.rename(store)
    folder.mkdir()
    for file in store.iterdir():
        (folder / file.name).symlink_to(file)


def _broken_links(folder: Path) -> None:
    for file in sorted(folder.iterdir())[10:]:
        file.unlink()
        file.symlink_to("/nowhere/x")


def _loop(folder: Path) -> None:
    (folder / "again").symlink_to(folder)


def _nested(folder: Path) -> None:
    deep = folder / "study" / "series"
    deep.mkdir(parents=True)
    for file in list(folder.glob("IM*")):
        file.rename(deep / file.name)


def _not_utf8(folder: Path) -> None:
    compress(RLELossless)(folder)
    for index, file in enumerate(sorted(folder.iterdir())):
        os.rename(file, os.fsencode(folder) + b"/\xe9%d.dcm" % index)


def _missing(folder: Path) -> None:
    sorted(folder.iterdir())[6].unlink()


def _copied(folder: Path) -> None:
    shutil.copy(sorted(folder.iterdir())[6], folder / "copy of a slice.dcm")


def _doubled(folder: Path) -> None:
    _copied(folder)
    dataset = pydicom.dcmread(folder / "copy of a slice.dcm")
    dataset.SOPInstanceUID = generate_uid()
    dataset.save_as(folder / "copy of a slice.dcm")


def _tilted(folder: Path) -> None:
    """12 degrees: slices shifted along the columns, and the phantom cut along them."""
    shear, hu = np.tan(np.deg2rad(12)), healthy_hu(np.tan(np.deg2rad(12)))
    for index, file in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = (hu[:, :, index].T.astype(int) + 1024).astype("<u2").tobytes()
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, round(y - shear * 5 * index, 4), z]
        dataset.save_as(file)


def _rounded(dataset: Dataset) -> None:
    dataset.ImagePositionPatient = [round(float(v) + 0.04, 1) for v in dataset.ImagePositionPatient]


def _jitter(folder: Path) -> None:
    rng = np.random.default_rng(0)
    edit(
        lambda d: setattr(d, "ImageOrientationPatient", list(np.round([1, 0, 0, 0, 1, 0] + rng.normal(0, 2e-5, 6), 6)))
    )(folder)


# ---- enhanced


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
            stored = _stored(slices[index])
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


def _unit(code: int, factor: float) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header["xyzt_units"] = code
        header["pixdim"][1:4] *= factor
        for name in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[name] = header[name] * factor

    return change


def _codes(sform: int, qform: int) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header["sform_code"], header["qform_code"] = sform, qform

    return change


def _set(name: str, value: Any, index: Any = ...) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header[name][index] = value

    return change


def _disagreeing(header: Any) -> None:
    header["qform_code"] = header["sform_code"] = 1
    header["qoffset_z"] += 40


def _flip_bit(raw: bytearray) -> None:
    raw[len(raw) // 2] ^= 16


def _sheared(header: Any) -> None:
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


NUMBER = "wanted a number from"
FAULTS = [
    Fault("nothing", lambda folder: None, "equal"),
    # rescale
    Fault("RescaleIntercept missing in one slice", drop("RescaleIntercept", only=9), f"RescaleIntercept: {NUMBER}"),
    Fault("rescale missing in all slices", drop("RescaleIntercept", "RescaleSlope"), "RescaleSlope: .* got none"),
    Fault("rescale missing, stored values in HU", edit(_stored_hu), "equal", {"no_rescale": "hu"}),
    Fault("RescaleSlope NaN", put("RescaleSlope", b"NaN ", 9), "RescaleSlope: .* got 'NaN'"),
    Fault("RescaleSlope infinite", put("RescaleSlope", b"1e999 ", 9), "RescaleSlope: .* got inf"),
    Fault("RescaleSlope 0", change_to("RescaleSlope", 0), "RescaleSlope: .* got 0"),
    Fault("RescaleSlope negative", change_to("RescaleSlope", -1), "RescaleSlope: .* got -1"),
    Fault("RescaleSlope huge", change_to("RescaleSlope", 1e9), "RescaleSlope: .* got 1e"),
    Fault("RescaleSlope empty", put("RescaleSlope", b"", 9), "RescaleSlope: .* got an empty value"),
    Fault("RescaleSlope with a comma", put("RescaleSlope", b"1,0 ", 9), "RescaleSlope: .* got '1,0'"),
    Fault("RescaleSlope of two values", put("RescaleSlope", b"1\\1 ", 9), "RescaleSlope: .* got 1, 1"),
    Fault("RescaleIntercept is a name", put("RescaleIntercept", MARKER.encode()), "RescaleIntercept: .* got text"),
    Fault("RescaleType US", change_to("RescaleType", "US"), "RescaleType: wanted HU, got US"),
    Fault("modality LUT", change_to("ModalityLUTSequence", [Dataset()]), "a modality LUT"),
    # place
    Fault("position missing", drop("ImagePositionPatient", only=3), "ImagePositionPatient: .* got none"),
    Fault(
        "position NaN", put("ImagePositionPatient", b"1\\2\\nan ", 3), r"ImagePositionPatient: .* got '1\\\\2\\\\nan'"
    ),
    Fault("position of two values", put("ImagePositionPatient", b"1\\2 ", 3), "ImagePositionPatient: .* got 1, 2"),
    Fault(
        "position a kilometre away", put("ImagePositionPatient", b"1e6\\0\\0 ", 3), "ImagePositionPatient: .* got 1e"
    ),
    Fault("positions rounded to 0.1 mm", edit(_rounded), "equal"),
    Fault("orientation zero", change_to("ImageOrientationPatient", [0] * 6), "wanted two directions at right angles"),
    Fault(
        "orientation not at right angles", change_to("ImageOrientationPatient", [1, 0, 0, 0.5, 0.8, 0]), "right angles"
    ),
    Fault("orientation jitters in the fifth digit", _jitter, "equal"),
    Fault("PixelSpacing 0", change_to("PixelSpacing", [0, 0]), "PixelSpacing: .* got 0, 0"),
    Fault("PixelSpacing negative", change_to("PixelSpacing", [-2, 2]), "PixelSpacing: .* got -2, 2"),
    Fault("PixelSpacing of one value", put("PixelSpacing", b"2 "), "PixelSpacing: .* got 2"),
    Fault("PixelSpacing in micrometres", change_to("PixelSpacing", [2000, 2000]), "PixelSpacing: .* got 2000"),
    Fault("slices in one place", _doubled, "two slices at the same position"),
    Fault("a slice copied", _copied, "equal", verdict="copy of a slice.dcm is a copy of|IM.* is a copy of"),
    Fault("a slice missing", _missing, "5.00 to 10.00 mm apart: some are missing"),
    Fault(
        "a slice missing, resampled", _missing, "repaired", {"uneven": "resample"}, "up to 10 mm apart resampled to 5"
    ),
    Fault("gantry tilt", _tilted, r"gantry tilt of 12\.0 degrees"),
    Fault(
        "gantry tilt, corrected", _tilted, "repaired", {"tilt": "correct"}, r"gantry tilt of 12\.0 degrees corrected"
    ),
    # pixels
    Fault("overlay in the unused bits", edit(_overlay_bits), "equal"),
    Fault("signed, 12 bits", edit(_signed_12_bits), "equal"),
    Fault("12 bits, HighBit 15", edit(_left_justified), "equal"),
    Fault("8 bits", edit(_eight_bits), "repaired"),
    Fault("padding", edit(_pad), "padded"),
    Fault(
        "padding value within tissue",
        edit(lambda d: d.add_new("PixelPaddingValue", "US", 1024)),
        "equal",
        verdict="padding of 0 HU not",
    ),
    Fault(
        "pixel data longer than Rows x Columns", change_to("Rows", 14), "PixelData holds 1792 bytes, Rows x Columns are"
    ),
    Fault(
        "pixel data shorter than Rows x Columns",
        change_to("Rows", 56),
        "truncated: wanted 3584 bytes of pixels, got 1792",
    ),
    Fault("Columns 0", change_to("Columns", 0), "Columns: wanted a number from 1"),
    Fault("BitsStored 20 of 16", change_to("BitsStored", 20), "BitsStored: wanted a number from 1 to 16, got 20"),
    Fault("no pixel data", drop("PixelData", only=3), "no PixelData: truncated, or not a CT slice"),
    Fault("three values per pixel", change_to("SamplesPerPixel", 3, 3), "a color image"),
    Fault("big endian", _big_endian, "equal"),
    Fault("implicit VR, no file meta", _without_meta, "equal"),
    Fault("no transfer syntax", _without_syntax, "equal"),
    Fault(
        "deflated", edit(lambda d: setattr(d.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian)), "equal"
    ),
    Fault("RLE", compress(RLELossless), "equal"),
    Fault("JPEG lossless", compress(JPEGLosslessSV1, "JPEG"), "equal"),
    Fault("JPEG 2000", compress(JPEG2000Lossless, "JPEG2000"), "equal"),
    Fault("RLE, a stream cut", _cut_stream, "cannot be decoded|truncated"),
    # files
    Fault("gzipped slices", _gzipped, "equal"),
    Fault("a file cut in its header", _cut(500), "no Modality .truncated"),
    Fault("a file cut in its pixels", _cut(-500), "truncated: wanted 1792 bytes of pixels, got 1292"),
    Fault("an empty file", lambda folder: (folder / "IM9999").touch(), "not DICOM"),
    Fault("a file that is no DICOM", lambda folder: (folder / "IM9999").write_bytes(bytes(500)) and None, "not DICOM"),
    Fault("DICOMDIR, README, PDF, thumbnails, hidden files", _companions, "equal"),
    Fault("links to the slices", _links, "equal"),
    Fault("broken links", _broken_links, "4 broken links, such as IM"),
    Fault("a link to the folder itself", _loop, "equal"),
    Fault("slices in folders below", _nested, "equal"),
    Fault("compressed, names not in UTF-8", _not_utf8, "equal", verdict="14 names are not UTF-8"),
    # several series
    Fault("a scout beside", _beside(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "equal"),
    Fault("a capture beside", _beside(SOPClassUID=SecondaryCaptureImageStorage), "equal"),
    Fault("a dose report beside", _beside(Modality="SR", PixelData=None, Rows=None), "equal"),
    Fault("an MR image beside", _beside(Modality="MR"), "equal"),
    Fault("an MR image among the slices", change_to("Modality", "MR", 3), "wanted a CT slice, got Modality MR"),
    Fault("another matrix in one slice", change_to("Columns", 16, 3), "2 different Rows x Columns"),
    Fault("two series", second_series(), "equal", verdict="series 1 .14 slices.* chosen, not series 7 .5 slices"),
    Fault("two series, policy error", second_series(), "2 series: series 1 .*; series 7", {"series": "error"}),
    Fault("two series, by number", second_series(), "equal", {"series": 1}, "series 1 .* chosen"),
    Fault("two series, by description", second_series(), "equal", {"series": "synthetic"}, "series 1 .* chosen"),
    Fault("two series, no match", second_series(), "no series fits 'brain'; there are: series 1", {"series": "brain"}),
    Fault(
        "two series, one UID, other matrix", _same_uid(Rows=14, PixelData=bytes(14 * 32 * 2)), "equal", verdict="chosen"
    ),
    Fault("two series, one UID, other kernel", _same_uid(ConvolutionKernel="SHARP"), "equal", verdict="chosen"),
    Fault("two series, no UID", _blank_uids, "equal", verdict="chosen"),
    Fault("two patients", second_series(PatientID="another"), "scans of several patients; name the folder of one"),
    # enhanced
    Fault("frames in order", enhanced(), "equal", kind="enhanced"),
    Fault("frames scrambled", enhanced([3, 0, 1, 2, *range(13, 3, -1)]), "equal", kind="enhanced"),
    Fault("a frame missing", enhanced([i for i in range(14) if i != 6]), "some are missing", kind="enhanced"),
    Fault("a frame doubled", enhanced([*range(14), 6]), "two slices at the same position", kind="enhanced"),
    Fault(
        "two stacks",
        enhanced([*range(14), *range(14)], stacks=True),
        "equal",
        verdict="StackID 1 .* not series 1, StackID 2",
        kind="enhanced",
    ),
    Fault("two phases, nothing tells them apart", enhanced([*range(14)] * 2), "same position", kind="enhanced"),
    Fault("rescale of each frame", enhanced(per_frame_rescale=True), "equal", kind="enhanced"),
    Fault("tilted frames", enhanced(shear=0.2), r"gantry tilt of 11\.3 degrees", kind="enhanced"),
    Fault("frames without positions", enhanced(positions=False), "ImagePositionPatient: .* got none", kind="enhanced"),
    Fault("a multi-frame capture", enhanced(frames=False), "a capture, not a volume", kind="enhanced"),
    Fault("RLE", enhanced(syntax=RLELossless), "equal", kind="enhanced"),
    # NIfTI
    Fault("nothing", nifti(), "equal", kind="NIfTI"),
    Fault("metres", nifti(_unit(1, 1e-3)), "equal", verdict="unit meter converted", kind="NIfTI"),
    Fault("micrometres", nifti(_unit(3, 1e3)), "equal", verdict="unit micron converted", kind="NIfTI"),
    Fault("metres that claim to be mm", nifti(_unit(2, 1e-3)), "voxels of 0.002 x 0.002 x 0.005 mm", kind="NIfTI"),
    Fault("no sform, no qform", nifti(_codes(0, 0)), "other place", verdict="no sform or qform", kind="NIfTI"),
    Fault("qform only", nifti(_codes(0, 1)), "equal", kind="NIfTI"),
    Fault("sform and qform disagree", nifti(_disagreeing), "disagree by up to 40 mm", kind="NIfTI"),
    Fault("NaN in the sform", nifti(_set("srow_x", np.nan, 3)), "NaN or infinite numbers in its affine", kind="NIfTI"),
    Fault("sheared sform", nifti(_sheared), "rows and columns are not at right angles", kind="NIfTI"),
    Fault("trailing axes of one", nifti(values=lambda hu: hu[..., None, None]), "equal", kind="NIfTI"),
    Fault("4D", nifti(values=lambda hu: np.stack([hu, hu], -1)), "wanted one volume", kind="NIfTI"),
    Fault("unknown data type", nifti(_set("datatype", 999)), r"unreadable NIfTI \(HeaderDataError\)", kind="NIfTI"),
    Fault("scl_slope NaN", nifti(_set("scl_slope", np.nan)), "equal", kind="NIfTI"),
    Fault("scl_slope infinite", nifti(_set("scl_slope", np.inf)), "scl_slope or scl_inter is infinite", kind="NIfTI"),
    Fault("a flipped bit in .nii.gz", nifti(name="a.nii.gz", damage=_flip_bit), "unreadable NIfTI", kind="NIfTI"),
    Fault(
        "the end of .nii.gz missing",
        nifti(name="a.nii.gz", damage=lambda raw: raw.__delitem__(slice(-9, None))),
        "truncated",
        kind="NIfTI",
    ),
    # NRRD, MetaImage
    Fault("nothing", itk("a.mha"), "equal", kind="NRRD, MetaImage"),
    Fault(
        "data file missing",
        itk("a.mhd", lambda text: text.replace(b"a.raw", b"b.raw")),
        "unreadable",
        kind="NRRD, MetaImage",
    ),
    Fault(
        "NaN direction", itk("a.nrrd", lambda text: text.replace(b"(2,0,0)", b"(nan,0,0)")), ".", kind="NRRD, MetaImage"
    ),
    Fault(
        "spacing 0",
        itk("a.mha", lambda text: text.replace(b"ElementSpacing = 2 2 5", b"ElementSpacing = 0 2 5")),
        ".",
        kind="NRRD, MetaImage",
    ),
]


# ---- documentation

DOCUMENT = Path(__file__).parents[3] / "bundles" / "lung_ct_classification" / "docs" / "faults.md"
HEAD = """# Faults of CT data

One healthy phantom series ({shape[0]} x {shape[1]} x {shape[2]} voxels, unsigned, intercept -1024) is spoiled in each
of these ways. "equal" is the healthy volume, voxel by voxel, at the same place; "repaired" is close to it. Beside it,
what `monai.transforms.LoadImage` of MONAI {monai} does: a volume that is not equal comes without an error.
Written by `python -m tests.transforms.ct.faults`; the tests hold the second column.
"""


def our_outcome(fault: Fault, path: Path) -> str:
    """What `LoadCT` does, without the path."""
    try:
        verdict = str(LoadCT(**fault.options)(path).meta["verdict"])
    except ScanError as error:
        return f"error: {error.reason}"
    outcome = {"padded": "equal, padding is air", "other place": "equal voxels"}.get(fault.outcome, fault.outcome)
    return outcome if verdict == "ok" else f"{outcome}; {verdict}"


def monais_outcome(path: Path) -> str:
    """What `LoadImage` does."""
    try:
        volume = LoadImage(image_only=True, ensure_channel_first=True)(path)
    except BaseException as error:
        return f"{type(error).__name__}"
    hu = np.asarray(volume[0], float)
    if tuple(volume.shape) != (1, *SHAPE):
        return f"a volume of shape {' x '.join(map(str, volume.shape))}"
    spacing = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)
    if not np.allclose(spacing, [2, 2, 5], atol=0.01):
        return f"voxels of {' x '.join(f'{v:.3g}' for v in spacing)} mm"
    flips = [np.abs(np.flip(hu, axes) - HU) for axes in ((), (0, 1), (2,), (0, 1, 2))]
    wrong = min(flips, key=lambda difference: float((difference > 0.5).mean()))
    bad = ~(wrong <= 0.5)
    if bad.any():
        return f"{bad.mean():.0%} of the voxels wrong, by up to {wrong.max():.0f} HU"
    corners = np.array(list(itertools.product(*((0, size - 1) for size in SHAPE))))
    there, here = (np.sort(nib.affines.apply_affine(a, corners), axis=0) for a in (np.asarray(volume.affine), AFFINE))
    return "equal" if np.allclose(there, here, atol=0.1) else "equal voxels at another place"


def write_document() -> None:
    """To standard output."""
    print(HEAD.format(shape=SHAPE, monai=monai.__version__))
    print("| kind | fault | LoadCT | LoadImage |\n|---|---|---|---|")
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            path = write_healthy(Path(folder) / "scan")
            path = fault.spoil(path) or path
            row = (fault.kind, option_text(fault), our_outcome(fault, path), monais_outcome(path))
        print("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |")


def option_text(fault: Fault) -> str:
    """The fault's name and the options that `LoadCT` gets."""
    return fault.name + "".join(f" (`{name}={value!r}`)" for name, value in fault.options.items())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    write_document()
