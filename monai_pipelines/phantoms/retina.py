"""Draws the back of an eye as a camera sees it: optic disc, macula, vessels, and lesions of diabetes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from monai_pipelines.phantoms.fields import Seed, grid, noise, streaks, strokes

BLOOD_OD = np.array([0.22, 0.85, 0.7])


class Spot(NamedTuple):
    """A lesion: center and radius in pixels."""

    kind: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class FundusPhoto:
    """A photograph with its truth.

    Args:
        rgb: (size, size, 3) uint8, black outside the camera's field.
        disc: column, row and radius of the optic disc.
        macula: column and row.
        lesions: within the field; none in a healthy eye.
    """

    rgb: np.ndarray
    disc: tuple[float, float, float]
    macula: tuple[float, float]
    lesions: list[Spot]


class Camera(NamedTuple):
    """A camera: radius of its field and where it is cut, as shares of the image, and its rendering."""

    radius: float
    half_height: float
    notch: bool
    gain: np.ndarray
    blur: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Camera:
        """Full circles, circles cut above and below, and circles wider than the image."""
        radius, half_height = ((0.49, 0.5), (0.5, 0.43), (0.58, 0.5))[rng.integers(3)]
        gain = rng.uniform(0.75, 1.2) * np.array([1.0, rng.uniform(0.85, 1.15), rng.uniform(0.7, 1.35)])
        return cls(radius, half_height, bool(rng.random() < 0.4), gain, rng.uniform(0.4, 1.1), rng.uniform(1, 4))

    def field(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Share of each pixel that the camera shows."""
        size = len(rows)
        y, x = rows - (size - 1) / 2, columns - (size - 1) / 2
        shown = np.clip(self.radius * size - np.hypot(y, x) + 0.5, 0, 1)
        if self.notch:
            corner = 0.71 * self.radius * size
            shown = np.maximum(shown, np.clip(0.025 * size - np.hypot(y + corner, x - corner), 0, 1))
        return shown * (np.abs(y) < self.half_height * size)


class Eye(NamedTuple):
    """What both eyes of a patient share."""

    color: np.ndarray
    pigment: float
    choroid: float
    vessel_px: float
    cup: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Eye:
        """From pale to dark, with more or less of the deep vessels showing."""
        color = np.array([rng.uniform(165, 235), *np.sort(rng.uniform(35, 145, 2))[::-1]])
        choroid = max(rng.normal(-0.01, 0.06), 0)
        return cls(color, rng.uniform(0.2, 0.9), choroid, rng.uniform(0.8, 1.2), rng.uniform(0.3, 0.6))


def fundus_photo(
    seed_or_rng: Seed,
    *,
    diseased: bool,
    left: bool = False,
    size: int = 400,
    eye: Eye | None = None,
    camera: Camera | None = None,
) -> FundusPhoto:
    """Draw one eye.

    Args:
        seed_or_rng: same seed, same image.
        diseased: with microaneurysms, hemorrhages and exudates.
        left: a left eye, with the optic disc on the left of the image.
        size: rows and columns.
        eye: shared with the patient's other eye; None draws one.
        camera: None draws one.

    Example:
        >>> photo = fundus_photo(0, diseased=True, size=128)
        >>> photo.rgb.shape, len(photo.lesions) > 5
        ((128, 128, 3), True)
    """
    rng = np.random.default_rng(seed_or_rng)
    lesion_rng = rng.spawn(1)[0]
    eye, camera = eye or Eye.draw(rng), camera or Camera.draw(rng)
    rows, columns = grid(size)
    side = -1 if left else 1
    macula = size * np.array([rng.uniform(0.46, 0.56), 0.5 - side * rng.uniform(-0.02, 0.16)])
    disc = macula + size * np.array([rng.uniform(-0.05, 0.01), side * rng.uniform(0.31, 0.36)])
    radius = size * rng.uniform(0.05, 0.062)

    density = _ground(rng, eye, rows, columns, macula)
    from_disc = np.hypot((rows - disc[0]) / 1.08, columns - disc[1]) + 0.006 * size * noise(rng, size, size / 8)
    pale = np.clip((radius - from_disc) / (0.012 * size) + 0.5, 0, 1)
    cup = np.clip((eye.cup * radius - from_disc) / (0.02 * size) + 0.5, 0, 1)
    light = eye.color * np.exp(-density)
    light += pale[..., None] * (np.array([250, 190, 110]) * rng.uniform(0.85, 1.1) - light)
    light += cup[..., None] * (np.array([255, 235, 185]) - light)
    light *= np.exp(-_vessels(rng, size, disc, macula, side, eye.vessel_px)[..., None] * BLOOD_OD)

    shown = camera.field(rows, columns)
    spots = _draw_lesions(lesion_rng, size, disc, macula, shown) if diseased else []
    for spot in spots:
        _paint(lesion_rng, light, spot, rows, columns)
    light = _glare(rng, light, rows, columns)
    light = camera.gain * gaussian_filter(light, (*[camera.blur * size / 400] * 2, 0))
    light = light + camera.noise * rng.standard_normal(light.shape, dtype=np.float32)
    rgb = np.clip(np.rint(light), 0, 255) * shown[..., None]
    return FundusPhoto(rgb.astype(np.uint8), (disc[1], disc[0], radius), (macula[1], macula[0]), spots)


def _ground(
    rng: np.random.Generator, eye: Eye, rows: np.ndarray, columns: np.ndarray, macula: np.ndarray
) -> np.ndarray:
    """Optical density of pigment and deep vessels, (size, size, 3)."""
    size = len(rows)
    blotches = 0.08 * noise(rng, size, size / 4) + 0.025 * noise(rng, size, size / 25) + 0.015 * noise(rng, size, 3)
    bend = 0.05 * size * noise(rng, size, size / 6)
    angle = rng.uniform(0, np.pi)
    across = rows * np.cos(angle) - columns * np.sin(angle) + bend
    along = rows * np.sin(angle) + columns * np.cos(angle)
    deep = streaks(rng, across, along, size / 60, size / 14)
    off = np.hypot(rows - macula[0], columns - macula[1]) / size
    fovea = rng.uniform(0.25, 0.7) * np.exp(-((off / 0.05) ** 2)) + 0.3 * np.exp(-((off / 0.13) ** 2))
    density = (blotches + eye.choroid * deep)[..., None] * np.array([0.5, 1.0, 1.2])
    return density + eye.pigment * fovea[..., None] * np.array([0.7, 1.0, 0.8])


class Branch(NamedTuple):
    """A vessel to be drawn; `turn` is the direction of an arcade around the macula, 0 for all others."""

    place: np.ndarray
    heading: np.ndarray
    radius: float
    is_vein: bool
    turn: int
    generation: int


def _vessels(
    rng: np.random.Generator, size: int, disc: np.ndarray, macula: np.ndarray, side: int, caliber: float
) -> np.ndarray:
    """Blood along the line of sight: arcades around the macula, straighter vessels on the other side, branches."""
    unit = size / 400
    branches = []
    for up in (-1, 1):
        for is_vein in (False, True):
            for arcade in (True, False):
                heading = np.array([up, side * (rng.uniform(-0.35, 0.15) if arcade else rng.uniform(0.5, 1.1))])
                radius = unit * caliber * rng.uniform(1.7, 2.5) * (1.25 if is_vein else 0.85) * (1 if arcade else 0.75)
                root = disc + rng.normal(0, 3 * unit, 2)
                branches.append(Branch(root, heading, radius, is_vein, up * side * arcade, 0))
    pieces: list[tuple[np.ndarray, np.ndarray, float, bool]] = []
    while branches:
        _follow(rng, size, macula, branches.pop(), branches, pieces)
    starts, steps, radii, veins = (np.array(part) for part in zip(*pieces, strict=True))
    broad = (radii > 1.5 * unit) & ~veins
    dark_red = strokes(size, starts[veins], steps[veins], radii[veins])
    bright_red = 0.7 * strokes(size, starts[~veins], steps[~veins], radii[~veins])
    reflex = 0.3 * strokes(size, starts[broad], steps[broad], 0.3 * radii[broad])
    return np.maximum(dark_red, bright_red) - reflex


def _follow(
    rng: np.random.Generator,
    size: int,
    macula: np.ndarray,
    branch: Branch,
    branches: list[Branch],
    pieces: list[tuple[np.ndarray, np.ndarray, float, bool]],
) -> None:
    """Walk along a vessel until it leaves the image, thins out or nears the macula; adds its branches."""
    place, heading, radius, is_vein, turn, generation = branch
    reach = rng.uniform(0.24, 0.34) * size
    for _ in range(int(rng.uniform(26, 60)) if generation else 50):
        out = place - macula
        away = float(np.hypot(*out))
        if radius < 0.45 * size / 400 or away < 0.07 * size or not ((place > 0) & (place < size)).all():
            break
        if turn:
            ring = np.array([out[1], -out[0]]) / away * turn
            target = ring + 0.7 * out / away * np.clip((reach - away) / (0.12 * size), -1, 1)
            heading = heading + 0.1 * (target / np.hypot(*target) - heading)
        heading = heading + rng.normal(0, 0.09, 2)
        heading = heading / np.hypot(*heading)
        step = 7 * size / 400 * heading
        pieces.append((place, step, radius, is_vein))
        place, radius = place + step, radius * 0.988
        if rng.random() < (0.1 if generation < 2 else 0.04):
            fork = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
            sine, cosine = np.sin(fork), np.cos(fork)
            way = np.array([cosine * heading[0] - sine * heading[1], sine * heading[0] + cosine * heading[1]])
            branches.append(Branch(place, way, radius * rng.uniform(0.5, 0.75), is_vein, 0, generation + 1))
            radius *= 0.95


def _draw_lesions(
    rng: np.random.Generator, size: int, disc: np.ndarray, macula: np.ndarray, shown: np.ndarray
) -> list[Spot]:
    """Dark dots and blots anywhere, bright exudates in clusters, now and then a soft pale patch."""
    spots: list[Spot] = []
    severity = rng.uniform(0.4, 1.4)
    unit = size / 400

    def add(kind: str, places: np.ndarray, low: float, high: float) -> None:
        for row, column in places:
            inside = 0 <= row < size and 0 <= column < size and shown[int(row), int(column)] == 1
            if inside and np.hypot(row - disc[0], column - disc[1]) > 0.08 * size:
                spots.append(Spot(kind, float(column), float(row), float(unit * rng.uniform(low, high))))

    def anywhere(count: float) -> np.ndarray:
        return rng.uniform(0.06 * size, 0.94 * size, (rng.poisson(severity * count) + 3, 2))

    add("microaneurysm", anywhere(18), 1.3, 2.4)
    add("haemorrhage", anywhere(9), 3.5, 8.5)
    for _ in range(1 + rng.poisson(1.6 * severity)):
        middle = macula + rng.normal(0, 0.14 * size, 2)
        count = rng.integers(6, 22)
        if rng.random() < 0.4:
            angle, ring = rng.uniform(0, 2 * np.pi, count), size * rng.uniform(0.03, 0.07)
            places = middle + ring * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        else:
            places = middle + rng.normal(0, rng.uniform(0.015, 0.045) * size, (count, 2))
        add("exudate", places + rng.normal(0, 2 * unit, (count, 2)), 1.5, 4.5)
    add("cotton wool", anywhere(1)[rng.integers(0, 5) :], 7, 13)
    return spots


def _paint(rng: np.random.Generator, light: np.ndarray, spot: Spot, rows: np.ndarray, columns: np.ndarray) -> None:
    reach = int(2 * spot.radius) + 3
    top, left = max(int(spot.y) - reach, 0), max(int(spot.x) - reach, 0)
    window = (slice(top, int(spot.y) + reach), slice(left, int(spot.x) + reach))
    y, x = rows[window] - spot.y, columns[window] - spot.x
    turn, ripple = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0, [0.25, 0.14, 0.08])
    angle = np.arctan2(y, x)
    waves = zip(range(2, 5), turn, ripple, strict=True)
    edge = spot.radius * (1 + sum(height * np.cos(count * angle + start) for count, start, height in waves))
    soft = spot.radius if spot.kind == "cotton wool" else max(2.5 * len(rows) / 400, 1)
    share = np.clip((edge - np.hypot(y, x)) / soft + 0.5, 0, 1)[..., None]
    target = light[window]
    if spot.kind in ("haemorrhage", "microaneurysm"):
        target *= np.exp(-share * rng.uniform(0.65, 1.2) * BLOOD_OD)
    elif spot.kind == "exudate":
        target += 0.9 * share * (np.array([250, 225, 130]) - target)
    else:
        target += 0.6 * share * (np.array([245, 220, 180]) - target)


def _glare(rng: np.random.Generator, light: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Uneven light, haze at the border, lens reflexes: bright spots that are not lesions."""
    size = len(rows)
    middle = size / 2 + rng.normal(0, 0.12 * size, 2)
    off = np.hypot(rows - middle[0], columns - middle[1]) / size
    light = light * (rng.uniform(0.85, 1.1) - rng.uniform(0.2, 1.1) * off**2)[..., None]
    rim = np.hypot(rows - size / 2, columns - size / 2) / size
    haze = rng.uniform(0, 0.45) * np.clip((rim - 0.36) / 0.14, 0, 1) ** 2
    light = light + haze[..., None] * (np.array([150, 165, 130]) - light)
    for _ in range(rng.integers(0, 4)):
        row, column = size * rng.uniform(0.15, 0.85, 2)
        wide = size * rng.uniform(0.01, 0.035)
        reflex = rng.uniform(0.1, 0.5) * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * wide**2))
        light = light + reflex[..., None] * (np.array([235, 225, 190]) - light)
    return light
