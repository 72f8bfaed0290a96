"""The two ways to a slide's pixels: OpenSlide, and tifffile for the TIFFs that OpenSlide refuses."""

from __future__ import annotations

import os
import struct
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import gcd
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from openslide import OpenSlide, OpenSlideError, OpenSlideUnsupportedFormatError
from PIL import Image

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import Staged
from monai_pipelines.slides.geometry import whole_downsamples
from monai_pipelines.slides.planes import color_pages
from monai_pipelines.slides.segments import (
    INTERLEAVED,
    RGB,
    JpegSegments,
    Segments,
    check_levels,
    check_side,
    is_plain_jpeg,
)

PLAIN_TIFF = ("aperio", "generic-tiff")  # vendors with a page for each level, of tiles that do not overlap
GRAY = WHITE_IS_ZERO, BLACK_IS_ZERO = (0, 1)  # TIFF photometric interpretation
LOSSLESS = (1, 5, 8, 32773, 32946)  # TIFF compression: none, LZW, deflate, PackBits, deflate
PREMULTIPLIED, STRAIGHT = 1, 2  # TIFF extra samples: two kinds of alpha
RAW_ROWS = 64  # read at once
ICC_PROFILE = 34675  # TIFF tag
RESOLUTION_UNITS = {2: "inch", 3: "centimeter"}


class Reader(ABC):
    """An open slide.

    Attributes:
        level_sizes: (width, height) of each level.
        level_downsamples: of each level.
        properties: metadata under OpenSlide's names.
        color_profile: ICC profile, or None.
        is_part: the file has levels that this reader misses.
        staged: of a slide in a store, its copy on this machine.
    """

    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    properties: Mapping[str, str]
    is_part = False
    staged: Staged | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._segments: list[Segments | None] = []

    @property
    @abstractmethod
    def color_profile(self) -> bytes | None: ...

    def read(self, out: NDArray[np.uint8], level: int, x: int, y: int, factor: int = 1) -> None:
        """Fill `out` (h, w, 3) with a region, on white, each pixel the mean of `factor` x `factor` pixels.

        JPEG tiles are shrunk by 2, 4 or 8 while they are decoded (in the frequency domain) if the region lies within
        the level and on whole pixels of its shrunk tiles: on average about half a gray level from the mean.

        Args:
            out: contiguous.
            level: that is read.
            x, y: start of the region, in pixels of the level.
            factor: pixels of the level along a pixel of `out`.

        Raises:
            ScanError: the region cannot be read.
        """
        segments = self._segments[level]
        height, width = out.shape[0] * factor, out.shape[1] * factor
        step = gcd(factor, 8)
        if segments is None or not segments.can_shrink(x, y, width, height, step):
            step = 1
        if step == factor:
            self._read(out, level, x, y, step)
            return
        region = np.empty((height // step, width // step, 3), dtype=np.uint8)
        self._read(region, level, x, y, step)
        out[:] = np.asarray(Image.fromarray(region).reduce(factor // step))

    def _read(self, out: NDArray[np.uint8], level: int, x: int, y: int, step: int) -> None:
        segments = self._segments[level]
        if segments is not None:
            segments.read(out, x, y, step)


class OpenSlideReader(Reader):
    """Slides that OpenSlide opens; JPEG tiles of plain TIFFs are decoded without it.

    OpenSlide blurs regions that start between two pixels of a level, as nearly all do if its downsample is not whole
    (2.0005). Lossless plain TIFFs are then read by tifffile; otherwise (JPEG 2000) the region starts at OpenSlide's
    nearest position, up to a quarter of a pixel off.

    Raises:
        ScanError: the file is truncated, or its tiles are huge.
        OpenSlideError: OpenSlide refuses it, or would read one of several planes.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._slide = OpenSlide(path)
        self.level_sizes = self._slide.level_dimensions
        check_levels(path, self.level_sizes)
        self.level_downsamples = whole_downsamples(self.level_sizes, self._slide.level_downsamples)
        self.properties = dict(self._slide.properties)
        for level in range(len(self.level_sizes)):  # OpenSlide ends the process where it gets no memory for a tile
            name = f"openslide.level[{level}].tile"
            width, height = (int(self.properties.get(f"{name}-{side}", 0)) for side in ("width", "height"))
            check_side(path, f"level {level}", width, height)
        self._segments = [None] * len(self.level_sizes)
        self._is_generic = self.properties["openslide.vendor"] == "generic-tiff"
        if self.properties["openslide.vendor"] in PLAIN_TIFF:
            self._find_segments()

    @property
    def color_profile(self) -> bytes | None:
        profile = self._slide.color_profile
        return profile.tobytes() if profile else None

    def _find_segments(self) -> None:
        try:
            with tifffile.TiffFile(self.path) as file:
                tiled = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        except tifffile.TiffFileError:
            return
        for level, size in enumerate(self.level_sizes):
            pages = [page for page in tiled if (page.imagewidth, page.imagelength) == size]
            if any(page.photometric in GRAY for page in pages) or (len(pages) > 1 and not level and self._is_generic):
                raise OpenSlideUnsupportedFormatError("more than one page of RGB")  # OpenSlide takes the first alone
            if len(pages) != 1:
                continue
            page = pages[0]
            self.is_part = self.is_part or bool(page.subifds)
            if is_plain_jpeg(page):
                segments = JpegSegments(self.path, self._descriptor, page, f"level {level}")
                self._segments[level] = segments if segments.is_supported() else None
            elif self._slide.level_downsamples[level] % 1 and page.compression in LOSSLESS and _is_plain_rgb(page):
                with suppress(ScanError):
                    self._segments[level] = _segments(self.path, self._descriptor, [page], f"level {level}")

    def _read(self, out: NDArray[np.uint8], level: int, x: int, y: int, step: int) -> None:
        if self._segments[level] is not None:
            super()._read(out, level, x, y, step)
            return
        height, width = out.shape[:2]
        exact = self._slide.level_downsamples[level]
        try:
            region = self._slide.read_region((round(x * exact), round(y * exact)), level, (width, height))
        except OpenSlideError as error:
            raise ScanError(
                self.path,
                f"OpenSlide cannot read level {level} at its pixel ({x}, {y}): {failure(error)}; copy it again",
            ) from None
        if region.getchannel("A").getextrema() != (255, 255):
            region = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region)
        out[:] = np.asarray(region)[..., :3]


class TiffReader(Reader):
    """A TIFF that OpenSlide refuses: strips, a pyramid in SubIFDs (OME-TIFF), no tiles.

    Raises:
        ScanError: it has no image of 8-bit RGB, it is truncated, or its compression needs another package.
        tifffile.TiffFileError: it is no TIFF.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with tifffile.TiffFile(path) as file:
            if _next_page(file):
                raise ScanError(path, "truncated: it ends before its list of images does; copy it again")
            levels = color_pages(path, file)
            first = file.series[0].keyframe
            self._profile: bytes | None = first.tags.valueof(ICC_PROFILE)
            self.properties = _properties(first)
        self.level_sizes = tuple((page.imagewidth, page.imagelength) for page, *_ in levels)
        check_levels(path, self.level_sizes)
        width, height = self.level_sizes[0]
        by_size = [(width / w + height / h) / 2 for w, h in self.level_sizes]
        self.level_downsamples = whole_downsamples(self.level_sizes, by_size)
        self._segments = [
            _segments(path, self._descriptor, pages, f"level {level}") for level, pages in enumerate(levels)
        ]

    @property
    def color_profile(self) -> bytes | None:
        return self._profile


class TiffSegments(Segments):
    """A level in any compression that tifffile decodes."""

    def __init__(self, path: str, descriptor: int, page: Any, name: str) -> None:
        self._is_raw = page.is_final and not page.is_tiled and min(page.databytecounts) > 0
        super().__init__(path, descriptor, page, name, RAW_ROWS if self._is_raw else None)
        self._decode_segment, self._samples = page.decode, page.samplesperpixel
        kinds = [kind in (PREMULTIPLIED, STRAIGHT) for kind in page.extrasamples]
        self._alpha = 3 + kinds.index(True) if any(kinds) else None
        self._is_premultiplied = PREMULTIPLIED in page.extrasamples

    def _decode_into(self, out: NDArray[np.uint8], data: bytes, index: int, factor: int) -> None:
        if self._is_raw:
            decoded = np.frombuffer(data, dtype=np.uint8).reshape(-1, self.width, self._samples)
        else:
            decoded = self._decode_segment(data, index)[0][0]
        decoded = decoded[: len(out), : out.shape[1]]
        rgb = decoded[..., :3]
        if self._alpha is not None:
            alpha = decoded[..., self._alpha, None].astype(np.uint16)
            rgb = rgb if self._is_premultiplied else (rgb * alpha + 127) // 255
            rgb = np.minimum(rgb + (255 - alpha), 255)
        out[:] = 255
        out[: len(rgb), : rgb.shape[1]] = rgb


class PlaneSegments(TiffSegments):
    """A level of three pages of gray: red, green and blue."""

    def __init__(self, path: str, descriptor: int, pages: Sequence[Any], name: str) -> None:
        super().__init__(path, descriptor, pages[0], name)
        self._planes = [TiffSegments(path, descriptor, page, name) for page in pages]

    def read(self, out: NDArray[np.uint8], x: int, y: int, factor: int = 1) -> None:
        gray = np.empty_like(out)
        for channel, plane in enumerate(self._planes):
            plane.read(gray, x, y, factor)
            out[..., channel] = gray[..., 0]


def _is_plain_rgb(page: Any) -> bool:
    plain = (RGB, np.uint8, INTERLEAVED)
    return (page.photometric, page.dtype, page.planarconfig) == plain and page.samplesperpixel >= 3


def _is_plain_gray(page: Any) -> bool:
    return (page.photometric, page.dtype, page.samplesperpixel) == (BLACK_IS_ZERO, np.uint8, 1)


def _segments(path: str, descriptor: int, pages: Sequence[Any], name: str) -> Segments:
    """A level of one page of RGB, or of three of gray."""
    page = pages[0]
    if len(pages) == 1 and is_plain_jpeg(page):
        return JpegSegments(path, descriptor, page, name)
    if not all(_is_plain_gray(page) if len(pages) == 3 else _is_plain_rgb(page) for page in pages):
        layout = "" if page.planarconfig == INTERLEAVED else ", in separate planes"
        kind = f"{page.samplesperpixel} channel(s) of {page.dtype}, photometric {_name(page.photometric)}{layout}"
        raise ScanError(path, f"wanted interleaved RGB of 8 bits, got {kind}; convert it")
    try:
        page.decode(None, 0)
    except (ValueError, NotImplementedError) as error:
        raise ScanError(
            path, f"tifffile cannot decode {_name(page.compression)} ({failure(error)}); `pip install imagecodecs`"
        ) from None
    return (
        PlaneSegments(path, descriptor, pages, name) if len(pages) == 3 else TiffSegments(path, descriptor, page, name)
    )


def _name(number: Any) -> str:
    """Name of a tag's value, or the number if tifffile knows none; a damaged tag may hold text."""
    return str(getattr(number, "name", number if isinstance(number, int) else "unknown"))


def _next_page(file: tifffile.TiffFile) -> int:
    """Offset of the page after the last that tifffile found; 0 in a complete file."""
    handle, tiff = file.filehandle, file.tiff
    if len(file.pages):
        handle.seek(file.pages[-1].offset)
        (num_tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
        handle.seek(num_tags * tiff.tagsize, os.SEEK_CUR)
    else:
        handle.seek(8 if tiff.is_bigtiff else 4)
    return struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))[0]


def _properties(page: Any) -> dict[str, str]:
    """Resolution and description under OpenSlide's names."""
    properties = {"openslide.vendor": "tiff"}
    if page.description:
        properties["tiff.ImageDescription"] = page.description
    for axis in "XY":
        match page.tags.valueof(f"{axis}Resolution"):
            case None:
                continue
            case (int() as number, int() as divisor) if divisor:
                properties[f"tiff.{axis}Resolution"] = str(number / divisor)
            case (float() as number,):
                properties[f"tiff.{axis}Resolution"] = str(number)
            case other:
                properties[f"tiff.{axis}Resolution"] = str(other)
    code = page.tags.valueof("ResolutionUnit", 2)
    unit = RESOLUTION_UNITS.get(code) if isinstance(code, int) else None
    return properties | ({"tiff.ResolutionUnit": unit} if unit else {})


READERS: dict[str, type[Reader]] = {"openslide": OpenSlideReader, "tifffile": TiffReader}
