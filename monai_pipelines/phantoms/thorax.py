"""Draws a chest CT of a synthetic patient, with the true lungs and lesions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from monai_pipelines.phantoms.anatomy import Lesion, Lung, Patient, Spot, draw_patient, ellipsoid
from monai_pipelines.phantoms.canvas import Box, Canvas
from monai_pipelines.phantoms.fields import Seed
from monai_pipelines.phantoms.scanners import SCANNERS, Scanner


@dataclass(frozen=True)
class ThoraxScan:
    """A scan with its truth.

    Args:
        hu: (X, Y, Z) int16.
        affine: (4, 4) float64, voxel indices -> RAS mm.
        lungs: (X, Y, Z) bool, the lungs with everything in them.
        lesions: none in a healthy scan.
    """

    hu: np.ndarray
    affine: np.ndarray
    lungs: np.ndarray
    lesions: list[Lesion]


def thorax_phantom(
    seed_or_rng: Seed,
    *,
    diseased: bool,
    matrix: int = 256,
    slice_mm: float | None = None,
    lesion_mm: tuple[float, float] = (20, 40),
    scanner: Scanner | None = None,
) -> ThoraxScan:
    """Draw one patient and scan it.

    Args:
        seed_or_rng: same seed, same scan.
        diseased: with one to four lesions, or none.
        matrix: rows and columns.
        slice_mm: distance between slices; None: that of the scanner.
        lesion_mm: smallest and largest lesion diameter.
        scanner: None draws one of `SCANNERS`.

    Raises:
        ValueError: `lesion_mm` does not rise from above 0.

    Example:
        >>> scan = thorax_phantom(0, diseased=True, matrix=64, slice_mm=10)
        >>> scan.hu.dtype, scan.lungs.shape == scan.hu.shape, len(scan.lesions) > 0
        (dtype('int16'), True, True)
    """
    rng = np.random.default_rng(seed_or_rng)
    patient = draw_patient(rng, diseased, lesion_mm)
    if scanner is None:
        scanner = SCANNERS[rng.integers(len(SCANNERS))]
    return scan_patient(patient, scanner, rng, matrix, slice_mm)


def scan_patient(
    patient: Patient, scanner: Scanner, rng: np.random.Generator, matrix: int, slice_mm: float | None
) -> ThoraxScan:
    """Scan a patient; `rng` gives the position on the table and the noise."""
    lung, other = patient.lungs
    step_mm = np.array([-scanner.fov_mm / matrix, -scanner.fov_mm / matrix, slice_mm or scanner.slice_mm])
    low = lung.base_mm - rng.uniform(25, 40)
    high = max(lung.apex_mm, other.apex_mm) + rng.uniform(25, 40)
    shape = (matrix, matrix, int(np.ceil((high - low) / step_mm[2])))
    center = np.array([0, -12, 0]) + rng.uniform(-6, 6, 3)
    affine = np.diag([*step_mm, 1.0])
    affine[:2, 3] = center[:2] - step_mm[:2] * (matrix - 1) / 2
    affine[2, 3] = low

    canvas = Canvas(shape, affine)
    _paint_table(canvas, scanner, float(-patient.body_half_mm[1]) - scanner.table_gap_mm, float(center[0]))
    paint_body(canvas, patient)
    lungs = np.zeros(shape, dtype=bool)
    parts = [paint_tissue(canvas, patient, side) for side in patient.lungs]
    _paint_spots(canvas, [spot for spot in patient.spots if spot.lesion.kind == "ground_glass"])
    for (box, share), vessels in zip(parts, patient.vessels, strict=True):
        canvas.paint(box, share * canvas.tube_coverage(box, vessels), patient.blood_hu)
        lungs[box] |= share >= 0.5
    _paint_spots(canvas, [spot for spot in patient.spots if spot.lesion.kind != "ground_glass"])
    canvas.paint_tubes(patient.main_airways.widened(1.1, 1.0), 20)
    canvas.paint_tubes(patient.airways.widened(1.15, 0.6), 0)
    canvas.paint_tubes(patient.main_airways, -995)
    canvas.paint_tubes(patient.airways, -990)

    noise = _reconstruct(rng.standard_normal(shape, dtype=np.float32), scanner)
    noise *= scanner.noise_hu * rng.uniform(0.8, 1.3) / noise.std()
    hu = _reconstruct(canvas.hu, scanner) + noise + rng.normal(0, 4)
    hu = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    if scanner.outside_hu is not None:
        from_center = np.arange(matrix) - (matrix - 1) / 2
        hu[np.hypot(*np.ix_(from_center, from_center)) > matrix / 2] = scanner.outside_hu
    return ThoraxScan(hu, affine, lungs, [spot.lesion for spot in patient.spots])


def _reconstruct(volume: np.ndarray, scanner: Scanner) -> np.ndarray:
    """The kernel, in the plane of the slices."""
    sigma_mm = 0.8 if scanner.kernel == "soft" else 1.2
    sigma = sigma_mm * volume.shape[0] / scanner.fov_mm
    smooth = gaussian_filter(volume, (sigma, sigma, 0), truncate=3)
    return smooth if scanner.kernel == "soft" else volume + 0.6 * (volume - smooth)


def _paint_table(canvas: Canvas, scanner: Scanner, top_mm: float, center_mm: float) -> None:
    """A foam slab in a thin shell."""

    def slab(shell_mm: float, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x = x - center_mm
        depth = np.sqrt(x**2 + (y - top_mm - 400) ** 2) - 414 if scanner.table == "curved" else top_mm - 14 - y
        return np.maximum(np.abs(depth) - 14, np.abs(x) - 185) + shell_mm

    box = canvas.box(np.array([-1e3, top_mm - 45, -1e3]), np.array([1e3, top_mm + 70, 1e3]))
    one_slice = (*box[:2], slice(0, 1))
    canvas.paint(box, canvas.coverage(one_slice, partial(slab, 0.0)), -150)
    canvas.paint(box, canvas.coverage(one_slice, partial(slab, 2.5)), -960)


def paint_body(canvas: Canvas, patient: Patient) -> None:
    """Everything but the lungs and the airways."""
    right, left = patient.lungs
    half_x, half_y = patient.body_half_mm.tolist()

    def body(skin_mm: float, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        rise = np.clip((z - right.apex_mm + 25) / 75, 0, 1)
        rise = rise * rise * (3 - 2 * rise)
        wide, deep = (half_x - skin_mm) * (1 - 0.55 * rise), (half_y - skin_mm) * (1 - 0.4 * rise)
        return np.abs(x / wide) ** 2.6 + np.abs(y / deep) ** 2.6 - 1

    def gas(center_mm: np.ndarray, half_mm: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Kept 10 mm from the lung."""
        under_dome = ellipsoid(-x, y, z, left.dome_mm, left.dome_half_mm)
        return np.maximum(ellipsoid(x, y, z, center_mm, half_mm), np.minimum(under_dome, z - left.base_mm) + 10)

    neck = canvas.box(np.array([-1e4, -1e4, right.apex_mm - 25]), np.full(3, 1e4))
    trunk = (*neck[:2], slice(0, neck[2].start))
    for skin_mm, hu in ((0.0, -100.0), (patient.fat_mm, 45.0)):
        canvas.paint(neck, canvas.coverage(neck, partial(body, skin_mm)), hu)
        canvas.paint(trunk, canvas.coverage((*neck[:2], slice(0, 1)), partial(body, skin_mm)), hu)
    _paint_ellipsoid(canvas, right.dome_mm, right.dome_half_mm, 60)
    _paint_ellipsoid(canvas, right.heart_mm, right.heart_half_mm - 4, patient.blood_hu)
    for tubes, hu in patient.bones:
        canvas.paint_tubes(tubes, hu)
    canvas.paint_tubes(patient.aorta, patient.blood_hu)
    for center, half in patient.gas:
        box = canvas.box(center - half - 8, center + half + 8)
        canvas.paint(box, canvas.coverage(box, partial(gas, center, half)), -1000)


def _paint_ellipsoid(canvas: Canvas, center_mm: np.ndarray, half_mm: np.ndarray, hu: float) -> None:
    box = canvas.box(center_mm - half_mm - 8, center_mm + half_mm + 8)
    canvas.paint(box, canvas.coverage(box, partial(ellipsoid, center_mm=center_mm, half_mm=half_mm)), hu)


def paint_tissue(canvas: Canvas, patient: Patient, lung: Lung) -> tuple[Box, np.ndarray]:
    """Paint a lung without its vessels; returns where it is and its share of each voxel there."""
    box = canvas.box(*lung.bounds_mm())
    x, y, z = canvas.grid(box)
    share = canvas.coverage(box, lung.shape)
    half_y = lung.half_mm[1].item()
    tissue = patient.lung_hu - patient.gravity_hu_per_mm * y + patient.dependent_hu * np.exp(-(y + half_y) / 12)
    tissue = tissue + patient.texture_hu * patient.texture(x, y, z)
    for center, normal, radius_mm, half_mm, hu in patient.plates:
        dx, dy, dz = (axis - c for axis, c in zip((x, y, z), center.tolist(), strict=True))
        nx, ny, nz = normal.tolist()
        depth = dx * nx + dy * ny + dz * nz
        across = np.sqrt(np.maximum(dx**2 + dy**2 + dz**2 - depth**2, 0))
        plate = np.exp(-((depth / half_mm) ** 2)) * np.clip((radius_mm - across) / 4, 0, 1)
        tissue += plate * (hu - tissue)
    canvas.paint(box, share, tissue)
    return box, share


def _paint_spots(canvas: Canvas, spots: list[Spot]) -> None:
    for spot in spots:
        position, reach_mm = np.array(spot.lesion.position_mm), 0.75 * spot.lesion.diameter_mm + canvas.voxel_mm
        box = canvas.box(position - reach_mm, position + reach_mm)
        canvas.paint(box, canvas.coverage(box, spot.shape) * canvas.coverage(box, spot.lung.shape), spot.hu)
