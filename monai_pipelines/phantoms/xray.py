"""X-rays a chest: line integrals on a detector, then the processing of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, rotate

from monai_pipelines.phantoms.canvas import Tubes
from monai_pipelines.phantoms.chest import FINDINGS, Chest, draw_chest, paint_chest
from monai_pipelines.phantoms.fields import Seed

MU_WATER_PER_MM = 0.02
LETTERS = {"R": ("1110", "1001", "1110", "1010", "1001"), "L": ("1000", "1000", "1000", "1000", "1111")}


class Box(NamedTuple):
    """A finding on the image: its first column and row, and its size, in pixels."""

    finding: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class ChestXray:
    """An X-ray with its truth.

    Args:
        signal: (H, W) float32, high where dense, the patient's right on the left; the window shows 0 to 1.
        view: where the tube stands: behind the patient (PA) or in front (AP).
        pixel_mm: side of a pixel.
        boxes: one per patch, nodule or side with fluid.
    """

    signal: np.ndarray
    view: Literal["AP", "PA"]
    pixel_mm: float
    boxes: list[Box]


class Beam(NamedTuple):
    """A cone of rays: the source `source_mm` before (+, AP) or behind (-, PA) the patient's middle plane."""

    source_mm: float
    yaw: float
    pitch: float
    center_mm: tuple[float, float]
    pixel_mm: float
    shape: tuple[int, int]

    def project(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and magnification of points, (N, 3) RAS."""
        x, y, z = points_mm.T
        enlarged = self.source_mm / (self.source_mm - y)
        row = (self.shape[0] - 1) / 2 - (z * enlarged + self.pitch * y - self.center_mm[1]) / self.pixel_mm
        column = (self.shape[1] - 1) / 2 - (x * enlarged + self.yaw * y - self.center_mm[0]) / self.pixel_mm
        return row, column, enlarged

    def through_volume(self, hu: np.ndarray, axes_mm: tuple[np.ndarray, ...]) -> np.ndarray:
        """Sum of HU x mm along the rays: every slab along y lands enlarged and shifted on the detector."""
        x, y, z = (axis.ravel() for axis in axes_mm)
        image = np.zeros(self.shape, dtype=np.float32)
        for index, depth in enumerate(y):
            rows, _, _ = self.project(np.stack([0 * z, 0 * z + depth, z], axis=1))
            _, columns, _ = self.project(np.stack([x, 0 * x + depth, 0 * x], axis=1))
            image += _hat(rows, self.shape[0]) @ hu[:, index].T @ _hat(columns, self.shape[1]).T
        return image * (y[1] - y[0])

    def through_tubes(self, tubes: Tubes, hu: np.ndarray) -> np.ndarray:
        """Sum of HU x mm through tubes, `hu` (N,); thin ones keep their cross-section."""
        starts, ends = self.project(tubes.start_mm), self.project(tubes.end_mm)
        radius = np.stack([tubes.start_radius_mm * starts[2], tubes.end_radius_mm * ends[2]], 1) / self.pixel_mm
        length_mm = np.linalg.norm(tubes.end_mm - tubes.start_mm, axis=1)
        start, end = np.stack(starts[:2], axis=1), np.stack(ends[:2], axis=1)
        length = np.maximum(np.linalg.norm(end - start, axis=1), 0.5)
        steep = np.minimum(length_mm / self.pixel_mm / length, 2)
        thin = radius.max(axis=1) < 1.7
        volume = hu * np.pi * radius.mean(axis=1) ** 2 * length * steep
        image = self._thin(start[thin], end[thin], volume[thin])
        for index in np.flatnonzero(~thin):
            self._thick(image, start[index], end[index], radius[index], hu[index] * steep[index])
        return image * self.pixel_mm

    def _thin(self, start: np.ndarray, end: np.ndarray, volume: np.ndarray) -> np.ndarray:
        """Points along the tubes that carry their volume, smoothed."""
        share = (np.arange(24)[:, None] + 0.5) / 24
        points = np.rint(start[:, None] + share * (end - start)[:, None]).astype(int).reshape(-1, 2)
        inside = ((points >= 0) & (points < self.shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(points[inside].T), self.shape)
        image = np.bincount(flat, np.repeat(volume / 24, 24)[inside], self.shape[0] * self.shape[1])
        return gaussian_filter(image.reshape(self.shape).astype(np.float32), 0.8)

    def _thick(self, image: np.ndarray, start: np.ndarray, end: np.ndarray, radius: np.ndarray, hu: float) -> None:
        """Adds hu x the chords through one tube; its ends fade over a pixel, so that tubes join."""
        reach = radius.max() + 1
        length = max(float(np.hypot(*(end - start))), 0.5)
        low = np.maximum(np.floor(np.minimum(start, end) - reach), 0).astype(int)
        high = np.clip(np.ceil(np.maximum(start, end) + reach) + 1, low, self.shape).astype(int)
        row, column = np.ix_(np.arange(low[0], high[0]) - start[0], np.arange(low[1], high[1]) - start[1])
        dr, dc = ((end - start) / length).tolist()
        along, across = row * dr + column * dc, row * dc - column * dr
        wide = radius[0] + np.clip(along / length, 0, 1) * (radius[1] - radius[0])
        fade = np.clip(along + 0.5, 0, 1) * np.clip(length - along + 0.5, 0, 1)
        image[low[0] : high[0], low[1] : high[1]] += hu * fade * 2 * np.sqrt(np.maximum(wide**2 - across**2, 0))


def _hat(places: np.ndarray, size: int) -> np.ndarray:
    """(size, N) float32: linear interpolation from evenly spaced places to pixels 0, 1, ..."""
    step = abs(places[1] - places[0])
    return np.maximum(1 - np.abs(np.arange(size)[:, None] - places) / step, 0).astype(np.float32)


def chest_xray(seed_or_rng: Seed, findings: Sequence[str] = (), size: int = 256) -> ChestXray:
    """Draw one patient and X-ray it.

    The line integrals of mu = 0.02/mm (1 + HU / 1000) give exp(-integral) at the detector, plus scatter, blur and
    quantum noise; the image is its logarithm, windowed.

    Args:
        seed_or_rng: same seed, same image.
        findings: any of opacity, nodule, effusion.
        size: columns; rows follow the shape of the chest.

    Raises:
        ValueError: an unknown finding.

    Example:
        >>> xray = chest_xray(0, ("opacity",), size=96)
        >>> xray.signal.dtype, xray.signal.shape[1], xray.boxes[0].finding
        (dtype('float32'), 96, 'opacity')
    """
    if unknown := sorted(set(findings) - set(FINDINGS)):
        raise ValueError(f"chest_xray: findings must be of {', '.join(FINDINGS)}, got {unknown}")
    rng = np.random.default_rng(seed_or_rng)
    anatomy, exposure = rng.spawn(2)
    return expose(draw_chest(anatomy, findings), exposure, size)


def expose(chest: Chest, rng: np.random.Generator, size: int) -> ChestXray:
    """Position the patient, expose and process; `rng` draws all but the anatomy."""
    patient = chest.patient
    right, left = patient.lungs
    view: Literal["AP", "PA"] = "PA" if rng.random() < 0.6 else "AP"
    source_mm = -rng.uniform(1500, 1900) if view == "PA" else rng.uniform(1000, 1400)
    top = max(right.apex_mm, left.apex_mm) + rng.uniform(10, 38)
    bottom = right.base_mm + rng.uniform(-5, 30)
    wide = 2 * (right.half_mm[0] + rng.uniform(16, 42))
    pixel_mm = float(wide) / size
    shape = (int((top - bottom) / pixel_mm), size)
    margin = size // 12
    beam = Beam(
        source_mm,
        yaw=rng.normal(0, 0.04),
        pitch=rng.normal(0.05 if view == "AP" else 0, 0.05),
        center_mm=(rng.normal(0, 5), (top + bottom) / 2),
        pixel_mm=pixel_mm,
        shape=(shape[0] + 2 * margin, shape[1] + 2 * margin),
    )
    roll_deg = rng.normal(0, 2.5)

    def turned(image: np.ndarray) -> np.ndarray:
        return rotate(image, roll_deg, reshape=False, order=1, mode="nearest")[margin:-margin, margin:-margin]

    canvas, added = paint_chest(chest)
    everywhere = canvas.box(np.full(3, -1e4), np.full(3, 1e4))
    path = beam.through_volume(np.maximum(canvas.hu + 1000, 0), canvas.grid(everywhere))
    path += beam.through_tubes(chest.tubes, chest.tube_hu)
    signal = _detect(turned(path.astype(np.float32)) * (MU_WATER_PER_MM / 1000), rng, pixel_mm)
    _mark(signal, rng)
    deposits = [(kind, turned(beam.through_volume(hu, canvas.grid(where)))) for kind, where, hu in added]
    return ChestXray(signal, view, pixel_mm, [_box(kind, depth) for kind, depth in deposits if depth.any()])


def _detect(integral: np.ndarray, rng: np.random.Generator, pixel_mm: float) -> np.ndarray:
    """Scatter, blur, quantum noise, logarithm, large structures damped, window."""
    primary = np.exp(-integral)
    scatter = gaussian_filter(primary, 28 / pixel_mm)
    light = gaussian_filter(primary + rng.uniform(0.1, 0.45) * scatter, 0.3 / pixel_mm)
    photons = 10 ** rng.uniform(4.0, 5.2)
    light = light + np.sqrt(light / photons) * rng.standard_normal(light.shape, dtype=np.float32)
    signal = -np.log(np.maximum(light, 2e-4))
    signal -= rng.uniform(0.1, 0.45) * gaussian_filter(signal, 32 / pixel_mm)
    inner = signal[signal.shape[0] // 10 : -signal.shape[0] // 10, signal.shape[1] // 8 : -signal.shape[1] // 8]
    low, high = np.quantile(inner, [0.02, 0.98]).tolist()
    low, high = low - rng.uniform(0.1, 0.5) * (high - low), high + rng.uniform(-0.05, 0.25) * (high - low)
    gray = (signal - low) / (high - low)
    return (np.sign(gray) * np.abs(gray) ** rng.uniform(0.8, 1.3)).astype(np.float32)


def _mark(signal: np.ndarray, rng: np.random.Generator) -> None:
    """The shutters of the tube and a lead letter for the side."""
    if rng.random() < 0.4:
        top, left, bottom, right = (rng.uniform(0, 0.05, 4) * signal.shape[1]).astype(int)
        shut = np.ones(signal.shape, dtype=bool)
        shut[top : signal.shape[0] - bottom, left : signal.shape[1] - right] = False
        signal[shut] = 0
    if rng.random() < 0.7:
        side = "RL"[rng.integers(2)]
        scale = max(signal.shape[1] // 80, 1)
        letter = np.kron([[int(dot) for dot in row] for row in LETTERS[side]], np.ones((scale, scale)))
        row = int(rng.uniform(0.06, 0.3) * signal.shape[0])
        column = int(rng.uniform(0.05, 0.08) * signal.shape[1])
        column = column if side == "R" else signal.shape[1] - column - letter.shape[1]
        target = signal[row : row + letter.shape[0], column : column + letter.shape[1]]
        np.maximum(target, np.float32(1.1) * letter, out=target)


def _box(finding: str, depth: np.ndarray) -> Box:
    """Around the pixels where a finding has at least a quarter of its greatest depth."""
    rows, columns = np.nonzero(depth >= 0.25 * depth.max())
    x, y = int(columns.min()), int(rows.min())
    return Box(finding, x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y)
