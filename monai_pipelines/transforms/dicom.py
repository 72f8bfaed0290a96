"""Headers and pixels of DICOM files, checked: a missing, empty, malformed or implausible value is an error."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import pixel_array
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import quiet_libraries
from monai_pipelines.remarks import printed_remarks
from monai_pipelines.transforms.dicom_walk import HEADER_BYTES, usual_dataset

GZIP_MAGIC = b"\x1f\x8b"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LIKE_NUMBER = r"[+-]?(\d{0,16}[.,]?\d{0,16}(e[+-]?\d{1,4})?|nan|inf) *"  # neither a date nor a UID
_LIKE_NUMBERS = re.compile(rf"{_LIKE_NUMBER}(\\{_LIKE_NUMBER})*", re.ASCII | re.IGNORECASE)
_BINARY = {"US": "u2", "SS": "i2", "UL": "u4", "SL": "i4", "FL": "f4", "FD": "f8", "US or SS": "u2", "OW": "u2"}
_DEFER_BYTES = 16384  # pixels are left in the file until they are needed
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
_PIXEL_TAGS = (
    "BitsAllocated", "BitsStored", "Columns", "HighBit", "NumberOfFrames", "PhotometricInterpretation", "PixelData",
    "PixelRepresentation", "PlanarConfiguration", "Rows", "SamplesPerPixel",
)  # fmt: skip
_CORRUPT = re.compile("Corrupt JPEG data: (premature end|bad Huffman code)")  # a warning of GDCM's decoder
EXPORT_AGAIN = "export the series again"


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """As `quiet_libraries`; values that the standard does not allow are read."""
    mode = config.settings.reading_validation_mode
    with quiet_libraries():
        config.settings.reading_validation_mode = config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode = mode


class Header:
    """Header of a DICOM file or of one frame of it, whose values are checked when they are read.

    Args:
        file: named in errors.
        dataset: the file's.
        groups: functional groups of a frame; they come first.
    """

    def __init__(self, file: Path, dataset: Dataset, groups: Sequence[Dataset] = ()) -> None:
        self.file, self.dataset = file, dataset
        self._elements: dict[BaseTag, Any] = {}
        for part in (dataset, *reversed(groups)):
            self._elements.update(part.items())

    def element(self, name: str) -> Any:
        """A data element, in the file's encoding where it has not been decoded, or None."""
        return self._elements.get(_tag(name))

    def text(self, name: str) -> str:
        """A value as text, several joined by a backslash; missing is empty."""
        element = self.element(name)
        value = None if element is None else element.value
        if isinstance(value, bytes):
            return value.decode("ascii", "replace").strip(" \0")
        if value is None or isinstance(value, str):
            return value or ""
        return "\\".join(map(str, value)) if isinstance(value, Sequence) else str(value)

    def scanner(self) -> str:
        """Manufacturer and model; empty unless they are plain names."""
        names = dict.fromkeys(self.text(name).strip() for name in ("Manufacturer", "ManufacturerModelName"))
        joined = " ".join(filter(None, names))
        return joined if re.fullmatch(r"[\w .,+/()-]{1,64}", joined) else ""

    def numbers(self, name: str, count: int, low: float, high: float) -> NDArray[np.float64]:
        """``count`` numbers, each in [low, high].

        Raises:
            ScanError: missing, empty, another number of values, not numbers, not finite, or out of range.
        """
        return np.array(self._checked(name, count, low, high))

    def _checked(self, name: str, count: int, low: float, high: float) -> tuple[float, ...]:
        found = self._numbers(name)
        values = tuple(value for value in found or () if value is not None and low <= value <= high)
        if len(values) != count or values != found:
            wanted = f"{count} numbers" if count > 1 else "a number"
            raise self.error(f"{name}: wanted {wanted} from {low:g} to {high:g}, got {self._shown(name)}")
        return values

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """One number in [low, high]; ``default`` where it is missing or empty, unless None.

        Raises:
            ScanError: as `numbers`.
        """
        if default is not None and not self._numbers(name):
            return float(default)
        return float(self._checked(name, 1, low, high)[0])

    def first(self, name: str, low: float, high: float) -> float:
        """As `number`, the first of several."""
        found = self._numbers(name) or (None,)
        if found[0] is None or not low <= found[0] <= high:
            raise self.error(f"{name}: wanted numbers from {low:g} to {high:g}, got {self._shown(name)}")
        return found[0]

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """As `number`, for a whole number."""
        value = self.number(name, low, high, default)
        if not value.is_integer():
            raise self.error(f"{name}: wanted a whole number, got {value:g}")
        return int(value)

    def stored_number(self, name: str) -> int | None:
        """A value in the form of the pixels, such as PixelPaddingValue; None if missing or not a whole number.

        Its VR is US or SS whatever PixelRepresentation says: many files have the wrong one.
        """
        found = self._numbers(name)
        if not found or found[0] is None or not float(found[0]).is_integer():
            return None
        bits, signed = self.integer("BitsStored", 1, 32), self.integer("PixelRepresentation", 0, 1, default=0)
        value = int(found[0]) % 2**bits
        return value - 2**bits if signed and value >= 2 ** (bits - 1) else value

    def error(self, reason: str, way_out: str = EXPORT_AGAIN) -> ScanError:
        """An error about this file."""
        return ScanError(self.file, f"{reason}; {way_out}")

    def _numbers(self, name: str) -> tuple[float | None, ...] | None:
        """Values, None for each that is not a number; () if empty, None if missing."""
        element = self.element(name)
        if element is None:
            return None
        value = b"" if element.value is None else element.value
        if isinstance(value, bytes):
            kind = _BINARY.get(element.VR or dictionary_VR(_tag(name)))
            if kind:
                return _binary_numbers(value, ("<" if element.is_little_endian else ">") + kind)
            value = value.decode("ascii", "replace")
        if isinstance(value, str):
            return _numbers_in(value)
        return tuple(_number(str(part)) for part in (value if isinstance(value, Sequence) else [value]))

    def _shown(self, name: str) -> str:
        """The value for a message; text is left out, for it may be about a patient."""
        found = self._numbers(name)
        if found is None:
            return "none"
        if not found:
            return "an empty value"
        if None not in found:
            return ", ".join(f"{value:g}" for value in found[:6])
        text = self.text(name)
        return repr(text[:40]) if _LIKE_NUMBERS.fullmatch(text) else "text"


def read_header(file: Path, tags: Sequence[str]) -> Header:
    """Read some values of a DICOM file, gzipped or not, with or without preamble and file meta.

    Raises:
        InvalidDicomError: not DICOM.
        ScanError: damaged.
    """
    try:
        with file.open("rb", buffering=0) as opened:
            start = opened.read(HEADER_BYTES)
        usual = usual_dataset(file, start, tags, _DEFER_BYTES)
        if usual is not None:
            return Header(file, usual)
        source: Any = file
        if start[:2] == GZIP_MAGIC:
            source = BytesIO(gzip.decompress(file.read_bytes()))
            start = source.getvalue()
        if start[128:132] != b"DICM" and start[:2] not in _FIRST_GROUPS:
            raise InvalidDicomError
        header = parse_header(file, source, tags, _DEFER_BYTES if source is file else None)
        if source is file and header.dataset.file_meta.TransferSyntaxUID.is_deflated:
            header = parse_header(file, source, tags)  # its pixels cannot be left in the file
        return header
    except InvalidDicomError:
        raise
    except Exception as error:
        raise ScanError(file, f"unreadable DICOM ({type(error).__name__}), truncated?; {EXPORT_AGAIN}") from None


def parse_header(file: Path, source: Any, tags: Sequence[str], defer_bytes: int | None = None) -> Header:
    """Read some values of DICOM data, from a path or a file object, whose encoding is guessed if it is not named."""
    dataset = pydicom.dcmread(source, defer_size=defer_bytes, force=True, specific_tags=list(tags))
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return Header(file, dataset)


def stored_values(
    header: Header, frame: int = 0, num_frames: int = 1, place: NDArray[np.int16] | None = None
) -> NDArray[Any]:
    """Stored values of one frame: only the bits that BitsStored and HighBit name, signed as PixelRepresentation says.

    Args:
        header: of the file or the frame.
        frame: number of the frame.
        num_frames: in the file.
        place: (rows, columns), contiguous: uncompressed pixels of 16 bits are read into it.

    Returns:
        (rows, columns) of integers; they may lie in ``place``.

    Raises:
        ScanError: pixel data shorter or longer than the header says, more than one value per pixel, or a transfer
            syntax that neither pydicom nor GDCM decodes.
    """
    rows, columns = (header.integer(name, 1, 2**15) for name in ("Rows", "Columns"))
    allocated = header.integer("BitsAllocated", 8, 32)
    bits = header.integer("BitsStored", 1, allocated, default=allocated)
    high = header.integer("HighBit", bits - 1, allocated - 1, default=bits - 1)
    signed = header.integer("PixelRepresentation", 0, 1, default=0) == 1
    if header.integer("SamplesPerPixel", 1, 4, default=1) != 1:
        raise header.error("wanted one value per pixel, got a color image", "leave it out")
    if header.element("PixelData") is None:
        raise header.error("no PixelData: truncated, or not an image")
    syntax = header.dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        values = decoded(header, frame)
        if values.shape != (rows, columns):
            raise header.error(f"wanted {rows} x {columns} pixels, got {' x '.join(map(str, values.shape))}")
        return values
    if allocated % 8 or allocated == 24:
        raise header.error(f"BitsAllocated: wanted 8, 16 or 32, got {allocated}")
    order, size = ">" if syntax == ExplicitVRBigEndian else "<", allocated // 8
    raw = _frame_bytes(header, frame, num_frames, rows * columns * size, place if size == 2 else None)
    values = np.frombuffer(raw, f"{order}{'i' if signed else 'u'}{size}").reshape(rows, columns)
    lowest, top = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if bits == allocated or (high == bits - 1 and values.min() >= lowest and values.max() <= top):
        return values
    left = values.view(f"{order}u{size}") << (allocated - 1 - high)
    return left.view(f"{order}{'i' if signed else 'u'}{size}") >> (allocated - bits)


def _frame_bytes(header: Header, frame: int, num_frames: int, size: int, place: NDArray[Any] | None) -> Any:
    """The bytes of an uncompressed frame, in ``place`` if it is given and the file is read."""
    element = header.element("PixelData")
    length = element.length if element.value is None else len(element.value)
    wanted = size * num_frames
    if element.value is None:
        length = min(length, header.file.stat().st_size - element.value_tell)
    if length < wanted:
        raise header.error(f"truncated: wanted {wanted} bytes of pixels, got {length}", "copy it again")
    if length > wanted + 1:
        raise header.error(f"PixelData holds {length} bytes, Rows x Columns are {wanted}: the header does not fit")
    if element.value is not None:
        return element.value[frame * size : (frame + 1) * size]
    raw: Any = bytearray(size) if place is None else place
    with open(header.file, "rb", buffering=0) as opened:
        opened.seek(element.value_tell + frame * size)
        if opened.readinto(raw) != size:
            raise header.error("truncated while it was read", "copy it again")
    return raw


def decoded(header: Header, frame: int) -> NDArray[Any]:
    """A frame by pydicom, or by GDCM where pydicom has no decoder: (rows, columns), or colors (rows, columns, 3), RGB.

    Raises:
        ScanError: truncated, or neither of them decodes it.
    """
    dataset = header.dataset
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        if (
            syntax.is_encapsulated
            and syntax != RLELossless
            and dataset.PixelData.rfind(b"\xff\xd9") <= dataset.PixelData.rfind(b"\xff\xda")
        ):
            raise header.error("truncated: the end of its last frame is missing", "copy it again")
        try:
            return pixel_array(dataset, index=frame)
        except RuntimeError:
            with printed_remarks() as remarks:
                frames = _decoded_by_gdcm(dataset)
        if any(_CORRUPT.search(remark) for remark in remarks):
            raise header.error(f"cannot be decoded ({syntax.name}, corrupt)", "copy it again, or store it uncompressed")
        return frames[frame]
    except (ScanError, ImportError):
        raise
    except Exception as error:
        name = syntax.name if syntax.name != syntax else "an unknown transfer syntax"
        name = name if isinstance(error, RuntimeError) else f"{name}, {type(error).__name__}"
        raise header.error(f"cannot be decoded ({name})", "copy it again, or store it uncompressed") from None


def _decoded_by_gdcm(dataset: Dataset) -> NDArray[Any]:
    """All frames, not rescaled, from a copy: GDCM always rescales, and cannot open every file name."""
    import SimpleITK as sitk

    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    for name in _PIXEL_TAGS:
        if name in dataset:
            bare[name] = dataset[name]
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID = CTImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID = generate_uid()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.dcm"
        bare.save_as(file, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@cache
def _tag(name: str) -> BaseTag:
    return Tag(name)


@lru_cache(4096)  # most are the same in all slices
def _binary_numbers(value: bytes, kind: str) -> tuple[float, ...]:
    whole = len(value) - len(value) % np.dtype(kind).itemsize
    return tuple(np.frombuffer(value[:whole], kind).tolist())


@lru_cache(4096)
def _numbers_in(text: str) -> tuple[float | None, ...]:
    parts = text.strip(" \0").split("\\")
    return () if parts == [""] else tuple(map(_number, parts))


def _number(text: str) -> float | None:
    text = text.strip(" \0")
    if _NUMBER.fullmatch(text):
        return float(text)
    return None
