"""Whether attention lies where a pathologist drew: tiles against outlines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

CELLS = 16  # along the side of a tile, for filling outlines

Ring = NDArray[np.float64]


def annotated_fraction(coords: ArrayLike, level0_px: int, polygons: Sequence[Sequence[Ring]]) -> NDArray[np.float64]:
    """Share of each tile that lies within the outlines of a slide.

    Outlines are filled on a grid of 16 x 16 cells per tile, by the cells' centers, and summed over the tile; overlaps
    count once. Points and lines have no area and do not count; classifications are ignored.

    Args:
        coords: (N, 2) integers, level-0 (x, y) of the tiles' upper left corners.
        level0_px: side of a tile in level-0 pixels.
        polygons: of :func:`~monai_pipelines.slides.read_outlines`: for each its rings (P, 2) in level-0 pixels, the
            outline, then holes.

    Returns:
        (N,) in [0, 1].

    Example:
        >>> annotated_fraction([[0, 0], [32, 16]], 32, [[np.array([[0, 0], [64, 0], [64, 32], [0, 32]])]]).tolist()
        [1.0, 0.5]
    """
    corners = np.asarray(coords, dtype=np.int64)
    cell = level0_px / CELLS
    origin = corners.min(axis=0)
    width, height = np.ceil((corners.max(axis=0) - origin) / cell).astype(int) + CELLS
    inside = np.zeros((height, width), dtype=bool)
    for rings in polygons:
        _fill(inside, [(ring - origin) / cell for ring in rings])
    summed = np.zeros((height + 1, width + 1))
    summed[1:, 1:] = inside.cumsum(axis=0).cumsum(axis=1)
    x, y = (corners - origin).T / cell
    above, below = (map_coordinates(summed, [edge, [x, x + CELLS]], order=1) for edge in ([y, y], [y + CELLS] * 2))
    left, right = below - above
    return np.clip((right - left) / CELLS**2, 0, 1)


def tile_auc(attention: ArrayLike, fraction: ArrayLike) -> float:
    """ROC AUC of attention as a score for tiles that are more than half annotated.

    Args:
        attention: (N,) of one slide.
        fraction: (N,) of :func:`annotated_fraction`.

    Returns:
        The area; NaN if all tiles are annotated, or none.

    Example:
        >>> tile_auc([0.1, 0.6, 0.3], [0.0, 0.9, 0.4])
        1.0
    """
    from sklearn.metrics import roc_auc_score

    annotated = np.asarray(fraction) > 0.5
    if annotated.all() or not annotated.any():
        return math.nan
    return float(roc_auc_score(annotated, np.asarray(attention)))


def _fill(inside: NDArray[np.bool_], rings: Sequence[Ring]) -> None:
    """Mark the cells whose center lies within an odd number of rings; x and y in cells.

    `skimage.draw.polygon` tests every cell against every edge: 12 s for an outline of 1,000 points around a million
    cells, against 0.08 s here.
    """
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    left, top = np.clip(np.floor(start.min(axis=0)), 0, inside.shape[::-1]).astype(int)
    right, bottom = np.clip(np.ceil(start.max(axis=0)), 0, inside.shape[::-1]).astype(int)
    ends = np.sort([start[:, 1], end[:, 1]], axis=0)
    first, after = np.ceil(np.clip(ends - 0.5, top, bottom)).astype(int)
    edge = np.repeat(np.arange(len(start)), after - first)  # once for each row of centers that it crosses
    row = np.arange(len(edge)) + np.repeat(after - np.cumsum(after - first), after - first)
    (x0, y0), (dx, dy) = start[edge].T, (end - start)[edge].T
    column = np.ceil(np.clip(x0 + (row + 0.5 - y0) * dx / dy - 0.5, left, right)).astype(int)
    crossed = np.zeros((bottom - top, right - left + 1), dtype=np.int64)
    np.add.at(crossed, (row - top, column - left), 1)
    inside[top:bottom, left:right] |= crossed[:, :-1].cumsum(axis=1) % 2 == 1
