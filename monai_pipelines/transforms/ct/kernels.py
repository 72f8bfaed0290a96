"""The passes over all voxels of a volume, compiled (package numba): block means, separable resampling, and warping.

    mean[i, j, k] = sum of volume[i fa + a, j fb + b, k fc + c] over a block / (fa fb fc)
    out[i, j, k]  = sum over a, b, c of wa[i, a] wb[j, b] wc[k, c] volume[a, b, c]

Each voxel is read once, in the order of the memory; what a plane leaves stays in the cache. `grid` calls them, and does
the same with torch where numba is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}  # NaN stays NaN


def _compiled(function: Callable) -> Any:
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder that the cache can be written to
        return njit(**_OPTIONS)(function)


@_compiled
def block_mean(volume: Array, mean: Array, blocks: tuple[int, int, int], first: int, last: int) -> None:
    """Planes ``first`` to ``last`` of the means (A, B, C) float32 of an integer volume."""
    fa, fb, fc = blocks
    _, num_b, num_c = mean.shape
    sums = np.empty(num_c * fc, np.float32)
    for i in range(first, last):
        for j in range(num_b):
            sums[:] = 0
            for a in range(i * fa, (i + 1) * fa):
                for b in range(j * fb, (j + 1) * fb):
                    row = volume[a, b]
                    for c in range(len(sums)):
                        sums[c] += row[c]
            for k in range(num_c):
                total = np.float32(0)
                for c in range(k * fc, (k + 1) * fc):
                    total += sums[c]
                mean[i, j, k] = total / (fa * fb * fc)


@_compiled
def resample(
    volume: Array,
    weights: tuple[Array, Array, Array],
    reach: tuple[Array, Array, Array],
    out: Array,
    fill: np.float32,
    low: np.float32,
) -> None:
    """Resample a volume (A, B, C) of which ``fill`` is taken off; values below ``low`` count as ``low``.

    ``weights`` are (num_out, num_in) float32 for each axis, ``reach`` (num_in, 2) the first output sample that a voxel
    has a part in, and the one after the last; ``out`` is (num_out_a, num_out_c, num_out_b) float32 zeros.
    """
    num_c, num_b = out.shape[1], out.shape[2]
    (wa, wb, wc), (reach_a, reach_b, reach_c) = weights, reach
    used = np.nonzero(reach_c[:, 0] < reach_c[:, 1])[0]
    left, right = used[0], used[-1] + 1
    row, rows = np.empty(right - left, np.float32), np.empty((num_b, right - left), np.float32)
    columns, plane = np.empty((right - left, num_b), np.float32), np.empty((num_c, num_b), np.float32)
    for a in range(len(volume)):
        if reach_a[a, 0] == reach_a[a, 1]:
            continue
        rows[:] = 0
        for b in range(len(reach_b)):
            if reach_b[b, 0] == reach_b[b, 1]:
                continue
            source = volume[a, b]
            for c in range(left, right):
                value = np.float32(source[c])
                row[c - left] = (value if value > low else low) - fill
            for j in range(reach_b[b, 0], reach_b[b, 1]):
                weight, target = wb[j, b], rows[j]
                for c in range(len(row)):
                    target[c] += weight * row[c]
        for tile in range(0, len(row), 16):  # a transpose, 16 columns at a time
            for j in range(num_b):
                for c in range(tile, min(tile + 16, len(row))):
                    columns[c, j] = rows[j, c]
        plane[:] = 0
        for c in range(left, right):
            column = columns[c - left]
            for k in range(reach_c[c, 0], reach_c[c, 1]):
                weight, line = wc[k, c], plane[k]
                for j in range(num_b):
                    line[j] += weight * column[j]
        for i in range(reach_a[a, 0], reach_a[a, 1]):
            weight, target_plane = wa[i, a], out[i]
            for k in range(num_c):
                for j in range(num_b):
                    target_plane[k, j] += weight * plane[k, j]


@_compiled
def warp(
    volume: Array,
    matrix: Array,
    lines: Array,
    response: Array,
    out: Array,
    fill: np.float32,
    nearest: bool,
    first: int,
    last: int,
) -> None:
    """Planes ``first`` to ``last`` of a warped volume (C, X, Y, Z) float32, at each voxel

        out[c, x, y, z] = volume[c] at matrix (x, y, z, 1) + sum over k of lines[:, x, y, k] response[z, k]

    ``matrix`` is (3, 4) and ``lines`` (3, X, Y, K), of the output's X and Y, both float32; undeformed, K is 0.
    Between voxels the value is trilinear, or that of the nearest one; outside it is ``fill``.
    """
    channels, num_x, num_y, num_z = volume.shape
    depth = out.shape[3]
    at = np.empty((3, depth), np.float32)
    for x in range(first, last):
        for y in range(out.shape[2]):
            for axis in range(3):
                start = matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 3]
                for z in range(depth):
                    at[axis, z] = start + matrix[axis, 2] * z
                for k in range(lines.shape[3]):
                    point = lines[axis, x, y, k]
                    for z in range(depth):
                        at[axis, z] += point * response[z, k]
            for z in range(depth):
                px, py, pz = at[0, z], at[1, z], at[2, z]
                if nearest:
                    px, py, pz = np.rint(px), np.rint(py), np.rint(pz)
                fx, fy, fz = np.floor(px), np.floor(py), np.floor(pz)
                i, j, k = int(fx), int(fy), int(fz)
                u, v, w = px - fx, py - fy, pz - fz
                if 0 <= i < num_x - 1 and 0 <= j < num_y - 1 and 0 <= k < num_z - 1:
                    for c in range(channels):
                        near, far = volume[c, i], volume[c, i + 1]
                        a = near[j, k] + w * (near[j, k + 1] - near[j, k])
                        b = near[j + 1, k] + w * (near[j + 1, k + 1] - near[j + 1, k])
                        d = far[j, k] + w * (far[j, k + 1] - far[j, k])
                        e = far[j + 1, k] + w * (far[j + 1, k + 1] - far[j + 1, k])
                        low, high = a + v * (b - a), d + v * (e - d)
                        out[c, x, y, z] = low + u * (high - low)
                elif -1 <= i < num_x and -1 <= j < num_y and -1 <= k < num_z:
                    for c in range(channels):
                        total = np.float32(0)
                        for corner in range(8):
                            di, dj, dk = corner >> 2, corner >> 1 & 1, corner & 1
                            weight = (u if di else 1 - u) * (v if dj else 1 - v) * (w if dk else 1 - w)
                            inside = 0 <= i + di < num_x and 0 <= j + dj < num_y and 0 <= k + dk < num_z
                            total += weight * (volume[c, i + di, j + dj, k + dk] if inside else fill)
                        out[c, x, y, z] = total
                else:
                    for c in range(channels):
                        out[c, x, y, z] = fill
