"""The passes over all voxels of a volume, compiled (package numba): block means, resampling, warping, noise.

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
def _at_the_edge(volume: Array, px: np.float32, py: np.float32, pz: np.float32, fill: np.float32) -> np.float32:
    """The trilinear value of a volume (X, Y, Z) at a point some of whose neighbors are ``fill``."""
    fx, fy, fz = np.floor(px), np.floor(py), np.floor(pz)
    num_x, num_y, num_z = volume.shape
    i, j, k = int(fx), int(fy), int(fz)
    u, v, w = px - fx, py - fy, pz - fz
    total = np.float32(0)
    for corner in range(8):
        di, dj, dk = corner >> 2, corner >> 1 & 1, corner & 1
        weight = (u if di else 1 - u) * (v if dj else 1 - v) * (w if dk else 1 - w)
        inside = 0 <= i + di < num_x and 0 <= j + dj < num_y and 0 <= k + dk < num_z
        total += weight * (volume[i + di, j + dj, k + dk] if inside else fill)
    return total


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

        out[c, x, y, z] = volume[c] at matrix (x, y, z, 1) + sum over k of lines[:, x, y, k] response[k, z]

    ``matrix`` is (3, 4) and ``lines`` (3, X, Y, K), of the output's X and Y, both float32; undeformed, K is 0.
    Between voxels the value is trilinear, or that of the nearest one; outside it is ``fill``.
    """
    channels, num_x, num_y, num_z = volume.shape
    depth, values = out.shape[3], volume.reshape(-1)
    next_x, next_y, next_z = np.uintp(num_y * num_z), np.uintp(num_z), np.uintp(1)  # unsigned: no index from the end
    at, share = np.empty((3, depth), np.float32), np.empty((3, depth), np.float32)
    corner, within, beyond = np.empty(depth, np.int64), np.empty(depth, np.bool_), np.empty(depth, np.bool_)
    for x in range(first, last):
        for y in range(out.shape[2]):
            for axis in range(3):
                line, start = at[axis], matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 3]
                for z in range(depth):
                    line[z] = start + matrix[axis, 2] * np.float32(z)
                for k in range(lines.shape[3]):
                    point, along = lines[axis, x, y, k], response[k]
                    for z in range(depth):
                        line[z] += point * along[z]
                if nearest:
                    for z in range(depth):
                        line[z] = np.rint(line[z])
            (px, py, pz), (u, v, w) = (at[0], at[1], at[2]), (share[0], share[1], share[2])
            for z in range(depth):
                in_x, in_y, in_z = 0 <= px[z] < num_x - 1, 0 <= py[z] < num_y - 1, 0 <= pz[z] < num_z - 1
                within[z] = in_x & in_y & in_z
                in_x, in_y, in_z = -1 < px[z] < num_x, -1 < py[z] < num_y, -1 < pz[z] < num_z
                beyond[z] = not (in_x & in_y & in_z)
            for z in range(depth):
                i, j, k = int(px[z]), int(py[z]), int(pz[z])
                u[z], v[z], w[z] = px[z] - i, py[z] - j, pz[z] - k
                corner[z] = (i * num_y + j) * num_z + k
            for c in range(channels):
                target = out[c, x, y]
                for z in range(depth):
                    if not within[z]:
                        target[z] = fill if beyond[z] else _at_the_edge(volume[c], px[z], py[z], pz[z], fill)
                        continue
                    near = np.uintp(corner[z] + c * num_x * num_y * num_z)
                    far = near + next_x
                    a = values[near] + w[z] * (values[near + next_z] - values[near])
                    d = values[far] + w[z] * (values[far + next_z] - values[far])
                    near, far = near + next_y, far + next_y
                    b = values[near] + w[z] * (values[near + next_z] - values[near])
                    e = values[far] + w[z] * (values[far + next_z] - values[far])
                    low, high = a + v[z] * (b - a), d + v[z] * (e - d)
                    target[z] = low + u[z] * (high - low)


@_compiled
def add_noise(values: Array, out: Array, quantiles: Array, std: np.float32, seed: int, first: int, last: int) -> None:
    """Groups of four voxels, ``first`` to ``last``, of ``out = values + std * quantiles[bits]`` (N,) float32.

    ``bits`` are 16 bits of the SplitMix64 word of the seed and the group's index.
    """
    for n in range(first, last):
        word = np.uint64(seed) + np.uint64(n + 1) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
        if 4 * n + 4 <= len(values):  # a fixed length, which the compiler unrolls
            for voxel in range(4):
                bits = word >> np.uint64(16 * voxel) & np.uint64(0xFFFF)
                out[4 * n + voxel] = values[4 * n + voxel] + std * quantiles[bits]
        else:
            for voxel in range(len(values) - 4 * n):
                bits = word >> np.uint64(16 * voxel) & np.uint64(0xFFFF)
                out[4 * n + voxel] = values[4 * n + voxel] + std * quantiles[bits]
