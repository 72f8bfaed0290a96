"""One level of a TIFF: a grid of tiles or strips, read by their offsets in the file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure

CACHE_BYTES = 32 * 2**20  # of decoded segments of each level, for regions off its grid
MAX_SEGMENT_BYTES = 2**30  # decoded at once
JPEG = 7  # TIFF compression
RGB, YCBCR = 2, 6  # TIFF photometric interpretation
MAX_SHAPE_OFF, SHAPE_OFF_PX = 0.05, 2  # of a level's width or height: share and pixels
INTERLEAVED = 1  # TIFF planar configuration
START = b"\xff\xd8"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # APP14; the last byte is the color transform
_COLOR_TRANSFORM = {RGB: b"\x00", YCBCR: b"\x01"}
_APPLICATION_DATA = range(0xE0, 0xF0)  # APPn: JFIF, Adobe


def check_side(path: str, name: str, width: int, height: int) -> None:
    """Refuse tiles or strips that cannot be decoded as a whole.

    Raises:
        ScanError: one would need more than `MAX_SEGMENT_BYTES`.
    """
    if 3 * width * height > MAX_SEGMENT_BYTES:
        raise ScanError(
            path,
            f"{name} is stored in segments of {width} x {height} pixels, too large to decode one for each region; "
            "convert it to a tiled TIFF",
        )


def check_levels(path: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse levels that are not the same picture, by their sides' ratios.

    Raises:
        ScanError: one has no pixels, is larger than level 0, or has another shape.
    """
    width, height = sizes[0]
    for level, (w, h) in enumerate(sizes):
        off = abs(w * height - h * width)
        if (
            min(w, h) < 1
            or w > width
            or h > height
            or off > MAX_SHAPE_OFF * w * height + SHAPE_OFF_PX * (width + height)
        ):
            raise ScanError(
                path,
                f"level {level} of {w} x {h} pixels is not level 0 of {width} x {height} made smaller; export it again",
            )


class Segments(ABC):
    """Reads regions of one level from its segments; thread-safe.

    Args:
        path: of the slide, for errors.
        descriptor: of the open file.
        page: tifffile's page, of interleaved RGB.
        name: of the level, for errors.
        raw_rows: rows of a segment in an uncompressed image without gaps, instead of its strips.

    Raises:
        ScanError: the file ends before the last segment, segments are missing or huge.
    """

    def __init__(self, path: str, descriptor: int, page: Any, name: str, raw_rows: int | None = None) -> None:
        self.path, self.name, self._descriptor = path, name, descriptor
        self.width, self.height = page.imagewidth, page.imagelength
        self.side_x = page.tilewidth if page.is_tiled else page.imagewidth
        self.side_y = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        self.columns = -(-self.width // self.side_x)
        self.last_is_lower = not page.is_tiled
        self._offsets = np.array(page.dataoffsets, dtype=np.int64)
        self._sizes = np.array(page.databytecounts, dtype=np.int64)
        self._decoded: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._decoded_bytes = 0
        self._lock = Lock()
        row_bytes = self.width * page.samplesperpixel
        if raw_rows:
            self._offsets, self._sizes = self._offsets[:1], np.array([self.height * row_bytes])
        elif len(self._sizes) < (num_segments := self.columns * -(-self.height // self.side_y)):
            raise ScanError(
                path, f"broken TIFF: {name} has {len(self._sizes)} segments of {num_segments}; copy it again"
            )
        end, file_end = int((self._offsets + self._sizes).max(initial=0)), os.fstat(descriptor).st_size
        if end > file_end:
            raise ScanError(path, f"truncated: {name} needs {end} bytes, the file has {file_end}; copy it again")
        if raw_rows:
            starts = np.arange(0, self.height, raw_rows)
            self.side_y, self._offsets = raw_rows, self._offsets + starts * row_bytes
            self._sizes = np.minimum(raw_rows, self.height - starts) * row_bytes
        check_side(path, name, self.side_x, self.side_y)

    def can_shrink(self, x: int, y: int, width: int, height: int, factor: int) -> bool:
        """Whether `read` supports this factor for this region, in pixels of the level."""
        return factor == 1

    def read(self, out: NDArray[np.uint8], x: int, y: int, factor: int = 1) -> None:
        """Fill `out` (h, w, 3) with the region that starts at pixel (x, y) of the level, white beyond its edge.

        Args:
            out: contiguous.
            x, y: in pixels of the level, multiples of `factor`.
            factor: pixels of the level along a pixel of `out`, as `can_shrink` allows.

        Raises:
            ScanError: a segment is corrupt.
        """
        height, width = out.shape[:2]
        left, top, side_x, side_y = x // factor, y // factor, self.side_x // factor, self.side_y // factor
        right, bottom = min(left + width, self.width // factor), min(top + height, self.height // factor)
        if (width, height) == (side_x, side_y) == (right - left, bottom - top) and not (left % side_x or top % side_y):
            self._decode(top // side_y * self.columns + left // side_x, factor, out)
            return
        if min(left, top) < 0 or (right, bottom) != (left + width, top + height):
            out[:] = 255
        for row in range(max(top, 0) // side_y, -(-bottom // side_y)):
            for column in range(max(left, 0) // side_x, -(-right // side_x)):
                x0, x1 = max(left, column * side_x), min(right, (column + 1) * side_x)
                y0, y1 = max(top, row * side_y), min(bottom, (row + 1) * side_y)
                segment = self._segment(row * self.columns + column, factor)
                out[y0 - top : y1 - top, x0 - left : x1 - left] = segment[
                    y0 - row * side_y : y1 - row * side_y, x0 - column * side_x : x1 - column * side_x
                ]

    def _segment(self, index: int, factor: int) -> NDArray[np.uint8]:
        """A decoded segment, cached for neighboring regions."""
        with self._lock:
            cached = self._decoded.get((index, factor))
            if cached is not None:
                self._decoded.move_to_end((index, factor))
                return cached
        rows = self.side_y
        if self.last_is_lower:
            rows = min(rows, self.height - index // self.columns * rows)
        decoded = np.empty((rows // factor, self.side_x // factor, 3), dtype=np.uint8)
        self._decode(index, factor, decoded)
        with self._lock:
            if (index, factor) not in self._decoded:
                self._decoded[index, factor] = decoded
                self._decoded_bytes += decoded.nbytes
            while self._decoded_bytes > CACHE_BYTES:
                self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return decoded

    def _decode(self, index: int, factor: int, out: NDArray[np.uint8]) -> None:
        try:
            data = self._raw(index)
            if data:
                self._decode_into(out, data, index, factor)
            else:  # left out of the file
                out[:] = 255
        except Exception as error:  # depends on the decoder
            row, column = divmod(index, self.columns)
            raise ScanError(
                self.path,
                f"corrupt at {self.name}, row {row}, column {column} of its tiles ({failure(error)}); copy it again",
            ) from None

    def _raw(self, index: int) -> bytes:
        return os.pread(self._descriptor, int(self._sizes[index]), int(self._offsets[index]))

    @abstractmethod
    def _decode_into(self, out: NDArray[np.uint8], data: bytes, index: int, factor: int) -> None: ...


class JpegSegments(Segments):
    """A level of JPEG tiles or strips, decoded several times faster than by OpenSlide, and bit-identical.

    Tables shared by all tiles (tag JPEGTables) are put before each tile. A JPEG in a TIFF need not say whether it is
    YCbCr or RGB, and decoders guess: an Adobe marker with the TIFF's answer is put first.

    Reference: TIFF technical note 2 (1995); color by libjpeg.txt, "Special color spaces".
    """

    def __init__(self, path: str, descriptor: int, page: Any, name: str) -> None:
        super().__init__(path, descriptor, page, name)
        self._head = START + _ADOBE + _COLOR_TRANSFORM[page.photometric] + (page.jpegtables or b"")[2:-2]

    def is_supported(self) -> bool:
        """Whether all tiles are in the file and simplejpeg decodes the first."""
        if (self._sizes == 0).any():
            return False
        try:
            self._decode_into(np.empty((self.side_y, self.side_x, 3), dtype=np.uint8), self._raw(0), 0, 1)
        except ValueError:
            return False
        return True

    def can_shrink(self, x: int, y: int, width: int, height: int, factor: int) -> bool:
        return factor == 1 or (
            factor in (2, 4, 8)
            and not self.last_is_lower
            and not any(number % factor for number in (x, y, width, height, self.side_x, self.side_y))
            and min(x, y) >= 0
            and x + width <= self.width
            and y + height <= self.height
        )

    def _decode_into(self, out: NDArray[np.uint8], data: bytes, index: int, factor: int) -> None:
        height, width = out.shape[:2]
        minimum = {"min_height": height, "min_width": width} if factor > 1 else {}
        decoded = simplejpeg.decode_jpeg(self._merged(data), "RGB", buffer=out, **minimum)
        if decoded.shape != out.shape:
            raise ValueError(f"wanted {width} x {height} pixels, got {decoded.shape[1]} x {decoded.shape[0]}")

    def _merged(self, data: bytes) -> bytes:
        """A complete JPEG: with tables and color, without the application data that would overrule the TIFF."""
        if data[:2] != START:
            raise ValueError(f"not a JPEG: starts with {data[:2].hex()}")
        begin = 2
        while data[begin : begin + 1] == b"\xff" and data[begin + 1] in _APPLICATION_DATA:
            begin += 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
        return self._head + data[begin:]


def is_plain_jpeg(page: Any) -> bool:
    """Whether `JpegSegments` can read this page of tifffile, by its tags."""
    plain = (JPEG, 3, 8, INTERLEAVED)
    kind = (page.compression, page.samplesperpixel, page.bitspersample, page.planarconfig)
    return kind == plain and page.photometric in _COLOR_TRANSFORM
