"""Small slides of known pixels, made by the tests that read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

JPEG, RGB, YCBCR = 7, 2, 6
COMPRESSION, PHOTOMETRIC, JPEG_TABLES, SUBSAMPLING = 259, 262, 347, 530
SUBSAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2)}
QUANTIZATION, HUFFMAN, APP0 = 0xDB, 0xC4, 0xE0


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of all colors with some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


def levels(height: int, width: int, downsamples: Sequence[int] = (1,), seed: int = 0) -> list[np.ndarray]:
    """A pyramid of means."""
    full = Image.fromarray(pixels(height, width, seed))
    return [np.asarray(full.reduce(d).crop((0, 0, width // d, height // d))) for d in downsamples]


def write_slide(
    path: Path,
    pyramid: Sequence[np.ndarray],
    *,
    side_px: int = 64,
    mpp: float = 0.5,
    photometric: int = YCBCR,
    subsampling: str = "420",
    tables: bool = False,
    sub_ifds: bool = False,
    **tags: Any,
) -> Path:
    """Write JPEG tiles through tifffile, which cannot encode JPEG itself: the tags are corrected afterwards."""
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(pyramid):
            encoded = [_encoded(tile, photometric, subsampling) for tile in _tiles(level, side_px)]
            extra = [(SUBSAMPLING, "H", 2, SUBSAMPLINGS[subsampling], True)]
            if tables:
                extra.append((JPEG_TABLES, 7, None, _split(encoded[0])[0], True))
                encoded = [_split(tile)[1] for tile in encoded]
            file.write(
                iter(encoded),
                shape=level.shape,
                dtype=np.uint8,
                tile=(side_px, side_px),
                extratags=extra,
                subifds=len(pyramid) - 1 if sub_ifds and not number else None,
                **_tags(number, mpp),
                **tags,
            )
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in [page for top in file.pages for page in (top, *(top.pages or ()))]:
            page.tags[COMPRESSION].overwrite(JPEG)
            page.tags[PHOTOMETRIC].overwrite(photometric)
    return path


def write_lossless(path: Path, pyramid: Sequence[np.ndarray], mpp: float, side_px: int = 64) -> Path:
    """Write losslessly compressed tiles."""
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(pyramid):
            file.write(level, tile=(side_px, side_px), **_tags(number, mpp))
    return path


def _tags(level: int, mpp: float) -> dict[str, Any]:
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "centimeter"}
    return {"photometric": "rgb", "compression": "zlib", "subfiletype": int(level > 0), "metadata": None, **resolution}


def _tiles(level: np.ndarray, side: int) -> Iterator[np.ndarray]:
    for top in range(0, level.shape[0], side):
        for left in range(0, level.shape[1], side):
            tile = level[top : top + side, left : left + side]
            yield np.pad(tile, [(0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0)], mode="edge")


def _encoded(tile: np.ndarray, photometric: int, subsampling: str) -> bytes:
    """A JPEG; RGB as some scanners store it: the JPEG says YCbCr, the TIFF RGB."""
    tile = np.ascontiguousarray(tile)
    if photometric == YCBCR:
        return simplejpeg.encode_jpeg(tile, 80, "RGB", subsampling)
    file = BytesIO()
    Image.merge("YCbCr", Image.fromarray(tile).split()).save(file, "JPEG", quality=80, subsampling=0)
    return file.getvalue()


def _split(jpeg: bytes) -> tuple[bytes, bytes]:
    """Tables, and the JPEG without them."""
    tables, rest, place = b"", b"", 2
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] in (QUANTIZATION, HUFFMAN):
            tables += jpeg[place:end]
        elif jpeg[place + 1] != APP0:
            rest += jpeg[place:end]
        place = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + jpeg[place:]
