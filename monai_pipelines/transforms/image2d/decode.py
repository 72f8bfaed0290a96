"""Pixels of image files - PNG, JPEG, TIFF, BMP, DICOM - as a viewer would show them, or an error that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import Remote, local
from monai_pipelines.transforms.dicom import Header, decoded, parse_header, quiet_pydicom, stored_values

FileType = Literal["png", "jpeg", "tiff", "dicom", "bmp", "other"]
MAX_PIXELS = 100_000_000
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601, as in Pillow and torchvision

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
_FILE_TYPES: dict[str | None, FileType] = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "TIFF": "tiff", "BMP": "bmp"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # TIFF tags
TAGS = (
    "BitsAllocated", "BitsStored", "BluePaletteColorLookupTableData", "BluePaletteColorLookupTableDescriptor",
    "Columns", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "GreenPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor", "HighBit", "ImagerPixelSpacing", "Manufacturer",
    "ManufacturerModelName", "ModalityLUTSequence", "NumberOfFrames",
    "PhotometricInterpretation", "PixelData", "PixelPaddingRangeLimit", "PixelPaddingValue", "PixelRepresentation",
    "PixelSpacing", "PlanarConfiguration", "PresentationLUTShape",
    "RedPaletteColorLookupTableData", "RedPaletteColorLookupTableDescriptor",
    "RescaleIntercept", "RescaleSlope", "Rows", "SamplesPerPixel", "VOILUTFunction",
    "VOILUTSequence", "WindowCenter", "WindowWidth",
)  # fmt: skip  # no patient data


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """Upright pixels of an image file, and facts about the file."""

    pixels: NDArray[Any]
    """(H, W, 1 or 3), uint8, or float32 in [0, 1] for more than 8 bits and grayscale DICOM; may be read-only."""
    file_type: FileType
    spacing_mm: tuple[float, float] | None = None
    """Distance between rows and between columns, mm; only from DICOM."""
    scanner: str = ""
    """Manufacturer and model; only from DICOM."""


def decode_image(path: str | PathLike[str] | Remote, channels: Literal[1, 3] | None = None) -> DecodedImage:
    """Read an image file of any type into pixels as a viewer shows them.

    The type is detected from the content, not the name; only DICOM without preamble needs the suffix ``.dcm``. EXIF
    orientation is applied; palettes, CMYK (also Adobe's inverted one) and 1 bit become RGB or gray; transparency is
    blended with white. Gray of more than 8 bits and floating-point TIFF in [0, 1] keep their depth; 16-bit color PNG
    and TIFF become 8 bits. A 12-bit image in a 16-bit PNG comes out dark: nothing in the file says so.

    DICOM: modality LUT or rescale, then the first VOI LUT or window; with neither, 8 bits keep their full range and
    more bits are stretched from minimum to maximum. MONOCHROME1 is inverted, padding is black, palette and YBR become
    RGB.

    Args:
        path: one image, or its URL: PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, JPEG 2000 or DICOM.
        channels: 3 repeats gray, 1 takes the luma of colors (ITU-R BT.601); None keeps the file's.

    Raises:
        ScanError: no such file, no image, truncated (never a half-gray picture), several pages or frames, more than
            100 million pixels, or values that are no brightness.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> image = decode_image(get_testdata_file("examples_palette.dcm"))
        >>> image.file_type, image.pixels.shape
        ('dicom', (350, 800, 3))

    Reference: DICOM PS3.3 C.7.6.3 (image pixel), C.11.1 (modality LUT), C.11.2 (VOI LUT).
    """
    with local(path) as file, quiet_pydicom():  # and Pillow: odd but readable, such as damaged EXIF
        image = _decode(file)
    return replace(image, pixels=with_channels(image.pixels, channels))


def _decode(path: Path) -> DecodedImage:
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "paths in a table are relative to the table" if isinstance(error, FileNotFoundError) else "name a file"
        raise ScanError(path, f"wanted an image file, got {error.strerror!r}; {hint}") from None
    if not any(data):
        raise ScanError(path, f"{len(data)} bytes, all empty; copy it again")
    is_dicom = data[128:132] == b"DICM" or path.suffix.lower() == ".dcm"
    try:
        return _decode_dicom(path, data) if is_dicom else _decode_pillow(path, data)
    except ScanError:
        raise
    except Image.DecompressionBombError:
        raise ScanError(
            path, f"wanted at most {MAX_PIXELS:,} pixels, got more than twice as many; cut it into tiles first"
        ) from None
    except UnidentifiedImageError:
        raise ScanError(
            path, "not PNG, JPEG, TIFF, BMP or DICOM, start missing, or a layout Pillow lacks; convert it to PNG"
        ) from None
    except Exception as error:  # decoders raise whatever the damage leads to
        raise ScanError(path, f"unreadable, truncated? ({failure(error)}); copy or export it again") from None


def with_channels(pixels: NDArray[Any], channels: int | None) -> NDArray[Any]:
    """Pixels (H, W, 1 or 3) with so many channels: gray repeated, or the luma of colors; None keeps them."""
    if channels is None or channels == pixels.shape[2]:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return pixels @ np.array(LUMA, np.float32)[:, None]


def _check_size(path: str | PathLike[str], height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ScanError(
            path, f"wanted at most {MAX_PIXELS:,} pixels, got {height} x {width} (a slide?); cut it into tiles first"
        )


def _check_end(path: str | PathLike[str], data: bytes) -> None:
    """JPEG data end with a marker after the last start of a scan; decoders fill missing data with gray."""
    if data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda"):
        raise ScanError(path, "truncated JPEG: its end is missing; copy it again")


# ---- Pillow


def _decode_pillow(path: str | PathLike[str], data: bytes) -> DecodedImage:
    image: Image.Image = Image.open(BytesIO(data), formats=_FORMATS)
    file_type = _FILE_TYPES.get(image.format, "other")
    _check_size(path, image.height, image.width)
    if image.format in ("JPEG", "MPO", "JPEG2000"):
        _check_end(path, data)
    elif (pages := getattr(image, "n_frames", 1)) > 1:
        raise ScanError(path, f"wanted one image, got {pages} pages; save the page you want as a separate file")
    bare_cmyk = file_type == "jpeg" and image.mode == "CMYK" and "adobe" not in image.info
    tags = getattr(image, "tag_v2", {})
    deep = image.mode[0] in "IF"
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if deep:
        return DecodedImage(_deep(path, image, tags)[..., None], file_type)
    if bare_cmyk:  # Pillow takes every CMYK JPEG for Adobe's, which store 255 - ink
        image = Image.fromarray(255 - np.asarray(image), "CMYK")
    gray = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert("L" if gray else "RGB"))
    return DecodedImage(pixels[..., None] if gray else pixels, file_type)


def _deep(path: str | PathLike[str], image: Image.Image, tags: Any) -> NDArray[np.float32]:
    """Gray values of more than 8 bits, in [0, 1]."""
    values = np.asarray(image)
    top = 1.0 if image.mode == "F" else 2.0 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    if not (values.min() >= 0 and values.max() <= top):  # NaN too
        raise ScanError(
            path, f"wanted values in 0..{top:g}, got {values.min():g} to {values.max():g}; rescale them, or save DICOM"
        )
    unit = (values / np.float32(top)).astype(np.float32)
    return 1 - unit if tags.get(_PHOTOMETRIC) == 0 else unit


# ---- DICOM


def _decode_dicom(path: str | PathLike[str], data: bytes) -> DecodedImage:
    header = parse_header(Path(path), BytesIO(data), TAGS)
    if header.element("PixelData") is None or header.element("Rows") is None:
        raise ScanError(path, "no image: not DICOM, or a DICOM report or directory; name the image file")
    if (frames := header.integer("NumberOfFrames", 1, 10**6, default=1)) > 1:
        raise ScanError(path, f"wanted one image, got {frames} frames; save the frame you want as a separate file")
    _check_size(path, header.integer("Rows", 1, 2**16), header.integer("Columns", 1, 2**16))
    return DecodedImage(_dicom_pixels(header), "dicom", _spacing_mm(header), header.scanner())


def _dicom_pixels(header: Header) -> NDArray[Any]:
    if header.integer("SamplesPerPixel", 1, 4, default=1) > 1:
        return _shades(decoded(header, 0)[..., :3], header.integer("BitsStored", 1, 32, default=8))
    stored = stored_values(header)
    if header.text("PhotometricInterpretation") == "PALETTE COLOR":
        return _shades(*_palette(header, stored))
    return _displayed(header, stored)[..., None]


def _shades(colors: NDArray[Any], bits: int) -> NDArray[Any]:
    return (colors / (2**bits - 1)).astype(np.float32) if bits > 8 else colors.astype(np.uint8)


def _spacing_mm(header: Header) -> tuple[float, float] | None:
    """Of the rows and columns; None where it is missing or implausible, for it is not needed to show the image."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        with suppress(ScanError):
            rows, columns = header.numbers(name, 2, 1e-4, 100)
            return float(rows), float(columns)
    return None


def _displayed(header: Header, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Gray values in [0, 1] as a viewer shows them: modality LUT, VOI LUT, inversion, padding."""
    padding = np.zeros(stored.shape, bool)
    if (pad := header.stored_number("PixelPaddingValue")) is not None:
        limit = header.stored_number("PixelPaddingRangeLimit")
        low, high = sorted((pad, pad if limit is None else limit))
        padding = (stored >= low) & (stored <= high)
    values = _modality(header, stored)
    if luts := header.dataset.get("VOILUTSequence"):
        shown = _look_up(header, luts[0].LUTDescriptor, luts[0].LUTData, np.rint(values))
        shown = shown / (2 ** luts[0].LUTDescriptor[2] - 1)
    elif header.text("WindowWidth") and header.text("WindowCenter"):
        shown = _windowed(header, values)
    else:
        shown = _stretched(header, values, padding)
    if _inverted(header):
        shown = 1 - shown
    shown[padding] = 0
    return shown.astype(np.float32)


def _inverted(header: Header) -> bool:
    """Whether low values are shown bright; the standard writes it twice, DICOM PS3.3 C.7.6.3.1.2 and C.11.6."""
    kind, shape = header.text("PhotometricInterpretation"), header.text("PresentationLUTShape")
    if (kind, shape) in (("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")):
        raise header.error(
            f"{kind} and PresentationLUTShape {shape} contradict each other", "look at it, and correct one of the two"
        )
    return kind == "MONOCHROME1"


def _modality(header: Header, stored: NDArray[Any]) -> NDArray[Any]:
    if luts := header.dataset.get("ModalityLUTSequence"):
        return _look_up(header, luts[0].LUTDescriptor, luts[0].LUTData, stored)
    slope = header.number("RescaleSlope", -1e9, 1e9, default=1)
    if not slope:
        raise header.error("RescaleSlope: wanted another number than 0")
    return stored * slope + header.number("RescaleIntercept", -1e9, 1e9, default=0)


def _palette(header: Header, stored: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Colors (H, W, 3) and their bits."""
    names = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
    tables = [(header.dataset[f"{n}Descriptor"].value, header.dataset[f"{n}Data"].value) for n in names]
    return np.stack([_look_up(header, *table, stored) for table in tables], axis=-1), int(tables[0][0][2])


def _look_up(header: Header, descriptor: Sequence[int], entries: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Entries of a LUT at the values; pydicom wraps the index of LUTs with more than 256 8-bit entries."""
    count, first = descriptor[0] or 2**16, descriptor[1]
    if isinstance(entries, bytes):
        order = "<" if header.dataset.original_encoding[1] else ">"
        entries = np.frombuffer(entries, np.uint8 if len(entries) < 2 * count else f"{order}u2", count)
    return np.asarray(entries)[np.clip(values.astype(np.int64) - first, 0, count - 1)]


def _windowed(header: Header, values: NDArray[Any]) -> NDArray[Any]:
    center, width = header.first("WindowCenter", -1e9, 1e9), header.first("WindowWidth", 0, 1e9)
    kind = header.text("VOILUTFunction").upper() or "LINEAR"
    if width < (kind == "LINEAR") or width <= 0:
        raise header.error(f"WindowWidth: wanted 1 or more, or more than 0 if exact or sigmoid, got {width:g}")
    if kind == "SIGMOID":
        return 0.5 + 0.5 * np.tanh(2 * (values - center) / width)
    if kind == "LINEAR":
        center, width = center - 0.5, width - 1
    return np.clip((values - center) / width + 0.5, 0, 1) if width else (values > center).astype(np.float32)


def _stretched(header: Header, values: NDArray[Any], padding: NDArray[np.bool_]) -> NDArray[Any]:
    """Without a window: the full range of 8 bits, else minimum to maximum."""
    bits = header.integer("BitsStored", 1, 32)
    if bits <= 8:
        lowest = -(2 ** (bits - 1)) if header.integer("PixelRepresentation", 0, 1, default=0) else 0
        ends = _modality(header, np.array([lowest, lowest + 2**bits - 1]))
    else:
        ends = values[~padding]
    low, high = (float(ends.min()), float(ends.max())) if ends.size else (0.0, 0.0)
    return np.clip((values - low) / ((high - low) or 1), 0, 1)
