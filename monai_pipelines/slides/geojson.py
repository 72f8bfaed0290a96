"""GeoJSON in and out: outlines that a pathologist drew, and tiles with values for QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.atomic import atomic_write
from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import Source, local

Ring = NDArray[np.float64]


def read_outlines(path: Source) -> list[list[Ring]]:
    """Read the polygons of a GeoJSON file.

    Args:
        path: GeoJSON in level-0 pixels, or its URL: a FeatureCollection, a list of features as QuPath exports them, a
            feature or a geometry; Polygon and MultiPolygon, with holes.

    Returns:
        for each polygon its rings (P, 2) of x and y: the outline, then holes.

    Raises:
        ScanError: the file is not GeoJSON, or has no outline.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "tumour.geojson"
        >>> _ = file.write_text('[{"type": "Polygon", "coordinates": [[[0, 0], [64, 0], [64, 32], [0, 0]]]}]')
        >>> read_outlines(file)[0][0].shape
        (4, 2)
    """
    with local(path) as file:
        text = file.read_bytes()
    try:
        polygons = list(_polygons(json.loads(text.decode("utf-8"))))
    except (ValueError, KeyError, TypeError) as error:
        raise ScanError(path, f"wanted outlines as GeoJSON, got {failure(error)}; export them again") from None
    if not polygons:
        raise ScanError(path, "wanted an outline or more (Polygon, MultiPolygon), got none; leave the annotation empty")
    return polygons


def write_geojson(
    file: str | PathLike[str],
    coords: ArrayLike,
    level0_px: int,
    values: Mapping[str, ArrayLike],
    classification: str,
    colors: NDArray[np.uint8],
) -> None:
    """Write tiles as GeoJSON for QuPath (0.4 and newer): drop the file on the slide.

    Each tile is a square in level-0 pixels, an object of QuPath's type "tile" with measurements (Measure > Show
    measurement maps) and a color.

    Args:
        file: written, UTF-8.
        coords: (N, 2) level-0 (x, y) of the tiles' upper left corners.
        level0_px: side of a tile in level-0 pixels.
        values: name -> (N,) measurement.
        classification: class of the tiles, by which QuPath shows or hides all of them.
        colors: (N, 3) uint8.

    Raises:
        ValueError: the number of values or colors differs from that of the tiles.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> file, colors = Path(mkdtemp()) / "attention.geojson", np.zeros((2, 3), np.uint8)
        >>> write_geojson(file, [[0, 0], [512, 0]], 512, {"attention": [0.9, 0.1]}, "Attention", colors)
        >>> json.loads(file.read_text())["features"][1]["geometry"]["coordinates"]
        [[[512, 0], [1024, 0], [1024, 512], [512, 512], [512, 0]]]

    Reference: GeoJSON, RFC 7946 (whose degrees QuPath replaces by pixels).
    """
    corners = np.asarray(coords).tolist()
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}
    lengths = {name: len(column) for name, column in columns.items()} | {"colors": len(colors)}
    if {*lengths.values()} != {len(corners)}:
        got = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise ValueError(f"write_geojson: wanted values and colors for {len(corners)} tiles, got {got}")
    features = []
    for k, ((x, y), color) in enumerate(zip(corners, colors.tolist(), strict=True)):
        box = (x, y, x + level0_px, y + level0_px)
        measured = {name: column[k] for name, column in columns.items()}
        features.append(rectangle("tile", box, classification, measured, color))
    write_features(file, features)


def rectangle(
    kind: str, box: Sequence[float], classification: str, measured: Mapping[str, float], color: Sequence[int]
) -> dict[str, Any]:
    """A rectangle with measurements, as a feature for QuPath.

    Args:
        kind: QuPath's type of object, such as "tile" or "annotation".
        box: x_min, y_min, x_max, y_max, pixels.
        classification: its class.
        measured: name -> value, kept to 6 digits.
        color: RGB, 0..255.

    Example:
        >>> rectangle("annotation", (2, 1, 5, 9), "nodule", {"score": 0.9}, (255, 0, 0))["geometry"]["coordinates"]
        [[[2, 1], [5, 1], [5, 9], [2, 9], [2, 1]]]
    """
    x_min, y_min, x_max, y_max = box
    ring = [[x_min, y_min], [x_max, y_min], [x_max, y_max], [x_min, y_max], [x_min, y_min]]
    properties = {"objectType": kind, "classification": {"name": classification}, "color": list(color)}
    properties["measurements"] = {name: float(f"{value:.6g}") for name, value in measured.items()}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def write_features(file: str | PathLike[str], features: Sequence[Mapping[str, Any]]) -> None:
    """Write features, such as those of `rectangle`, as a GeoJSON FeatureCollection."""
    text = json.dumps({"type": "FeatureCollection", "features": list(features)}, separators=(",", ":"))
    with atomic_write(file) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _polygons(part: Any) -> Iterator[list[Ring]]:
    if isinstance(part, list):
        for feature in part:
            yield from _polygons(feature)
    elif (kind := part["type"]) == "FeatureCollection":
        yield from _polygons(part["features"])
    elif kind == "Feature":
        yield from _polygons(part["geometry"])
    elif kind == "Polygon":
        yield _rings(part["coordinates"])
    elif kind == "MultiPolygon":
        yield from map(_rings, part["coordinates"])


def _rings(rings: Sequence[Any]) -> list[Ring]:
    return [np.array([point[:2] for point in ring], dtype=np.float64) for ring in rings]
