"""Which level of a pyramid serves a resolution, and how its pixels map to level 0."""

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
    """Size of a tile: its pixels, its region at the level that is read, and at level 0.

    Args:
        tile_px: side of the tile.
        mpp: actual um per pixel of the tile.
        level: that is read.
        level_px: side of the region at that level, `tile_px` or more.
        level0_px: side of the region at level 0.
    """

    tile_px: int
    mpp: float
    level: int
    level_px: int
    level0_px: int


def whole_downsamples(sizes: Sequence[tuple[int, int]], downsamples: Sequence[float]) -> tuple[float, ...]:
    """Intended downsamples of levels: whole where a level's size is a rounded fraction of level 0's.

    OpenSlide divides sizes: a level of 2221 x 1783 below one of 4443 x 3567 gets 2.0005. A power of two is tried
    before the nearest whole number.

    Args:
        sizes: (width, height) of each level.
        downsamples: of each level, from OpenSlide.

    Example:
        >>> whole_downsamples([(4443, 3567), (2221, 1783), (1900, 1525)], [1.0, 2.0005, 2.3387])
        (1.0, 2.0, 2.3387)
    """

    def intended(size: tuple[int, int], downsample: float) -> float:
        for whole in (2 ** round(math.log2(downsample)), round(downsample)):
            if all(abs(full / whole - part) < 1 for full, part in zip(sizes[0], size, strict=True)):
                return float(whole)
        return float(downsample)

    return tuple(intended(size, downsample) for size, downsample in zip(sizes, downsamples, strict=True))


def fit_level(target: float, downsamples: Sequence[float]) -> int | None:
    """The coarsest level whose downsample is at most `target`, or 1 % above; None if there is none.

    Example:
        >>> fit_level(4, [1, 4.03, 16]), fit_level(15.9, [1, 4, 16]), fit_level(0.5, [1, 4, 16])
        (1, 2, None)
    """
    fitting = [level for level, downsample in enumerate(downsamples) if downsample <= target * (1 + TOLERANCE)]
    return max(fitting, key=lambda level: downsamples[level], default=None)


def fit_tile(tile_px: int, mpp: float, slide_mpp: float, downsamples: Sequence[float]) -> TileSize | None:
    """The smallest region that gives a tile without enlarging; None if even level 0 is too coarse.

    With d = `mpp` / `slide_mpp`, the level has the largest downsample D of at most 1.01 d, and d / D of its pixels make
    one of the tile; d / D within 1 % of a whole number is rounded, so that 0.499 and 0.2525 serve as 0.5.

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
    target = mpp / slide_mpp
    level = fit_level(target, downsamples)
    if level is None:
        return None
    factor = target / downsamples[level]
    if abs(factor - round(factor)) <= TOLERANCE * round(factor):
        factor = round(factor)
    level_px = math.floor(tile_px * factor + 0.5)
    level0_px = math.floor(level_px * downsamples[level] + 0.5)
    return TileSize(tile_px, level0_px * slide_mpp / tile_px, level, level_px, level0_px)


def average_area(region: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A square shrunk to `side`: each pixel is the area-weighted mean of the pixels that it covers.

    Pillow's ``BOX`` takes pixels whole or not at all.

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
    """(after, before): share of each old pixel in each new one; rows sum to 1."""
    edges = np.arange(after + 1) * (before / after)
    old = np.arange(before)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return sparse.csr_array((covered.clip(min=0) * (after / before)).astype(np.float32))
