"""Random fields and shapes on a square of pixels, for tissue and retina."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

Seed = int | np.random.SeedSequence | np.random.Generator


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of all pixels, float32."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    return rows, columns


def noise(rng: np.random.Generator, size: int, length: float) -> np.ndarray:
    """A smooth random field of mean 0 and standard deviation about 1; `length` is in pixels from bump to bump."""
    places = np.arange(size, dtype=np.float32)[:, None] / length + 1 - np.arange(int(np.ceil(size / length)) + 4)
    far = np.abs(places)
    spline = np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.maximum(2 - far, 0) ** 3 / 6).astype(np.float32)
    values = rng.standard_normal((spline.shape[1], spline.shape[1]), dtype=np.float32)
    return 2 * spline @ values @ spline.T


def streaks(
    rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, row_length: float, column_length: float
) -> np.ndarray:
    """The field of `noise` with separate lengths along rows and columns, at any coordinates."""
    first = np.array([rows.min(), columns.min()])
    lengths = np.array([row_length, column_length])
    knots = np.ceil((np.array([rows.max(), columns.max()]) - first) / lengths).astype(int) + 4
    values = rng.standard_normal(knots, dtype=np.float32)
    places = [(rows - first[0]) / row_length + 1, (columns - first[1]) / column_length + 1]
    return 2 * map_coordinates(values, places, order=3, mode="nearest", prefilter=False)


def scattered(rng: np.random.Generator, size: int, spacing: float, jitter: float = 0.25) -> np.ndarray:
    """Points about `spacing` apart, some beyond the square, (N, 2) rows and columns in random order."""
    half = np.arange(-0.75 * size - spacing, 0.75 * size + spacing, spacing)
    rows, columns = np.meshgrid(half, half, indexing="ij")
    rows = rows + spacing / 2 * (np.arange(len(half)) % 2)
    points = np.stack([rows.ravel(), columns.ravel()], axis=1)
    points += rng.uniform(-jitter, jitter, points.shape) * spacing + rng.uniform(0, spacing, 2)
    angle = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) + size / 2
    return rng.permutation(points[((points > -spacing) & (points < size + spacing)).all(axis=1)])


def cells(points: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel, how much farther the second nearest point is than the nearest, and the index of the nearest."""
    distance, nearest = cKDTree(points).query(np.stack([rows.ravel(), columns.ravel()], axis=1), k=2)
    return (distance[:, 1] - distance[:, 0]).reshape(rows.shape), nearest[:, 0].reshape(rows.shape)


def strokes(size: int, points: np.ndarray, steps: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Share of each pixel under straight strokes from `points` to `points + steps`, (N, 2), of `radius` (N,) pixels."""
    image = np.zeros((size, size), dtype=np.float32)
    low = np.minimum(points, points + steps) - radius[:, None] - 1
    high = np.maximum(points, points + steps) + radius[:, None] + 2
    first, stop = np.clip(low, 0, size).astype(int), np.clip(high, 0, size).astype(int)
    for (top, left), (bottom, right), (row, column), (down, along), thick in zip(
        first.tolist(), stop.tolist(), points.tolist(), steps.tolist(), radius.tolist(), strict=True
    ):
        y, x = np.ix_(np.arange(top, bottom) - row, np.arange(left, right) - column)
        share = np.clip((y * down + x * along) / (down**2 + along**2), 0, 1)
        far = np.hypot(y - share * down, x - share * along)
        target = image[top:bottom, left:right]
        np.maximum(target, min(thick / 0.6, 1) * np.clip(max(thick, 0.6) + 0.5 - far, 0, 1), out=target)
    return image
