from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from skimage.draw import polygon2mask

from monai_pipelines.metrics import annotated_fraction, tile_auc

SQUARE = np.array([[0.0, 0], [64, 0], [64, 64], [0, 64], [0, 0]])
HOLE = np.array([[16.0, 16], [48, 16], [48, 48], [16, 48], [16, 16]])


def _blobs(rng, radius=400):
    """Two overlapping outlines of 300 points, with holes."""
    angle = np.linspace(0, 2 * math.pi, 300, endpoint=False)
    polygons = []
    for x, y, size in ((1.75, 1.25, 1), (2.75, 1.75, 0.75)):
        center = radius * np.array([x, y])
        wobble = radius * size * (1 + 0.3 * np.sin(7 * angle) + 0.05 * rng.normal(size=300))
        ring = center + wobble[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        polygons.append([ring, center + 0.3 * (ring - center)])
    return polygons


def _reference_fraction(coords, side, polygons, samples=40):
    """Points on a fine grid in each tile, tested against one polygon and one ring at a time."""
    steps = (np.arange(samples) + 0.5) / samples * side
    offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    fractions = []
    for corner in coords:
        inside = np.zeros(len(offsets), bool)
        for outline, *holes in polygons:
            in_polygon = Outline(outline).contains_points(corner + offsets)
            for hole in holes:
                in_polygon &= ~Outline(hole).contains_points(corner + offsets)
            inside |= in_polygon
        fractions.append(inside.mean())
    return np.array(fractions)


@pytest.mark.parametrize(
    ("polygons", "wanted"),
    [
        ([[SQUARE]], [1, 1, 0.25]),
        ([[SQUARE[:-1]]], [1, 1, 0.25]),  # not closed
        ([[SQUARE, HOLE]], [0.75, 0.75, 0.25 * 0.75]),
        ([[SQUARE], [SQUARE], [HOLE]], [1, 1, 0.25]),  # overlaps count once
        ([[SQUARE], [SQUARE + 48]], [1, 1, 0.25 + 0.5625 - 1 / 16]),
    ],
)
def test_fractions_by_hand(polygons, wanted):
    """Tiles of 32 in the square of 64, and one of 64 of which a quarter overlaps it."""
    assert annotated_fraction([[0, 0], [32, 32]], 32, polygons) == pytest.approx(wanted[:2])
    assert annotated_fraction([[32, 32]], 64, polygons) == pytest.approx(wanted[2:])


def test_fractions_of_irregular_outlines_and_unaligned_tiles():
    rng = np.random.default_rng(0)
    polygons, coords = _blobs(rng), rng.integers(-300, 1500, (150, 2))
    fractions = annotated_fraction(coords, 224, polygons)
    wanted = _reference_fraction(coords, 224, polygons)
    assert ((wanted > 0.05) & (wanted < 0.95)).sum() > 30
    assert fractions == pytest.approx(wanted, abs=0.02)
    assert fractions.mean() == pytest.approx(wanted.mean(), abs=0.001)


@pytest.mark.parametrize("seed", range(3))
def test_cells_equal_scikit_image(seed):
    """Tiles of 16 pixels have one cell per pixel."""
    polygons = _blobs(np.random.default_rng(seed), radius=40)
    coords = np.stack(np.meshgrid(np.arange(0, 160, 16), np.arange(0, 160, 16)), axis=-1).reshape(-1, 2)
    inside = np.zeros((160, 160), bool)
    for rings in polygons:
        inside |= np.logical_xor.reduce([polygon2mask((160, 160), ring[:, ::-1] - 0.5) for ring in rings])
    wanted = inside.reshape(10, 16, 10, 16).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(annotated_fraction(coords, 16, polygons), wanted, atol=1e-12)
    assert 0 < wanted.mean() < 1


def test_outlines_beside_all_tiles():
    for corner in ([-500, 0], [500, 0], [0, -500], [0, 500], [10_000, -10_000]):
        assert annotated_fraction([corner], 100, [[SQUARE]]).tolist() == [0]


def test_tile_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(1)
    attention, fraction = rng.integers(0, 9, 60) / 9, rng.random(60)
    annotated, rest = attention[fraction > 0.5], attention[fraction <= 0.5]
    pairs = (annotated[:, None] > rest) + 0.5 * (annotated[:, None] == rest)
    assert tile_auc(attention, fraction) == pytest.approx(pairs.mean())
    assert tile_auc([0.2, 0.9], [0.5, 0.51]) == 1  # half is not more than half


@pytest.mark.parametrize("fraction", [[0, 0.5], [0.6, 1]])
def test_tile_auc_needs_annotated_and_other_tiles(fraction):
    assert math.isnan(tile_auc([0.1, 0.2], fraction))
