"""Whether attention lies where a pathologist drew: tiles against outlines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates
from sklearn.metrics import roc_auc_score

from monai_pipelines.errors import ScanError

__all__ = ["annotated_fraction", "read_outlines", "tile_auc"]

CELLS = 16  # along the side of a tile: how finely outlines are drawn

Ring = NDArray[np.float64]


def annotated_fraction(coords: ArrayLike, level0_px: int, polygons: Sequence[Sequence[Ring]]) -> NDArray[np.float64]:
    """Share of each tile that lies within the outlines of a slide.

    Outlines are filled on a grid of 16 x 16 cells to a tile, by the cells' centres, and summed over the tile; where
    they overlap they count once. Points and lines have no area and do not count; classifications are not looked at.

    Args:
        coords: (N, 2) integers, level-0 (x, y) of the tiles' upper left corners.
        level0_px: side of a tile in level-0 pixels.
        polygons: of :func:`read_outlines`: for each its rings (P, 2) in level-0 pixels, the outline, then holes.

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


def tile_auc(attention: ArrayLike, fraction: ArrayLike, min_fraction: float = 0.5) -> float:
    """ROC AUC of attention as a score for annotated tiles: the chance that one of them is ranked above another tile.

    Args:
        attention: (N,) of one slide.
        fraction: (N,) of :func:`annotated_fraction`.
        min_fraction: tiles with more than this are annotated.

    Returns:
        The area; NaN where all tiles are annotated, or none.

    Example:
        >>> tile_auc([0.1, 0.6, 0.3], [0.0, 0.9, 0.4])
        1.0
    """
    annotated = np.asarray(fraction) > min_fraction
    if annotated.all() or not annotated.any():
        return math.nan
    return float(roc_auc_score(annotated, np.asarray(attention)))


def read_outlines(path: str | PathLike[str]) -> list[list[Ring]]:
    """Read the polygons of a GeoJSON file.

    Args:
        path: GeoJSON in level-0 pixels: a FeatureCollection, a list of features as QuPath exports them, a feature or a
            geometry; Polygon and MultiPolygon, with holes.

    Returns:
        for each polygon its rings (P, 2) of x and y: the outline, then holes.

    Raises:
        ScanError: the file is no GeoJSON, or has no outline.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "tumour.geojson"
        >>> _ = file.write_text('[{"type": "Polygon", "coordinates": [[[0, 0], [64, 0], [64, 32], [0, 0]]]}]')
        >>> read_outlines(file)[0][0].shape
        (4, 2)
    """
    try:
        with open(path, encoding="utf-8") as file:
            polygons = list(_found(json.load(file)))
    except (ValueError, KeyError, TypeError) as error:
        raise ScanError(path, f"wanted outlines as GeoJSON, got {error!r}; export them anew") from None
    if not polygons:
        raise ScanError(path, "wanted an outline or more (Polygon, MultiPolygon), got none; leave the annotation empty")
    return polygons


def _found(part: Any) -> Iterator[list[Ring]]:
    if isinstance(part, list):
        for feature in part:
            yield from _found(feature)
        return
    kind = part["type"]
    if kind == "FeatureCollection":
        yield from _found(part["features"])
    elif kind == "Feature":
        yield from _found(part["geometry"])
    elif kind == "Polygon":
        yield _rings(part["coordinates"])
    elif kind == "MultiPolygon":
        yield from map(_rings, part["coordinates"])


def _rings(rings: Sequence[Any]) -> list[Ring]:
    return [np.array([point[:2] for point in ring], dtype=np.float64) for ring in rings]


def _fill(inside: NDArray[np.bool_], rings: Sequence[Ring]) -> None:
    """Mark the cells whose centre lies within an odd number of rings; x and y in cells."""
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    left, top = np.clip(np.floor(start.min(axis=0)), 0, inside.shape[::-1]).astype(int)
    right, bottom = np.clip(np.ceil(start.max(axis=0)), 0, inside.shape[::-1]).astype(int)
    ends = np.sort([start[:, 1], end[:, 1]], axis=0)
    first, after = np.ceil(np.clip(ends - 0.5, top, bottom)).astype(int)
    edge = np.repeat(np.arange(len(start)), after - first)  # once for each row of centres that it crosses
    row = np.arange(len(edge)) + np.repeat(after - np.cumsum(after - first), after - first)
    (x0, y0), (dx, dy) = start[edge].T, (end - start)[edge].T
    column = np.ceil(np.clip(x0 + (row + 0.5 - y0) * dx / dy - 0.5, left, right)).astype(int)
    crossed = np.zeros((bottom - top, right - left + 1), dtype=np.int64)
    np.add.at(crossed, (row - top, column - left), 1)
    inside[top:bottom, left:right] |= crossed[:, :-1].cumsum(axis=1) % 2 == 1
