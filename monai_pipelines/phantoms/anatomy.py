"""Draws the anatomy of a synthetic chest: lungs, bones, vessels, airways, gas and lesions, in RAS mm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np

from monai_pipelines.phantoms.canvas import Ripple, Tubes

Kind = Literal["consolidation", "ground_glass", "nodule"]
KINDS: tuple[Kind, ...] = ("consolidation", "ground_glass", "nodule")


@dataclass(frozen=True)
class Lesion:
    """A lesion: what it is, where in RAS mm, and how large."""

    kind: Kind
    position_mm: tuple[float, float, float]
    diameter_mm: float


class Lung(NamedTuple):
    """One lung and the organs that dent it; `side` is 1 on the right, -1 on the left; centers are mirrored to x > 0."""

    side: int
    half_mm: np.ndarray
    apex_mm: float
    base_mm: float
    dome_mm: np.ndarray
    dome_half_mm: np.ndarray
    heart_mm: np.ndarray
    heart_half_mm: np.ndarray
    mediastinum_mm: float
    surface: Ripple

    def shape(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Negative inside the lung, about mm."""
        x = x * self.side
        half_x, half_y = self.half_mm.tolist()
        rise = np.maximum((z - self.apex_mm + 110) / 110, 0)
        taper = np.where(rise < 1, np.sqrt(np.maximum(1 - rise**2, 0)), 1 - rise)
        across, along = (x - 48 * (1 - taper)) / half_x, (y + 15 * (1 - taper)) / half_y
        chest = (np.abs(across) ** 2.4 + np.abs(along) ** 2.4) ** (1 / 2.4) - taper
        wave = self.surface(x, y, z)
        parts = [
            chest * half_y + 1.5 * wave,
            self.mediastinum_mm * (1 - 0.45 * np.maximum(y / half_y, 0)) + 3 * wave - x,
            26 - np.sqrt(x**2 + (y + half_y - 12) ** 2),
            -ellipsoid(x, y, z, self.dome_mm, self.dome_half_mm),
            -ellipsoid(x, y, z, self.heart_mm, self.heart_half_mm),
            self.base_mm - z,
        ]
        if self.side < 0:  # dents of the arch and of the descending aorta
            parts.append(20 - np.sqrt((x - 18) ** 2 + (y + 15) ** 2 + (z - 71) ** 2))
            parts.append(16 - np.sqrt((x - 22) ** 2 + (y + half_y - 32) ** 2) - np.maximum(z - 60, 0))
        return reduce(np.maximum, parts)

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Two corners of a box around the lung."""
        half_x, half_y = self.half_mm + 6
        left, right = sorted([0.0, self.side * half_x])
        return np.array([left, -half_y, self.base_mm - 12]), np.array([right, half_y, self.apex_mm + 12])

    def points(self, rng: np.random.Generator, count: int, depth_mm: float) -> np.ndarray:
        """Random positions in the lung, (count, 3)."""
        points = rng.uniform(*self.bounds_mm(), (12 * count + 400, 3))
        return points[self.shape(*points.T) < -depth_mm][:count]


class Spot(NamedTuple):
    """A lesion as drawn."""

    lesion: Lesion
    lung: Lung
    hu: float
    ripple: Ripple
    roughness: float

    def shape(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Negative inside the lesion, mm."""
        x0, y0, z0 = self.lesion.position_mm
        distance = np.sqrt((x - x0) ** 2 + (y - y0) ** 2 + (z - z0) ** 2)
        return distance - self.lesion.diameter_mm / 2 * (1 + self.roughness * self.ripple(x, y, z))


class Plate(NamedTuple):
    """A thin disc of collapsed lung."""

    center_mm: np.ndarray
    normal: np.ndarray
    radius_mm: float
    half_mm: float
    hu: float


class Patient(NamedTuple):
    """A patient; a scan adds only scanner, position and noise."""

    lungs: tuple[Lung, Lung]
    body_half_mm: np.ndarray
    fat_mm: float
    blood_hu: float
    lung_hu: float
    gravity_hu_per_mm: float
    dependent_hu: float
    texture_hu: float
    texture: Ripple
    bones: list[tuple[Tubes, float]]
    aorta: Tubes
    main_airways: Tubes
    vessels: tuple[Tubes, Tubes]
    airways: Tubes
    gas: list[tuple[np.ndarray, np.ndarray]]
    plates: list[Plate]
    spots: list[Spot]


def ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, center_mm: np.ndarray, half_mm: np.ndarray) -> np.ndarray:
    """Negative inside an ellipsoid; its size never exceeds the distance in mm."""
    (cx, cy, cz), (hx, hy, hz) = center_mm.tolist(), half_mm.tolist()
    rho = np.sqrt(((x - cx) / hx) ** 2 + ((y - cy) / hy) ** 2 + ((z - cz) / hz) ** 2)
    return (rho - 1) * min(hx, hy, hz)


def chain(points_mm: np.ndarray, radius_mm: float | np.ndarray) -> Tubes:
    """Tubes from point to point, (N, 3), with one radius or one per point."""
    radius = np.broadcast_to(radius_mm, len(points_mm)).astype(float)
    return Tubes(points_mm[:-1], points_mm[1:], radius[:-1], radius[1:])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def join(parts: list[Tubes]) -> Tubes:
    """All tubes in one."""
    return Tubes(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def draw_patient(rng: np.random.Generator, diseased: bool, lesion_mm: tuple[float, float]) -> Patient:
    """Draw a patient; the lesions come last, so that all else is the same in both classes.

    Raises:
        ValueError: `lesion_mm` does not rise from above 0.
    """
    if not 0 < lesion_mm[0] < lesion_mm[1]:
        raise ValueError(f"lung phantoms: lesion_mm must rise from above 0, got {tuple(lesion_mm)} (swapped?)")
    half = rng.uniform([111, 80], [137, 97])
    body_half = half + rng.uniform([22, 26], [36, 36])
    carina = np.array([0, -15, rng.uniform(31, 39)])
    lungs = _draw_lungs(rng, half)
    vessels, airways, caliber = [], [], rng.uniform(0.6, 1.9)
    num_generations, most_thick = int(rng.integers(6, 9)), int(rng.integers(0, 7))
    for lung in lungs:
        hilum = np.array([lung.side * (lung.mediastinum_mm + 6), -12, 5 if lung.side > 0 else 12])
        tree = _grow(rng, lung, hilum, int(rng.integers(5, 9)), 5.5 * caliber, num_generations)
        vessels.append(join([tree, *(_thick_vessel(rng, lung) for _ in range(rng.integers(0, most_thick + 1)))]))
        airways.append(_grow(rng, lung, hilum + [0, -6, 4], 3, 4.0, 4))
    return Patient(
        lungs=lungs,
        body_half_mm=body_half,
        fat_mm=rng.uniform(6, 20),
        blood_hu=rng.uniform(25, 55) if rng.random() < 0.8 else rng.uniform(60, 150),
        lung_hu=rng.uniform(-890, -780),
        gravity_hu_per_mm=rng.uniform(0.1, 0.7),
        dependent_hu=rng.uniform(0, 260),
        texture_hu=rng.uniform(8, 30),
        texture=Ripple.draw(rng, (20, 90)),
        bones=_draw_bones(half, lungs[0]),
        aorta=_draw_aorta(rng, half, carina, lungs[0].base_mm),
        main_airways=_draw_main_airways(rng, carina, lungs[0].mediastinum_mm),
        vessels=(vessels[0], vessels[1]),
        airways=join(airways),
        gas=_draw_gas(rng, lungs[1]),
        plates=[_draw_plate(rng, lungs[rng.integers(2)]) for _ in range(rng.integers(0, 6))],
        spots=_draw_spots(rng, lungs, lesion_mm) if diseased else [],
    )


def _draw_lungs(rng: np.random.Generator, half_mm: np.ndarray) -> tuple[Lung, Lung]:
    apex, base = rng.uniform(105, 136), -rng.uniform(98, 138)
    mediastinum = rng.uniform(20, 27)
    heart_half = rng.uniform([52, 44, 48], [64, 54, 60])
    heart = np.array([-rng.uniform(12, 24), rng.uniform(14, 24), base + heart_half[2] + rng.uniform(15, 35)])
    lungs = []
    for side in (1, -1):
        height = rng.uniform(50, 75) - (8 if side < 0 else 0)
        dome_half = np.array([(half_mm[0] - 8) / 2, half_mm[1], height]) * [*rng.uniform([1, 0.9], [1.08, 0.97]), 1]
        dome = np.array([(half_mm[0] + 8) / 2, rng.uniform(-6, 6), base + rng.uniform(-4, 8)])
        lungs.append(
            Lung(
                side=side,
                half_mm=half_mm * rng.uniform(0.96, 1.0),
                apex_mm=apex + rng.uniform(-5, 5),
                base_mm=base,
                dome_mm=dome,
                dome_half_mm=dome_half,
                heart_mm=heart * [side, 1, 1],
                heart_half_mm=heart_half,
                mediastinum_mm=mediastinum,
                surface=Ripple.draw(rng, (60, 150)),
            )
        )
    return lungs[0], lungs[1]


def _draw_bones(half_mm: np.ndarray, lung: Lung) -> list[tuple[Tubes, float]]:
    """Spine, breastbone, ribs, collarbones and shoulder blades, with their HU, in painting order."""
    (half_x, half_y), apex, base = half_mm, lung.apex_mm, lung.base_mm
    back = 12 - half_y
    spine = np.arange(base - 80, apex + 80, 25)
    vertebrae = join([chain(np.array([[-4, back, z - 3], [4, back, z + 3]]), 15) for z in spine])
    processes = join([chain(np.array([[0, back - 24, z], [0, back - 34, z - 12]]), 3.5) for z in spine])
    column = np.array([[0, back - 22, spine[0]], [0, back - 22, spine[-1]]])
    breastbone = np.array([[0, half_y + 9, apex - 20], [0, half_y + 12, apex - 100], [0, half_y + 9, apex - 190]])
    bones = [chain(breastbone, 7)]
    turn = np.linspace(-1.35, 1.15, 10)
    for side in (1, -1):
        for level in np.linspace(apex - 5, base - 25, 11):
            z = level - 12 * (turn + 1.35)
            taper = np.sqrt(1 - np.clip((z - apex + 110) / 110, 0, 0.97) ** 2)
            x = side * ((half_x * taper + 8) * np.cos(turn) ** 0.8 + 48 * (1 - taper))
            y = (half_y * taper + 8) * np.sin(turn) - 15 * (1 - taper)
            bones.append(chain(np.stack([x, y, z], axis=1), 4.5))
        collarbone = np.array([[20, half_y - 10, apex - 8], [75, 10, apex + 10], [112, -15, apex - 8]])
        shoulder_blade = np.array([[95, -0.9 * half_y - 8, apex - 20], [80, -half_y - 10, apex - 110]])
        bones += [chain(collarbone * [side, 1, 1], 5), chain(shoulder_blade * [side, 1, 1], np.array([5.0, 3.5]))]
    return [(vertebrae, 230), (chain(column, 11), 300), (chain(column, 7), 30), (processes, 350), (join(bones), 380)]


def _draw_aorta(rng: np.random.Generator, half_mm: np.ndarray, carina_mm: np.ndarray, base_mm: float) -> Tubes:
    back = 32 - half_mm[1]
    arch = carina_mm + [[14, 30, -60], [12, 28, -5], [0, 22, 28], [-18, 0, 36]]
    return chain(np.array([*arch, [-22, back, carina_mm[2] + 15], [-22, back, base_mm - 80]]), rng.uniform(10, 13))


def _draw_main_airways(rng: np.random.Generator, carina_mm: np.ndarray, mediastinum_mm: float) -> Tubes:
    """Windpipe and main bronchi."""
    caliber = rng.uniform(7.5, 10)
    parts = [chain(carina_mm + [[0, 12, 200], [0, 8, 80], [0, 0, 0]], caliber)]
    for side in (1, -1):
        hilum = np.array([side * (mediastinum_mm + 6), -18, 9 if side > 0 else 16])
        parts.append(chain(np.stack([carina_mm, hilum]), np.array([0.75, 0.6]) * caliber))
    return join(parts)


def _grow(
    rng: np.random.Generator, lung: Lung, root_mm: np.ndarray, num_roots: int, radius_mm: float, num_generations: int
) -> Tubes:
    """A branching tree from the hilum, within the lung."""
    ways = _unit(lung.points(rng, 20 * num_roots, 8) - root_mm)
    way = ways[lung.shape(*(root_mm + 25 * ways).T) < -4][:num_roots]
    tip = np.repeat(root_mm[None], len(way), axis=0)
    radius = radius_mm * rng.uniform(0.8, 1.1, len(way))
    parts = []
    for generation in range(num_generations):
        length = rng.uniform(12, 24, (len(tip), 1)) if generation else np.full((len(tip), 1), 25.0)
        elsewhere = _unit(lung.points(rng, len(tip), 8) - tip)
        way = np.where(lung.shape(*(tip + length * way).T)[:, None] < -4, way, elsewhere)
        end = tip + length * way
        inside = lung.shape(*end.T) < -4
        parts.append(Tubes(tip[inside], end[inside], radius[inside], 0.9 * radius[inside]))
        tip, way, radius = end[inside], way[inside], 0.9 * radius[inside]
        turn = way + rng.normal(size=way.shape) * 0.25
        fork = _unit(np.cross(way, rng.normal(size=way.shape))) * rng.uniform(0.3, 0.8, (len(way), 1))
        share = rng.uniform(0.72, 0.95, len(way))
        way = _unit(np.concatenate([turn + 0.5 * fork, turn - 1.2 * fork]))
        tip, radius = np.concatenate([tip, tip]), np.concatenate([radius * share, radius * (1.45 - share)])
    return join(parts)


def _thick_vessel(rng: np.random.Generator, lung: Lung) -> Tubes:
    """A vessel along z, 8 to 14 mm wide, five times as long or more: looks like a nodule in any single slice."""
    radius = rng.uniform(4, 6.5)
    places = lung.points(rng, 60, radius + 2)
    share = np.linspace(-1, 1, 5)
    along = radius * rng.uniform(5.5, 8) * share
    tilt, bend = rng.normal(0, 0.12, 2), rng.normal(0, 4, 2)
    paths = places[:, None] + np.stack([*(np.outer(tilt, along) + np.outer(bend, share**2)), along], axis=1)
    outside = np.maximum(lung.shape(*np.moveaxis(paths, -1, 0)) + radius, 0).sum(axis=1)
    return chain(paths[np.argmin(outside)], radius * np.array([1.1, 1.05, 1, 0.95, 0.9]))


def _draw_gas(rng: np.random.Generator, lung: Lung) -> list[tuple[np.ndarray, np.ndarray]]:
    """Centers and half axes of the gas in stomach and bowel."""
    stomach = lung.dome_mm * [lung.side, 1, 1] + rng.uniform([-5, 0, 0], [15, 15, 30])
    gas = [(stomach, rng.uniform([22, 22, 14], [42, 42, 30]))]
    for _ in range(rng.integers(1, 5)):
        bowel = rng.uniform([-90, -20, lung.base_mm - 50], [50, 55, lung.base_mm - 8])
        gas.append((bowel, rng.uniform(8, 20, 3)))
    return gas


def _draw_plate(rng: np.random.Generator, lung: Lung) -> Plate:
    """A plate low and at the back, where lungs collapse."""
    places = lung.points(rng, 20, 4)
    center = places[np.argmin(places[:, 1] + places[:, 2])]
    return Plate(
        center, _unit(rng.normal(size=3) * [0.3, 0.5, 1]), rng.uniform(15, 50), rng.uniform(2, 5), rng.uniform(-400, 40)
    )


def _draw_spots(rng: np.random.Generator, lungs: tuple[Lung, Lung], lesion_mm: tuple[float, float]) -> list[Spot]:
    """One to four lesions apart from each other, about half of them against the pleura."""
    sphere = _unit(rng.normal(size=(80, 3)))
    spots: list[Spot] = []
    for _ in range(rng.integers(1, 5)):
        kind = KINDS[rng.integers(len(KINDS))]
        diameter, lung = rng.uniform(*lesion_mm), lungs[rng.integers(2)]
        centers = lung.points(rng, 100, 4)
        for spot in spots:
            apart_mm = np.linalg.norm(centers - spot.lesion.position_mm, axis=1)
            centers = centers[apart_mm > (diameter + spot.lesion.diameter_mm) / 2]
        if not len(centers):
            continue
        surface = np.moveaxis(centers[:, None] + sphere * diameter / 2, -1, 0)
        inside = np.mean(lung.shape(*surface) < 0, axis=1)
        center = centers[np.argmin(np.abs(inside - rng.choice([0.8, 1.0])))]
        hu = rng.uniform(-600, -300) if kind == "ground_glass" else rng.uniform(0, 60)
        ripple = Ripple.draw(rng, (0.8 * diameter, 1.6 * diameter))
        lesion = Lesion(kind, tuple(center.tolist()), float(diameter))
        spots.append(Spot(lesion, lung, hu, ripple, 0.04 if kind == "nodule" else 0.12))
    return spots
