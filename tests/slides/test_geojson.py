from __future__ import annotations

import json

import numpy as np
import pytest

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import read_outlines, write_geojson

SQUARE = [[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]
HOLE = [[16, 16], [48, 16], [48, 48], [16, 48], [16, 16]]


def _polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def _feature(geometry):
    classified = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    return {"type": "Feature", "geometry": geometry, "properties": classified}


def _collection(*geometries):
    return {"type": "FeatureCollection", "features": [_feature(geometry) for geometry in geometries]}


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "annotation.geojson"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (_collection(_polygon(SQUARE)), [[SQUARE]]),
        ([_feature(_polygon(SQUARE))], [[SQUARE]]),  # as QuPath exports without FeatureCollection
        (_feature(_polygon(SQUARE)), [[SQUARE]]),
        (_polygon(SQUARE[:-1]), [[SQUARE[:-1]]]),  # not closed
        (_collection(_polygon(SQUARE, HOLE), _polygon(HOLE)), [[SQUARE, HOLE], [HOLE]]),
        ({"type": "MultiPolygon", "coordinates": [[SQUARE], [HOLE]]}, [[SQUARE], [HOLE]]),
        (_collection({"type": "Point", "coordinates": [3, 3]}, _polygon([[*p, 7.0] for p in SQUARE])), [[SQUARE]]),
    ],
)
def test_polygons_are_read_as_rings_of_points(write, content, wanted):
    polygons = read_outlines(write(content))
    assert [[ring.tolist() for ring in rings] for rings in polygons] == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "wanted outlines as GeoJSON, got JSONDecodeError"),
        ('{"a": 1}', "wanted outlines as GeoJSON, got KeyError"),
        ("3", "wanted outlines as GeoJSON, got TypeError"),
        (_polygon([["x", "y"]]), "wanted outlines as GeoJSON, got ValueError"),
        (_collection(), "wanted an outline or more"),
        (_collection({"type": "LineString", "coordinates": [[0, 0], [5, 5]]}), "wanted an outline or more"),
    ],
)
def test_files_without_outlines_are_refused(write, content, message):
    file = write(content)
    with pytest.raises(ScanError, match=message) as error:
        read_outlines(file)
    assert error.value.path == str(file)


def test_tiles_are_written_as_squares_with_measurements_and_colors(tmp_path):
    rng = np.random.default_rng(3)
    coords, attention = rng.integers(0, 5000, (20, 2)), rng.dirichlet([0.3] * 20)
    colors = rng.integers(0, 256, (20, 3)).astype(np.uint8)
    file = tmp_path / "attention.geojson"
    write_geojson(file, coords, 512, {"Attention": attention, "other": range(20)}, "Attention", colors)
    squares = coords[:, None] + 512 * np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    np.testing.assert_array_equal(np.squeeze(read_outlines(file)), squares)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    for k, feature in enumerate(content["features"]):
        assert {type(value) for point in feature["geometry"]["coordinates"][0] for value in point} == {int}
        tile = feature["properties"]
        assert (tile["objectType"], tile["classification"]) == ("tile", {"name": "Attention"})
        assert tile["measurements"] == pytest.approx({"Attention": attention[k], "other": k}, rel=1e-5)
        assert tile["color"] == colors[k].tolist()


def test_values_and_colors_must_match_the_tiles(tmp_path):
    for values, num_colors, got in (
        ({"a": [1, 2], "b": [1]}, 2, "2 of a, 1 of b, 2 of colors"),
        ({}, 1, "1 of colors"),
    ):
        with pytest.raises(ValueError, match=f"for 2 tiles, got {got}"):
            write_geojson(tmp_path / "a", [[0, 0], [9, 9]], 9, values, "Attention", np.zeros((num_colors, 3), np.uint8))
