"""Which level of a pyramid serves a resolution, and how its pixels lie on level 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

TOLERANCE = 0.01  # 0.499 um per pixel serves as 0.5


class TileSize(NamedTuple):
    """How large a tile is, on the tile's own grid, at the level it is read from and at level 0.

    Args:
        tile_px: side of the tile.
        mpp: um that a pixel of the tile is wide, really.
        level: that it is read from.
        level_px: side of the region at that level, `tile_px` or more.
        level0_px: side of the region at level 0.
    """

    tile_px: int
    mpp: float
    level: int
    level_px: int
    level0_px: int


def whole_downsamples(sizes: Sequence[tuple[int, int]], downsamples: Sequence[float]) -> tuple[float, ...]:
    """Downsamples of levels as they were meant: whole where a level's size is a rounded part of level 0's.

    OpenSlide divides sizes: a level of 2221 x 1783 below one of 4443 x 3567 gets 2.0005. A power of two is tried
    before the nearest whole number.

    Args:
        sizes: (width, height) of each level.
        downsamples: of each level, by OpenSlide.

    Example:
        >>> whole_downsamples([(4443, 3567), (2221, 1783), (1900, 1525)], [1.0, 2.0005, 2.3387])
        (1.0, 2.0, 2.3387)
    """

    def meant(size: tuple[int, int], downsample: float) -> float:
        for whole in (2 ** round(math.log2(downsample)), round(downsample)):
            if all(abs(full / whole - part) < 1 for full, part in zip(sizes[0], size, strict=True)):
                return float(whole)
        return float(downsample)

    return tuple(meant(size, downsample) for size, downsample in zip(sizes, downsamples, strict=True))


def fit_level(wanted: float, downsamples: Sequence[float]) -> int | None:
    """The coarsest level whose downsample is at most `wanted`, or 1 % above; None where none is.

    Example:
        >>> fit_level(4, [1, 4.03, 16]), fit_level(15.9, [1, 4, 16]), fit_level(0.5, [1, 4, 16])
        (1, 2, None)
    """
    fitting = [level for level, downsample in enumerate(downsamples) if downsample <= wanted * (1 + TOLERANCE)]
    return max(fitting, key=lambda level: downsamples[level], default=None)


def fit_tile(tile_px: int, mpp: float, slide_mpp: float, downsamples: Sequence[float]) -> TileSize | None:
    """The smallest region that gives a tile by shrinking alone; None where even level 0 is too coarse.

    With d = `mpp` / `slide_mpp`, the largest downsample D of at most 1.01 d is taken, and d / D pixels of the level
    make one of the tile; within 1 % of a whole number that number is taken, so that 0.499 and 0.2525 serve as 0.5.

    Args:
        tile_px: side of the tile.
        mpp: um per pixel of the tile.
        slide_mpp: um per pixel at level 0.
        downsamples: of the levels.

    Example:
        >>> fit_tile(256, 0.5, 0.2525, [1, 4, 16])
        TileSize(tile_px=256, mpp=0.505, level=0, level_px=512, level0_px=512)
        >>> fit_tile(256, 2, 0.499, [1, 4, 16])
        TileSize(tile_px=256, mpp=1.996, level=1, level_px=256, level0_px=1024)
        >>> fit_tile(256, 0.2, 0.499, [1, 4, 16])
    """
    wanted = mpp / slide_mpp
    level = fit_level(wanted, downsamples)
    if level is None:
        return None
    factor = wanted / downsamples[level]
    if abs(factor - round(factor)) <= TOLERANCE * round(factor):
        factor = round(factor)
    level_px = math.floor(tile_px * factor + 0.5)
    level0_px = math.floor(level_px * downsamples[level] + 0.5)
    return TileSize(tile_px, level0_px * slide_mpp / tile_px, level, level_px, level0_px)


def average_area(region: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A square shrunk to `side`: each pixel is the mean of the area that it covers, parts of pixels by their share.

    Differs from Pillow's ``BOX``, which takes pixels whole or not at all.

    Args:
        region: (n, n, 3), n at least `side`.
        side: of the result, (side, side, 3).

    Example:
        >>> average_area(np.array([[[0], [90], [180]]] * 3, dtype=np.uint8), 2)[0, :, 0]
        array([ 30, 150], dtype=uint8)
    """
    before, _, channels = region.shape
    weights = _shares(before, side)
    rows = weights @ region.reshape(before, -1).astype(np.float32)
    columns = rows.reshape(side, before, channels).swapaxes(0, 1).reshape(before, -1)
    return np.rint(weights @ columns).astype(np.uint8).reshape(side, side, channels).swapaxes(0, 1)


@lru_cache(maxsize=8)
def _shares(before: int, after: int) -> sparse.csr_array:
    """(after, before): how much of each new pixel an old one makes; rows sum to 1."""
    edges = np.arange(after + 1) * (before / after)
    old = np.arange(before)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return sparse.csr_array((covered.clip(min=0) * (after / before)).astype(np.float32))
