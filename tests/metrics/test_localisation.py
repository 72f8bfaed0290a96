from __future__ import annotations

import json
import math

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from monai_pipelines.errors import ScanError
from monai_pipelines.metrics import annotated_fraction, read_outlines, tile_auc

SQUARE = [[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]
HOLE = [[16, 16], [48, 16], [48, 48], [16, 48], [16, 16]]


def _polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def _feature(geometry, name="Tumor"):
    classified = {"objectType": "annotation", "classification": {"name": name}}
    return {"type": "Feature", "geometry": geometry, "properties": classified}


def _collection(*geometries):
    return {"type": "FeatureCollection", "features": [_feature(own) for own in geometries]}


def _moved(ring, x, y):
    return [[a + x, b + y] for a, b in ring]


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "annotation.geojson"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def _reference_fraction(coords, side, polygons, samples=40):
    """Points of a fine grid in each tile, asked one polygon and one ring at a time."""
    steps = (np.arange(samples) + 0.5) / samples * side
    offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    fractions = []
    for corner in coords:
        inside = np.zeros(len(offsets), bool)
        for outline, *holes in polygons:
            own = Outline(outline).contains_points(corner + offsets)
            for hole in holes:
                own &= ~Outline(hole).contains_points(corner + offsets)
            inside |= own
        fractions.append(inside.mean())
    return np.array(fractions)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (_collection(_polygon(SQUARE)), [1, 1, 0.25]),
        ([_feature(_polygon(SQUARE))], [1, 1, 0.25]),  # as QuPath exports without FeatureCollection
        (_feature(_polygon(SQUARE)), [1, 1, 0.25]),
        (_polygon(SQUARE[:-1]), [1, 1, 0.25]),  # not closed
        (_collection(_polygon(SQUARE, HOLE)), [0.75, 0.75, 0.25 * 0.75]),
        (_collection(_polygon(SQUARE), _polygon(SQUARE), _polygon(HOLE)), [1, 1, 0.25]),  # overlap counts once
        ({"type": "MultiPolygon", "coordinates": [[SQUARE], [_moved(SQUARE, 48, 48)]]}, [1, 1, 0.25 + 0.5625 - 1 / 16]),
        (_collection({"type": "Point", "coordinates": [3, 3]}, _polygon([[*p, 7.0] for p in SQUARE])), [1, 1, 0.25]),
    ],
)
def test_fractions_by_hand(write, content, wanted):
    """Tiles of 32 in the square of 64, and one of 64 that sticks out by half each way."""
    polygons = read_outlines(write(content))
    assert annotated_fraction([[0, 0], [32, 32]], 32, polygons) == pytest.approx(wanted[:2])
    assert annotated_fraction([[32, 32]], 64, polygons) == pytest.approx(wanted[2:])


def test_fractions_of_irregular_outlines_and_unaligned_tiles(write):
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * math.pi, 300, endpoint=False)
    polygons = []
    for centre, radius in (((700.0, 500.0), 400), ((1100.0, 700.0), 300)):
        wobble = radius * (1 + 0.3 * np.sin(7 * angle) + 0.05 * rng.normal(size=300))
        ring = np.array(centre) + wobble[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        polygons.append([ring, np.array(centre) + 0.3 * (ring - centre)])
    coords = rng.integers(-300, 1500, (150, 2))
    file = write(_collection(*(_polygon(*(r.tolist() for r in p)) for p in polygons)))
    got = annotated_fraction(coords, 224, read_outlines(file))
    wanted = _reference_fraction(coords, 224, polygons)
    assert ((wanted > 0.05) & (wanted < 0.95)).sum() > 30
    assert got == pytest.approx(wanted, abs=0.02)
    assert got.mean() == pytest.approx(wanted.mean(), abs=0.001)


def test_outlines_beside_all_tiles(write):
    polygons = read_outlines(write(_collection(_polygon(SQUARE))))
    for corner in ([-500, 0], [500, 0], [0, -500], [0, 500], [10_000, -10_000]):
        assert annotated_fraction([corner], 100, polygons).tolist() == [0]


def test_outlines_have_rings_of_points(write):
    ((outline, hole),) = read_outlines(write(_collection(_polygon(SQUARE, HOLE))))
    assert outline.tolist() == SQUARE
    assert hole.tolist() == HOLE


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "wanted outlines as GeoJSON, got JSONDecodeError"),
        ('{"a": 1}', "wanted outlines as GeoJSON, got KeyError"),
        ("3", "wanted outlines as GeoJSON, got TypeError"),
        (_polygon([["x", "y"]]), "wanted outlines as GeoJSON, got ValueError"),
        (_collection(), "wanted an outline or more"),
        (_collection({"type": "LineString", "coordinates": [[0, 0], [5, 5]]}), "wanted an outline or more"),
    ],
)
def test_files_without_outlines(write, content, told):
    file = write(content)
    with pytest.raises(ScanError, match=told) as error:
        read_outlines(file)
    assert error.value.path == str(file)


def test_tile_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(1)
    attention, fraction = rng.integers(0, 9, 60) / 9, rng.random(60)
    for least in (0.2, 0.5, 0.8):
        of, rest = attention[fraction > least], attention[fraction <= least]
        pairs = (of[:, None] > rest) + 0.5 * (of[:, None] == rest)
        assert tile_auc(attention, fraction, least) == pytest.approx(pairs.mean())
    assert tile_auc([0.2, 0.9], [0.5, 0.51]) == 1  # half is not more than half


@pytest.mark.parametrize("fraction", [[0, 0.5], [0.6, 1]])
def test_tile_auc_needs_both_kinds(fraction):
    assert math.isnan(tile_auc([0.1, 0.2], fraction))
