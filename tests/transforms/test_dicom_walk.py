"""`usual_dataset` reads what pydicom reads, or leaves the file to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from monai_pipelines.phantoms import write_dicom_series
from monai_pipelines.transforms.ct.series import TAGS
from monai_pipelines.transforms.dicom import quiet_pydicom
from monai_pipelines.transforms.dicom_walk import HEADER_BYTES, usual_dataset

DEFER = 16384
FILES = sorted(file for file in Path(DATA_ROOT, "test_files").rglob("*") if file.is_file())


def walked(file: Path, names: tuple[str, ...] = TAGS) -> FileDataset | None:
    return usual_dataset(file, file.read_bytes()[:HEADER_BYTES], names, DEFER)


def content(dataset: Dataset) -> dict[int, Any]:
    """Elements as they are stored; the character set, which pydicom decodes at once, as text."""
    return {tag: str(element.value) if tag == 0x00080005 else element for tag, element in dataset.items()}


def assert_as_pydicom(file: Path, got: FileDataset) -> None:
    wanted = pydicom.dcmread(file, defer_size=DEFER, force=True, specific_tags=list(TAGS))
    mine, theirs = content(got), content(wanted)
    mine.pop(0x00080005, None), theirs.pop(0x00080005, None)
    assert mine == theirs
    assert got.file_meta.TransferSyntaxUID == wanted.file_meta.TransferSyntaxUID
    names = [one.file_meta.get("MediaStorageSOPClassUID") or "" for one in (got, wanted)]
    assert names[0] == names[1]
    assert got.original_encoding == wanted.original_encoding
    assert got.get("PixelData") == wanted.get("PixelData")  # left in the file, where it is long


def test_pydicoms_own_files() -> None:
    usual = 0
    with quiet_pydicom():
        for file in FILES:
            got = walked(file)
            if got is not None:
                usual += 1
                assert_as_pydicom(file, got)
    assert usual > len(FILES) / 4


@pytest.fixture
def written(tmp_path: Path) -> Path:
    hu = np.random.default_rng(0).integers(-1000, 1000, (128, 96, 1)).astype(np.int16)
    write_dicom_series(tmp_path, hu, np.eye(4))
    return next(tmp_path.iterdir())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_are_passed_over(written: Path, syntax: str, undefined: bool) -> None:
    dataset = pydicom.dcmread(written)
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "1"
    outer.ReferencedSOPInstanceUID = "1.2.3"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, inner])
    dataset.ReferencedImageSequence = Sequence([outer, Dataset(), outer])
    for one in (dataset, outer):
        for element in one:
            if element.VR == "SQ":
                element.is_undefined_length = undefined
                for item in element.value:
                    item.is_undefined_length_sequence_item = undefined
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(written, enforce_file_format=True)
    got = walked(written)
    assert got is not None
    assert_as_pydicom(written, got)


def test_a_header_longer_than_the_first_bytes(written: Path) -> None:
    dataset = pydicom.dcmread(written)
    dataset.add_new(0x00091010, "UN", bytes(3 * HEADER_BYTES))
    dataset.save_as(written, enforce_file_format=True)
    got = walked(written)
    assert got is not None
    assert_as_pydicom(written, got)


def test_left_to_pydicom(written: Path, tmp_path: Path) -> None:
    """Whatever is unusual or broken; and a file cut anywhere."""
    content = written.read_bytes()
    assert walked(written) is not None
    damaged = tmp_path / "damaged.dcm"
    for end in {*range(0, 1200, 7), *range(1200, len(content), 997), len(content) - 1}:
        damaged.write_bytes(content[:end])
        got = walked(damaged)
        assert got is None or "PixelData" not in got, end  # cut between two elements, which nobody can see
    damaged.write_bytes(content + b"\0\0")
    assert walked(damaged) is None
    damaged.write_bytes(content[128:])
    assert walked(damaged) is None
    assert walked(written, ("Rows", "ReferencedImageSequence")) is not None  # it has none
    dataset = pydicom.dcmread(written)
    dataset.ReferencedImageSequence = Sequence([Dataset()])
    dataset.save_as(damaged, enforce_file_format=True)
    assert walked(damaged, ("Rows", "ReferencedImageSequence")) is None
    dataset.compress(RLELossless)
    dataset.save_as(damaged, enforce_file_format=True)
    assert walked(damaged) is None
    damaged.write_bytes(content.replace(ExplicitVRLittleEndian.encode(), ExplicitVRBigEndian.encode(), 1))
    assert walked(damaged) is None
