"""Draws shapes given in mm on a voxel grid, with partial volumes at their edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Box = tuple[slice, slice, slice]
Implicit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Tubes(NamedTuple):
    """Tapering capsules: `start_mm` and `end_mm` are (N, 3) RAS, the radii (N,)."""

    start_mm: np.ndarray
    end_mm: np.ndarray
    start_radius_mm: np.ndarray
    end_radius_mm: np.ndarray

    def widened(self, factor: float, extra_mm: float = 0.0) -> Tubes:
        return self._replace(
            start_radius_mm=self.start_radius_mm * factor + extra_mm,
            end_radius_mm=self.end_radius_mm * factor + extra_mm,
        )


class Canvas:
    """A CT volume being drawn.

    Args:
        shape: voxels along X, Y and Z.
        affine: (4, 4) voxel indices -> RAS mm, diagonal but for the origin.
    """

    def __init__(self, shape: tuple[int, int, int], affine: np.ndarray) -> None:
        self.hu = np.full(shape, -1000, dtype=np.float32)
        self._step_mm, self._origin_mm = np.diag(affine)[:3], affine[:3, 3]
        self.voxel_mm = np.abs(self._step_mm)

    def box(self, low_mm: np.ndarray, high_mm: np.ndarray) -> Box:
        """The voxels around a box in mm, cut at the volume's ends."""
        ends = (np.stack([low_mm, high_mm]) - self._origin_mm) / self._step_mm
        first = np.clip(np.floor(ends.min(axis=0)), 0, self.hu.shape).astype(int)
        stop = np.clip(np.ceil(ends.max(axis=0)) + 1, first, self.hu.shape).astype(int)
        return tuple(map(slice, first, stop))  # type: ignore[return-value]

    def grid(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """RAS mm of a box's voxels, three float32 arrays that broadcast to its shape."""
        axes = (
            self._origin_mm[axis] + self._step_mm[axis] * np.arange(box[axis].start, box[axis].stop)
            for axis in range(3)
        )
        return np.ix_(*(axis.astype(np.float32) for axis in axes))

    def coverage(self, box: Box, shape: Implicit) -> np.ndarray:
        """Share of each voxel of a box that lies in a shape (where `shape` is negative).

        The edge is taken as a plane through the voxel: 1/2 - g / sum_i |dg/di|.
        """
        values = shape(*self.grid(box))
        width = np.full_like(values, 1e-6)
        for axis in range(3):
            if values.shape[axis] > 1:
                width += np.abs(np.gradient(values, axis=axis))
        return np.clip(0.5 - values / width, 0, 1)

    def paint(self, box: Box, coverage: np.ndarray, hu: float | np.ndarray) -> None:
        """Blend a density into a box."""
        target = self.hu[box]
        target += coverage * (hu - target)

    def paint_tubes(self, tubes: Tubes, hu: float) -> None:
        """Blend capsules into the volume."""
        ends = np.concatenate([tubes.start_mm, tubes.end_mm])
        reach_mm = max(tubes.start_radius_mm.max(), tubes.end_radius_mm.max()) + self.voxel_mm
        box = self.box(ends.min(axis=0) - reach_mm, ends.max(axis=0) + reach_mm)
        self.paint(box, self.tube_coverage(box, tubes), hu)

    def tube_coverage(self, box: Box, tubes: Tubes) -> np.ndarray:
        """Share of each voxel of a box that lies in any of many capsules; thin ones keep their cross-section."""
        covered = np.zeros([side.stop - side.start for side in box], dtype=np.float32)
        corner = np.array([side.start for side in box])
        axes = [axis.ravel() for axis in self.grid(box)]
        tubes = Tubes(*(np.asarray(part, dtype=np.float32) for part in tubes))
        along = tubes.end_mm - tubes.start_mm
        length_mm = np.maximum(np.linalg.norm(along, axis=1), np.float32(1e-3))
        lengthwise = np.abs(along[:, 2]) / length_mm
        inplane_mm, slice_mm = np.float32(self.voxel_mm[0]), np.float32(self.voxel_mm[2])
        width_mm = lengthwise * inplane_mm + (1 - lengthwise) * (inplane_mm + slice_mm) / 2
        radius_mm = np.stack([tubes.start_radius_mm, tubes.end_radius_mm], axis=1)
        shown_mm = np.maximum(radius_mm, width_mm[:, None] / 2)
        strength = np.mean(radius_mm**2 / (shown_mm**2 + width_mm[:, None] ** 2 / 12), axis=1)
        reach_mm = (shown_mm.max(axis=1) + width_mm / 2)[:, None]
        ends = np.stack(
            [np.minimum(tubes.start_mm, tubes.end_mm) - reach_mm, np.maximum(tubes.start_mm, tubes.end_mm) + reach_mm]
        )
        ends = (ends - self._origin_mm) / self._step_mm - corner
        first = np.maximum(np.ceil(ends.min(axis=0)), 0).astype(int)
        stop = np.maximum(np.floor(ends.max(axis=0)).astype(int) + 1, 0)
        for index in range(len(length_mm)):
            (x0, y0, z0), (x1, y1, z1) = first[index], stop[index]
            sx, sy, sz = tubes.start_mm[index]
            dx, dy, dz = axes[0][x0:x1, None, None] - sx, axes[1][y0:y1, None] - sy, axes[2][z0:z1] - sz
            ax, ay, az = along[index]
            share = (dx * ax + dy * ay + dz * az) / length_mm[index] ** 2
            np.clip(share, 0, 1, out=share)
            distance = np.sqrt((dx - share * ax) ** 2 + (dy - share * ay) ** 2 + (dz - share * az) ** 2)
            start, end = shown_mm[index]
            inside = np.clip(0.5 + (start + share * (end - start) - distance) / width_mm[index], 0, 1)
            target = covered[x0:x1, y0:y1, z0:z1]
            np.maximum(target, strength[index] * inside, out=target)
        return covered


class Ripple(NamedTuple):
    """A smooth random field of mean 0 and standard deviation 1: products of three sines, summed."""

    wave_per_mm: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, length_mm: tuple[float, float], num_waves: int = 6) -> Ripple:
        """Draw waves whose length lies between two numbers."""
        wave = 2 * np.pi / rng.uniform(*length_mm, (num_waves, 3))
        return cls(wave.astype(np.float32), rng.uniform(0, 2 * np.pi, (num_waves, 3)).astype(np.float32))

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        total = np.float32(0)
        for (kx, ky, kz), (px, py, pz) in zip(self.wave_per_mm, self.phase, strict=True):
            total = total + np.sin(x * kx + px) * np.sin(y * ky + py) * np.sin(z * kz + pz)
        return total * np.float32(np.sqrt(8 / len(self.phase)))  # type: ignore[return-value]
