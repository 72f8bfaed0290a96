"""JPEG tiles decoded straight from a TIFF, several times faster than by OpenSlide and bit-identical."""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from monai_pipelines.slides.segments import Segments

JPEG = 7  # TIFF compression
RGB, YCBCR = 2, 6  # TIFF photometric interpretation
START = b"\xff\xd8"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # APP14; the last byte is the color transform
_COLOR_TRANSFORM = {RGB: b"\x00", YCBCR: b"\x01"}
_APPLICATION_DATA = range(0xE0, 0xF0)  # APPn: JFIF, Adobe


class JpegSegments(Segments):
    """A level of JPEG tiles or strips.

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
    return (
        page.compression == JPEG
        and page.photometric in _COLOR_TRANSFORM
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
    )
