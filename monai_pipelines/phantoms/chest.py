"""Turns patients of the chest CTs into patients for an X-ray: detailed bones, shoulders, large findings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from monai_pipelines.phantoms.anatomy import Lung, Patient, chain, draw_patient, ellipsoid, join
from monai_pipelines.phantoms.canvas import Box, Canvas, Implicit, Ripple, Tubes
from monai_pipelines.phantoms.thorax import paint_body, paint_tissue

FINDINGS = ("opacity", "nodule", "effusion")
STEP_MM = (3.2, 5.0, 3.2)


class Deposit(NamedTuple):
    """A finding in a lung; its edge is `edge_mm` wide."""

    kind: str
    lung: Lung
    shape: Implicit
    hu: float
    edge_mm: float


class Chest(NamedTuple):
    """A patient for an X-ray: bones and vessels are `tubes`, `tube_hu` (N,) above what surrounds them."""

    patient: Patient
    breast_mm: float
    tubes: Tubes
    tube_hu: np.ndarray
    deposits: list[Deposit]


def draw_chest(rng: np.random.Generator, findings: Sequence[str]) -> Chest:
    """Draw a patient with these findings; they come last, so that all else is the same in every class."""
    patient = draw_patient(rng, diseased=False, lesion_mm=(20, 40))
    girth = rng.uniform(0, 22)
    heart = rng.uniform(0.85, 1.2)
    right, left = (_flatter(lung, heart) for lung in patient.lungs)
    lungs = (right, left)
    patient = patient._replace(
        lungs=lungs,
        body_half_mm=patient.body_half_mm + girth,
        fat_mm=patient.fat_mm + girth / 2,
        bones=[],
        dependent_hu=patient.dependent_hu / 4,
        blood_hu=50.0,
        spots=[],
    )
    breast_mm = rng.uniform(18, 45) if rng.random() < 0.5 else 0.0
    solid = _draw_bones(rng, patient)
    for lung, tubes in zip(lungs, patient.vessels, strict=True):
        in_lung = lung.shape(*((tubes.start_mm + tubes.end_mm) / 2).T) < 0
        solid.append((Tubes(*(part[in_lung] for part in tubes)), patient.blood_hu - patient.lung_hu))
    draw = {"opacity": _draw_opacities, "nodule": _draw_nodules, "effusion": _draw_effusion}
    deposits = [deposit for kind in findings for deposit in draw[kind](rng, lungs)]
    hu = np.concatenate([np.full(len(tubes.start_mm), hu) for tubes, hu in solid])
    return Chest(patient, breast_mm, join([tubes for tubes, _ in solid]), hu, deposits)


def paint_chest(chest: Chest) -> tuple[Canvas, list[tuple[str, Box, np.ndarray]]]:
    """The chest in HU without its solid tubes, and for every deposit its kind, its box and the HU it added there."""
    patient = chest.patient
    right = patient.lungs[0]
    reach = np.array([patient.body_half_mm[0] + 90, patient.body_half_mm[1] + 25])
    low = np.array([*-reach, right.base_mm - 60])
    high = np.array([*reach, right.apex_mm + 75])
    shape = tuple(int(n) for n in np.ceil((high - low) / STEP_MM))
    affine = np.diag([*STEP_MM, 1.0])
    affine[:3, 3] = low
    canvas = Canvas(shape, affine)  # type: ignore[arg-type]
    for outer in _shoulders(patient) + _breasts(patient, chest.breast_mm):
        everywhere = canvas.box(low, high)
        canvas.paint(everywhere, canvas.coverage(everywhere, outer), -20)
    paint_body(canvas, patient)
    parts = {lung.side: paint_tissue(canvas, patient, lung) for lung in patient.lungs}
    canvas.paint_tubes(patient.main_airways, -995)
    added = []
    for kind, lung, inside, hu, edge_mm in chest.deposits:
        box, share = parts[lung.side]
        depth = np.clip(0.5 - inside(*canvas.grid(box)) / edge_mm, 0, 1)
        before = canvas.hu[box].copy()
        canvas.paint(box, share * depth * (before < hu), hu)
        added.append((kind, box, canvas.hu[box] - before))
    return canvas, added


def _flatter(lung: Lung, heart: float) -> Lung:
    """The lung with the wide, flat dome of full inspiration, and a heart of another size."""
    top_mm = float(lung.dome_mm[2] + lung.dome_half_mm[2]) - 6
    half = np.array([0.92 * lung.half_mm[0], 1.3 * lung.half_mm[1], 1.7 * lung.dome_half_mm[2]])
    dome = np.array([lung.dome_mm[0] - 8, lung.dome_mm[1], top_mm - half[2]])
    heart_half = lung.heart_half_mm * [heart, heart, 0.5 + heart / 2]
    shift = np.array([-30 * (heart - 1) * lung.side, 0, heart_half[2] - lung.heart_half_mm[2] - 8])
    return lung._replace(
        dome_mm=dome, dome_half_mm=half, base_mm=lung.base_mm - 12, heart_mm=lung.heart_mm + shift,
        heart_half_mm=heart_half,
    )  # fmt: skip


def _shoulders(patient: Patient) -> list[Implicit]:
    """Neck to shoulder and upper arm, both sides."""
    apex, wide = patient.lungs[0].apex_mm, float(patient.body_half_mm[0])
    neck, joint, elbow = [50, -20, apex + 22], [wide + 12, -15, apex - 30], [wide + 75, -10, apex - 230]
    mirror = np.array([-1, 1, 1])
    return [
        partial(_capsule, np.array(a) * side, np.array(b) * side, radius_mm)
        for side in (1, mirror)
        for a, b, radius_mm in ((neck, joint, 40.0), (joint, elbow, 45.0))
    ]


def _breasts(patient: Patient, size_mm: float) -> list[Implicit]:
    half_x, half_y = patient.body_half_mm
    return [
        partial(
            ellipsoid,
            center_mm=np.array([side * 0.52 * half_x, 0.9 * half_y, -12 - size_mm / 2]),
            half_mm=np.array([0.4 * half_x, size_mm, 35 + size_mm]),
        )
        for side in (1, -1)
        if size_mm
    ]


def _capsule(a: np.ndarray, b: np.ndarray, radius_mm: float, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    (ax, ay, az), (dx, dy, dz) = a.tolist(), (b - a).tolist()
    share = np.clip(((x - ax) * dx + (y - ay) * dy + (z - az) * dz) / (dx**2 + dy**2 + dz**2), 0, 1)
    distance = np.sqrt((x - ax - share * dx) ** 2 + (y - ay - share * dy) ** 2 + (z - az - share * dz) ** 2)
    return distance - radius_mm


def _draw_bones(rng: np.random.Generator, patient: Patient) -> list[tuple[Tubes, float]]:
    """Ribs as bands with dense borders, vertebrae, collarbones, shoulder blades, upper arms."""
    right = patient.lungs[0]
    (half_x, half_y), apex, base = right.half_mm, right.apex_mm, right.base_mm + 12
    back, mineral = 12 - half_y, rng.uniform(0.75, 1.3)
    slope, spacing = rng.uniform(24, 40), rng.uniform(22, 26)
    bones: list[tuple[Tubes, float]] = []

    def add(points: np.ndarray, radius_mm: float, hu: float) -> None:
        bones.append((chain(points, radius_mm), hu * mineral))

    turn = np.linspace(-1.42, 1.0, 15)
    for side in (1, -1):
        mirror = np.array([side, 1, 1])
        for level in np.arange(apex + 6, base - 10, -spacing):
            z = level - slope * (turn + 1.42) ** 1.15
            taper = np.sqrt(1 - np.clip((z - apex + 110) / 110, 0, 0.97) ** 2)
            x = (half_x * taper + 6) * np.maximum(np.cos(turn), 0) ** 0.8 + 48 * (1 - taper)
            y = (half_y * taper + 6) * np.sin(turn) - 15 * (1 - taper)
            middle = np.stack([x, y, z], axis=1) * mirror
            add(middle, 4.6, 650)
            for border in (5.0, -5.0):
                add(middle + [0, 0, border], 2.0, 1500)
        collarbone = np.array([[20, 0, -26], [55, -12, -20], [90, -22, -4], [112, -32, -1], [128, -40, -6]])
        collarbone = collarbone * [half_x / 124, 1, 1] + [0, half_y - 8, apex + rng.uniform(-4, 8)]
        add(collarbone * mirror, 5.5, 800)
        add((collarbone + [0, 0, 4.5]) * mirror, 1.8, 1200)
        blade = np.array([[0, 0, 0], [-9, 0, -55], [2, 0, -105], [14, 0, -60], [30, 8, -12], [0, 0, 0]])
        blade = blade + [half_x - rng.uniform(4, 18), -half_y - 6, apex - 12]
        add(blade * mirror, 2.2, 1300)
        joint = np.array([patient.body_half_mm[0] + 8, -15, apex - 28])
        add((joint + [[0, 0, 20], [0, 0, -20]]) * mirror, 20, 500)
        add((joint + [[6, 0, -15], [60, 5, -190]]) * mirror, 11, 800)
    for z in np.arange(base - 60, apex + 70, 24):
        add(np.array([[0, back, z - 9.5], [0, back, z + 9.5]]), 15, 260)
        for end in (-10, 10):
            add(np.array([[-14, back, z + end], [14, back, z + end]]), 1.6, 1300)
        for side in (-11, 11):
            add(np.array([[side, back - 26, z + 3], [side, back - 12, z + 3]]), 4.0, 900)
        add(np.array([[0, back - 22, z - 4], [0, back - 42, z - 14]]), 3.0, 1000)
    return bones


def _draw_opacities(rng: np.random.Generator, lungs: tuple[Lung, Lung]) -> list[Deposit]:
    """One to three patches of consolidation or ground glass, 45 to 105 mm."""
    deposits = []
    for _ in range(rng.integers(1, 4)):
        lung = lungs[rng.integers(2)]
        ground_glass = rng.random() < 0.4
        half = rng.uniform(22, 52, 3) * (1.25 if ground_glass else 1.0)
        center = _place(rng, lung, 14)
        ripple = Ripple.draw(rng, (35, 110))
        shape = partial(_patch, center, half, 0.35, ripple)
        hu = rng.uniform(-560, -400) if ground_glass else rng.uniform(-220, 20)
        deposits.append(Deposit("opacity", lung, shape, hu, 30.0 if ground_glass else 16.0))
    return deposits


def _draw_nodules(rng: np.random.Generator, lungs: tuple[Lung, Lung]) -> list[Deposit]:
    """One to three round nodules, 16 to 34 mm, not hidden by heart or liver."""
    deposits = []
    for _ in range(rng.integers(1, 4)):
        lung = lungs[rng.integers(2)]
        half = rng.uniform(9, 19) * rng.uniform(0.9, 1.1, 3)
        shape = partial(_patch, _place(rng, lung, 14), half, 0.06, Ripple.draw(rng, (20, 60)))
        deposits.append(Deposit("nodule", lung, shape, rng.uniform(60, 350), 3.0))
    return deposits


def _draw_effusion(rng: np.random.Generator, lungs: tuple[Lung, Lung]) -> list[Deposit]:
    """Fluid on the diaphragm of one lung or both, climbing along the chest wall."""
    first = rng.integers(2)
    sides = (lungs[first],) if rng.random() < 0.75 else lungs
    return [
        Deposit("effusion", lung, partial(_fluid, lung, rng.uniform(0, 48), rng.uniform(25, 70)), 15.0, 6.0)
        for lung in sides
    ]


def _place(rng: np.random.Generator, lung: Lung, depth_mm: float) -> np.ndarray:
    """A point beside heart and spine and above the dome, where an X-ray shows the lung."""
    points = lung.points(rng, 60, depth_mm)
    across = points[:, 0] * lung.side
    top_mm = lung.dome_mm[2] + lung.dome_half_mm[2]
    heart = lung.heart_mm[0] + 0.8 * lung.heart_half_mm[0]
    visible = points[(points[:, 2] > top_mm - 5) & (across > np.where(points[:, 2] < 10, max(heart, 38), 38))]
    return visible[0] if len(visible) else points[0]


def _patch(
    center_mm: np.ndarray, half_mm: np.ndarray, roughness: float, ripple: Ripple, *xyz: np.ndarray
) -> np.ndarray:
    x, y, z = xyz
    return ellipsoid(x, y, z, center_mm, half_mm) + roughness * float(half_mm.min()) * ripple(x, y, z)


def _fluid(lung: Lung, level_mm: float, climb_mm: float, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Below a bowl-shaped surface over the diaphragm."""
    across = np.clip((x * lung.side - lung.mediastinum_mm) / (lung.half_mm[0] - lung.mediastinum_mm), 0, 1)
    floor_mm = lung.dome_mm[2] + 0.72 * lung.dome_half_mm[2]
    return z - (floor_mm + level_mm + climb_mm * across**3) + 0 * y
