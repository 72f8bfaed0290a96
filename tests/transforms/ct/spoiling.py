"""A healthy CT phantom, and what can go wrong with its files."""

from __future__ import annotations

import gc
import gzip
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.tag import Tag
from pydicom.uid import (
    ExplicitVRBigEndian,
    RLELossless,
    generate_uid,
)

from monai_pipelines.phantoms import Scanner, write_dicom_series

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


def stored_of(dataset: Dataset) -> np.ndarray:
    return np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)


def overlay_bits(dataset: Dataset) -> None:
    stored = stored_of(dataset).copy()
    stored[3:9, 3:9] |= 0xF000
    dataset.BitsStored, dataset.HighBit, dataset.PixelData = 12, 11, stored.tobytes()


def signed_12_bits(dataset: Dataset) -> None:
    stored = stored_of(dataset).astype(int) - 1024
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation, dataset.RescaleIntercept = 12, 11, 1, 0
    dataset.PixelData = (stored & 0xFFF).astype("<u2").tobytes()


def left_justified(dataset: Dataset) -> None:
    dataset.BitsStored, dataset.HighBit = 12, 15
    dataset.PixelData = (stored_of(dataset) << 4).tobytes()


def eight_bits(dataset: Dataset) -> None:
    """A smaller range of values, as bytes."""
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = (stored_of(dataset) >> 4).astype(np.uint8).tobytes()
    dataset.RescaleSlope = 16


def stored_hu(dataset: Dataset) -> None:
    dataset.PixelData = (stored_of(dataset).astype(int) - 1024).astype("<i2").tobytes()
    dataset.PixelRepresentation = 1
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType


def pad(dataset: Dataset) -> None:
    """The first rows are air in the healthy phantom's place; here they are padding."""
    stored = stored_of(dataset).copy()
    stored[:2] = 63488
    dataset.PixelData = stored.tobytes()
    dataset.add_new("PixelPaddingValue", "US", 63488)


def big_endian(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = stored_of(dataset).astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False, force_encoding=True)


def without_meta(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)


def without_syntax(folder: Path) -> None:
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
        image = sitk.GetImageFromArray(stored_of(dataset))
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


def cut_stream(folder: Path) -> None:
    compress(RLELossless)(folder)
    file = sorted(folder.iterdir())[4]
    dataset = pydicom.dcmread(file)
    dataset.PixelData = encapsulate([next(pydicom.encaps.generate_fragments(dataset.PixelData))[:300]])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)


def gzipped(folder: Path) -> None:
    for file in list(folder.iterdir()):
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def cut(end: int) -> Spoil:
    def spoil(folder: Path) -> None:
        file = sorted(folder.iterdir())[4]
        file.write_bytes(file.read_bytes()[:end])

    return spoil


def companions(folder: Path) -> None:
    files = FileSet()
    for file in folder.iterdir():
        files.add(file)
    files.write(folder.parent / "media")
    shutil.copy(folder.parent / "media" / "DICOMDIR", folder)
    with warnings.catch_warnings():  # pydicom leaves a temporary folder to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        del files
        gc.collect()
    (folder / "README").write_text("A description without suffix")
    (folder / "report.PDF").write_bytes(b"%PDF-1.4\n%\xff\xff")
    (folder / "preview.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\0\0")
    (folder / ".DS_Store").write_bytes(bytes(100))
    (folder / "@eaDir").mkdir()
    shutil.copy(folder / "DICOMDIR", folder / "@eaDir" / "IM0001")


def beside(**tags: Any) -> Spoil:
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


def same_uid(**tags: Any) -> Spoil:
    """A second reconstruction of five slices with the UID of the first."""
    return lambda folder: _add_series(folder, SeriesInstanceUID=_uid_of_healthy(folder), **tags)


def blank_uids(folder: Path) -> None:
    _add_series(folder, Rows=14, PixelData=bytes(14 * 32 * 2))
    edit(lambda dataset: setattr(dataset, "SeriesInstanceUID", ""))(folder)


def links(folder: Path) -> None:
    store = folder.parent / "store"
    folder.rename(store)
    folder.mkdir()
    for file in store.iterdir():
        (folder / file.name).symlink_to(file)


def broken_links(folder: Path) -> None:
    for file in sorted(folder.iterdir())[10:]:
        file.unlink()
        file.symlink_to("/nowhere/x")


def loop(folder: Path) -> None:
    (folder / "again").symlink_to(folder)


def nested(folder: Path) -> None:
    deep = folder / "study" / "series"
    deep.mkdir(parents=True)
    for file in list(folder.glob("IM*")):
        file.rename(deep / file.name)


def not_utf8(folder: Path) -> None:
    compress(RLELossless)(folder)
    for index, file in enumerate(sorted(folder.iterdir())):
        os.rename(file, os.fsencode(folder) + b"/\xe9%d.dcm" % index)


def missing(folder: Path) -> None:
    sorted(folder.iterdir())[6].unlink()


def copied(folder: Path) -> None:
    shutil.copy(sorted(folder.iterdir())[6], folder / "copy of a slice.dcm")


def doubled(folder: Path) -> None:
    copied(folder)
    dataset = pydicom.dcmread(folder / "copy of a slice.dcm")
    dataset.SOPInstanceUID = generate_uid()
    dataset.save_as(folder / "copy of a slice.dcm")


def tilted(folder: Path) -> None:
    """12 degrees: slices shifted along the columns, and the phantom cut along them."""
    shear, hu = np.tan(np.deg2rad(12)), healthy_hu(np.tan(np.deg2rad(12)))
    for index, file in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = (hu[:, :, index].T.astype(int) + 1024).astype("<u2").tobytes()
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, round(y - shear * 5 * index, 4), z]
        dataset.save_as(file)


def rounded(dataset: Dataset) -> None:
    dataset.ImagePositionPatient = [round(float(v) + 0.04, 1) for v in dataset.ImagePositionPatient]


def jitter(folder: Path) -> None:
    rng = np.random.default_rng(0)
    edit(
        lambda d: setattr(d, "ImageOrientationPatient", list(np.round([1, 0, 0, 0, 1, 0] + rng.normal(0, 2e-5, 6), 6)))
    )(folder)
