"""Writes a pyramid of JPEG tiles as slide scanners do."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import BinaryIO

import numpy as np

_SUBSAMPLINGS = {(1, 1): "444", (2, 1): "422", (2, 2): "420"}
_SHORT, _LONG, _RATIONAL = 3, 4, 5


def write_pyramid(
    path: str | PathLike[str],
    levels: Sequence[np.ndarray],
    mpp: float,
    *,
    tile_px: int = 256,
    quality: int = 80,
    subsampling: tuple[int, int] = (2, 2),
) -> None:
    """Write a tiled TIFF (Adobe 1992, technical note 2 of 1995) that OpenSlide reads as `generic-tiff`.

    tifffile leaves JPEG to the package imagecodecs; this needs simplejpeg only.

    Args:
        path: of the file, at most 4 GB.
        levels: (height, width, 3) uint8 each, the largest first.
        mpp: um per pixel of the first level.
        tile_px: side of a tile, a multiple of 16.
        quality: of the JPEG tiles, 1 to 100.
        subsampling: of the chroma, across and down: (1, 1), (2, 1) or (2, 2).

    Raises:
        ValueError: another subsampling or side of a tile.

    Example:
        >>> import tempfile, openslide
        >>> pixels = np.full((300, 500, 3), 200, dtype=np.uint8)
        >>> path = f"{tempfile.mkdtemp()}/slide.tif"
        >>> write_pyramid(path, [pixels, pixels[::4, ::4]], mpp=0.5)
        >>> with openslide.OpenSlide(path) as slide:
        ...     slide.level_dimensions, round(float(slide.properties["openslide.mpp-x"]), 3)
        (((500, 300), (125, 75)), 0.5)
    """
    import simplejpeg

    if subsampling not in _SUBSAMPLINGS:
        raise ValueError(f"write_pyramid: subsampling must be one of {list(_SUBSAMPLINGS)}, got {subsampling}")
    if tile_px < 16 or tile_px % 16:
        raise ValueError(f"write_pyramid: tile_px must be a multiple of 16, got {tile_px}")
    with open(path, "wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        link = 4
        for number, pixels in enumerate(levels):
            offsets, sizes = [], []
            for tile in _tiles(pixels, tile_px):
                offsets.append(file.tell())
                sizes.append(file.write(simplejpeg.encode_jpeg(tile, quality, "RGB", _SUBSAMPLINGS[subsampling])))
            height, width, _ = pixels.shape
            per_cm = 1e4 / mpp * width / levels[0].shape[1]
            tags = [
                (254, _LONG, [int(number > 0)]),  # NewSubfileType: reduced
                (256, _LONG, [width]),
                (257, _LONG, [height]),
                (258, _SHORT, [8, 8, 8]),  # BitsPerSample
                (259, _SHORT, [7]),  # Compression: JPEG
                (262, _SHORT, [6]),  # PhotometricInterpretation: YCbCr
                (277, _SHORT, [3]),  # SamplesPerPixel
                (282, _RATIONAL, [round(1000 * per_cm), 1000]),  # XResolution
                (283, _RATIONAL, [round(1000 * per_cm), 1000]),
                (284, _SHORT, [1]),  # PlanarConfiguration: interleaved
                (296, _SHORT, [3]),  # ResolutionUnit: centimeter
                (322, _LONG, [tile_px]),
                (323, _LONG, [tile_px]),
                (324, _LONG, offsets),
                (325, _LONG, sizes),
                (530, _SHORT, list(subsampling)),
                (532, _RATIONAL, [0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1]),  # ReferenceBlackWhite
            ]
            link = _write_directory(file, link, tags)


def _tiles(pixels: np.ndarray, tile_px: int) -> Iterator[np.ndarray]:
    """Row by row; those at the right and bottom edge repeat the last pixels."""
    for top in range(0, pixels.shape[0], tile_px):
        for left in range(0, pixels.shape[1], tile_px):
            tile = pixels[top : top + tile_px, left : left + tile_px]
            missing = [(0, tile_px - side) for side in tile.shape[:2]]
            yield np.pad(tile, [*missing, (0, 0)], mode="edge")


def _write_directory(file: BinaryIO, link: int, entries: list[tuple[int, int, list[int]]]) -> int:
    """Write tags (number, type, values), have `link` point at them, and return the place of the next link."""
    start = file.seek(0, 2) + file.tell() % 2
    beyond = start + 2 + 12 * len(entries) + 4
    table, values = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in entries:
        packed = np.array(numbers, "<u2" if kind == _SHORT else "<u4").tobytes()
        count = len(numbers) // 2 if kind == _RATIONAL else len(numbers)
        if len(packed) > 4:
            place = struct.pack("<I", beyond + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        table += struct.pack("<HHI", tag, kind, count) + place
    file.seek(link)
    file.write(struct.pack("<I", start))
    file.seek(start)
    file.write(table + struct.pack("<I", 0) + values)
    return beyond - 4
