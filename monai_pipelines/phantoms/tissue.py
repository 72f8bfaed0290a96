"""Draws the nine kinds of colorectal tissue as amounts of two stains, 0.5 um per pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from monai_pipelines.phantoms.fields import cells, grid, noise, scattered, streaks

Window = tuple[slice, slice]
WHOLE = (slice(None), slice(None))


class Tissue:
    """A square of tissue being drawn.

    Attributes:
        blue: (size, size) float32, hematoxylin, 1 is a dark nucleus.
        pink: (size, size) float32, eosin, 1 is dense muscle.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.rows, self.columns = grid(size)
        self.blue = np.zeros((size, size), dtype=np.float32)
        self.pink = np.zeros((size, size), dtype=np.float32)
        self._grain = noise(rng, size, 2.2)

    def noise(self, length: float) -> np.ndarray:
        """A random field, mean 0, standard deviation 1."""
        return noise(self.rng, self.size, length)

    def fibers(self, angle: float, width: float, length: float, wave: float) -> np.ndarray:
        """A random field of streaks along `angle`, bent by `wave` pixels."""
        along = self.rows * np.sin(angle) + self.columns * np.cos(angle)
        across = self.rows * np.cos(angle) - self.columns * np.sin(angle)
        if wave:
            across = across + wave * self.noise(45)
        return streaks(self.rng, across, along, width, length)

    def around(self, row: float, column: float, reach: float) -> tuple[Window, np.ndarray, np.ndarray]:
        """The pixels near a place and their distances down and right of it; none for places beyond the edge."""
        top, bottom = np.clip([int(row - reach), int(row + reach) + 2], 0, self.size).tolist()
        left, right = np.clip([int(column - reach), int(column + reach) + 2], 0, self.size).tolist()
        window = (slice(top, bottom), slice(left, right))
        return window, self.rows[window] - row, self.columns[window] - column

    def paint(
        self, share: np.ndarray, blue: float | np.ndarray, pink: float | np.ndarray, window: Window = WHOLE
    ) -> None:
        """Blend both stains in where `share` is 1."""
        for stain, amount in ((self.blue, blue), (self.pink, pink)):
            target = stain[window]
            target += share * (amount - target)

    def nuclei(
        self,
        centers: np.ndarray,
        radius: float,
        elongation: float = 1.15,
        angle: float | np.ndarray | None = None,
        dark: float = 1.0,
        open_chromatin: float = 0.0,
    ) -> None:
        """Stamp nuclei; `angle` None is any, `open_chromatin` 1 is a pale nucleus with rim and nucleolus."""
        rng = self.rng
        angles = rng.uniform(0, np.pi, len(centers)) if angle is None else angle + rng.normal(0, 0.15, len(centers))
        sizes = radius * rng.lognormal(0, 0.14, len(centers))
        stretches = np.maximum(elongation * rng.normal(1, 0.12, len(centers)), 1)
        darks = dark * rng.normal(1, 0.14, len(centers))
        for (row, column), size, stretch, turn, amount in zip(centers, sizes, stretches, angles, darks, strict=True):
            window, y, x = self.around(row, column, size * stretch + 2)
            sine, cosine = np.sin(turn), np.cos(turn)
            grain = self._grain[window]
            far = np.hypot((x * cosine + y * sine) / stretch, y * cosine - x * sine) / size + 0.05 * grain
            share = np.clip((1 - far) * size / 1.5 + 0.5, 0, 1)
            inside = np.clip(far, 0, 1)
            pale = open_chromatin * (0.5 - 0.5 * inside**6 - 0.4 * (inside < 0.22))
            self.blue[window] += share * (amount * (1 - pale + 0.16 * grain) - self.blue[window])
            self.pink[window] *= 1 - 0.45 * share

    def red_cells(self, centers: np.ndarray) -> None:
        """Red blood cells: round, without a nucleus, strongly pink."""
        for row, column in centers:
            window, y, x = self.around(row, column, 8)
            far = np.hypot(y, x)
            self.pink[window] += np.clip(6.5 - far, 0, 1) * (1.25 - 0.04 * np.abs(far - 4) - self.pink[window])

    def scatter(self, count: float, spacing: float = 14) -> np.ndarray:
        """Scattered positions, (N, 2), about `count` on a tile of 224 pixels."""
        points = scattered(self.rng, self.size, spacing, 0.4)
        shown = points[((points > 0) & (points < self.size)).all(axis=1)]
        return shown[: self.rng.poisson(count * (self.size / 224) ** 2)]

    def on(self, points: np.ndarray, field: np.ndarray) -> np.ndarray:
        """Values of a field at points; beyond its edge, those of the edge."""
        places = np.clip(np.rint(points), 0, self.size - 1).astype(int)
        return field[places[:, 0], places[:, 1]]


def _band(values: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def _fat(tissue: Tissue) -> None:
    """ADI: large empty cells between thin walls."""
    rng = tissue.rng
    points = scattered(rng, tissue.size, rng.uniform(75, 140), 0.33)
    bend = rng.uniform(3, 9)
    rows, columns = (axis + bend * tissue.noise(50) for axis in (tissue.rows, tissue.columns))
    gap, _ = cells(points, rows, columns)
    wall = rng.uniform(1.5, 5)
    thick = wall + rng.uniform(0, 16) * _band(tissue.noise(70), 0.8, 2.2)
    amount = 0.75 + 0.2 * tissue.noise(5)
    tissue.paint(1 - _band(gap, thick, thick + 2.5), 0.22 * amount, rng.uniform(0.6, 0.95) * amount)
    near = tissue.scatter(400, 9)
    near = near[tissue.on(near, gap) < wall + 2][: rng.integers(1, 9)]
    tissue.nuclei(near, 4.0, 2.2, dark=0.95)


def _background(tissue: Tissue) -> None:
    """BACK: glass with uneven light, dust, and now and then a smear."""
    rng = tissue.rng
    slope = rng.normal(0, 0.04, 2)
    haze = slope[0] * tissue.rows / tissue.size + slope[1] * tissue.columns / tissue.size
    tissue.pink += 0.03 + np.abs(haze) + 0.012 * tissue.noise(3)
    tissue.blue += 0.02 + 0.01 * tissue.noise(2)
    if rng.random() < 0.6:
        smear = _band(tissue.noise(rng.uniform(40, 120)), rng.uniform(-1.5, 0.4), 2)
        tissue.paint(smear, rng.uniform(0, 0.4), rng.uniform(0.05, 0.7))
    tissue.nuclei(tissue.scatter(rng.uniform(0, 14), 10), rng.uniform(1, 3), 1.3, dark=rng.uniform(0.3, 1.2))


def _debris(tissue: Tissue) -> None:
    """DEB: crumbling pink matter with holes, dust of nuclei and red cells."""
    rng = tissue.rng
    crumbs = 0.8 * tissue.noise(rng.uniform(2.2, 4)) + 0.5 * tissue.noise(rng.uniform(8, 20))
    tissue.pink += rng.uniform(0.45, 0.85) * (0.9 + 0.35 * crumbs)
    tissue.blue += rng.uniform(0.08, 0.3) * (1 + 0.5 * tissue.noise(12))
    holes = _band(0.7 * crumbs + tissue.noise(rng.uniform(25, 60)), rng.uniform(0.7, 1.8), 2.0)
    tissue.paint(holes, 0.02, 0.05)
    if rng.random() < 0.5:
        clump = tissue.noise(60)
        red = tissue.scatter(300, 12)
        tissue.red_cells(red[tissue.on(red, clump) > rng.uniform(0.2, 1.2)])
    tissue.nuclei(tissue.scatter(rng.uniform(20, 160), 8), 2.0, 1.6, dark=0.9)
    tissue.nuclei(tissue.scatter(rng.uniform(0, 40)), 4.5, 1.5, dark=rng.uniform(0.45, 0.8))


def _lymphocytes(tissue: Tissue) -> None:
    """LYM: small round dark nuclei, densely packed."""
    rng = tissue.rng
    tissue.pink += rng.uniform(0.2, 0.5) * (0.9 + 0.3 * tissue.noise(8))
    tissue.blue += 0.12 + 0.05 * tissue.noise(10)
    tissue.paint(_band(tissue.noise(14), rng.uniform(0.9, 1.8), 2.4), 0.02, 0.05)
    centers = scattered(rng, tissue.size, rng.uniform(12, 16.5), 0.3)
    centers = centers[tissue.on(centers, tissue.noise(45)) > rng.uniform(-2.4, -1.0)]
    tissue.nuclei(centers, rng.uniform(4.8, 5.8), 1.1, dark=rng.uniform(0.85, 1.1))


def _mucus(tissue: Tissue) -> None:
    """MUC: pale pools with thin wavy strands, few cells."""
    rng = tissue.rng
    angle = rng.uniform(0, np.pi)
    tissue.blue += rng.uniform(0.04, 0.2) * (1 + 0.4 * tissue.noise(40))
    tissue.pink += rng.uniform(0.04, 0.2) * (1 + 0.4 * tissue.noise(60))
    for width in (rng.uniform(7, 12), rng.uniform(14, 26)):
        field = tissue.fibers(angle + rng.normal(0, 0.3), width, 6 * width, rng.uniform(8, 18))
        strand = 1 - _band(np.abs(field), 0.06, 0.5)
        tissue.paint(0.85 * strand, rng.uniform(0.2, 0.42), rng.uniform(0.18, 0.4))
    if rng.random() < 0.5:
        septum = 1 - _band(np.abs(tissue.fibers(angle, 170, 600, 25)), 0.05, rng.uniform(0.1, 0.22))
        tissue.paint(septum, 0.15, 0.8 + 0.12 * tissue.fibers(angle, 4, 40, 25))
    tissue.nuclei(tissue.scatter(rng.uniform(2, 22)), 4.5, 1.5, dark=0.9)


def _muscle(tissue: Tissue) -> None:
    """MUS: parallel straight fibers, closely packed, cigar-shaped nuclei along them."""
    rng = tissue.rng
    angle, wave = rng.uniform(0, np.pi), rng.uniform(2, 6)
    fine = tissue.fibers(angle, rng.uniform(2, 3), 60, wave)
    bundle = tissue.fibers(angle, rng.uniform(8, 14), 160, wave)
    tissue.pink += rng.uniform(0.6, 0.95) * (1 + 0.2 * fine + 0.16 * bundle)
    tissue.blue += rng.uniform(0.08, 0.22) * (1 + 0.3 * bundle)
    clefts = _band(bundle + 0.4 * fine, rng.uniform(0.9, 1.8), 2.2)
    tissue.paint(clefts, 0.02, 0.08)
    tissue.nuclei(tissue.scatter(rng.uniform(15, 60), 16), 2.8, rng.uniform(3, 4.2), angle, dark=0.85)


def _mucosa(tissue: Tissue) -> None:
    """NORM: round crypts with a rim of nuclei and pale goblet cells, loose tissue with small cells between."""
    rng = tissue.rng
    tissue.pink += rng.uniform(0.35, 0.6) * (1 + 0.25 * tissue.noise(7))
    tissue.blue += 0.1 + 0.04 * tissue.noise(9)
    tissue.paint(_band(tissue.noise(12), 1.2, 2.2), 0.03, 0.08)
    tissue.nuclei(scattered(rng, tissue.size, rng.uniform(15, 22), 0.4), 4.4, 1.4, dark=0.9)
    spacing = rng.uniform(105, 150)
    bend = 4 * tissue.noise(40)
    for row, column in scattered(rng, tissue.size, spacing, 0.1):
        _crypt(tissue, row, column, spacing * rng.uniform(0.38, 0.46), bend)


def _crypt(tissue: Tissue, row: float, column: float, radius: float, bend: np.ndarray) -> None:
    """A ring of nuclei around goblet cells around a small opening."""
    rng = tissue.rng
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.35)
    sine, cosine = np.sin(turn), np.cos(turn)
    window, y, x = tissue.around(row, column, 1.4 * radius + 10)
    a, b = (x * cosine + y * sine) / stretch, y * cosine - x * sine
    far, angle = np.hypot(a, b) + bend[window], np.arctan2(b, a)
    tissue.paint(_band(radius - far, -1, 1), 0.28, 0.6 + 0.08 * tissue.noise(4)[window], window)
    count = int(2 * np.pi * radius / 9)
    around = np.arange(count) * 2 * np.pi / count
    goblets = around[::2] + rng.normal(0, 0.08, len(around[::2]))
    lumen = radius * rng.uniform(0.08, 0.2)
    for at in goblets[rng.random(len(goblets)) < rng.uniform(0.5, 0.9)]:
        off = np.abs((angle - at + np.pi) % (2 * np.pi) - np.pi) * far
        middle, half = radius * rng.uniform(0.5, 0.6), radius * rng.uniform(0.2, 0.28)
        deep = np.hypot((far - middle) / half, off / (0.14 * radius + 0.07 * (far - middle)))
        tissue.paint(_band(1 - deep, 0, 0.2), rng.uniform(0.1, 0.3), rng.uniform(0.05, 0.15), window)
    tissue.paint(_band(lumen - far, -2, 1), 0.06, 0.08, window)
    ring_a, ring_b = (radius - 6) * stretch * np.cos(around), (radius - 6) * np.sin(around)
    down, along = ring_a * sine + ring_b * cosine, ring_a * cosine - ring_b * sine
    centers = np.stack([row + down, column + along], axis=1) + rng.normal(0, 1, (count, 2))
    tissue.nuclei(centers, 4.0, 1.7, np.arctan2(down, along), dark=0.95)


def _stroma(tissue: Tissue) -> None:
    """STR: wavy loose fibers with gaps, spindle and inflammatory cells."""
    rng = tissue.rng
    angle, wave = rng.uniform(0, np.pi), rng.uniform(14, 26)
    fine = tissue.fibers(angle, rng.uniform(2.5, 4), rng.uniform(25, 45), wave)
    coarse = tissue.fibers(angle, rng.uniform(9, 18), 70, wave)
    tissue.pink += rng.uniform(0.45, 0.85) * (1 + 0.3 * fine + 0.22 * coarse)
    tissue.blue += rng.uniform(0.08, 0.28) * (1 + 0.3 * coarse)
    gaps = _band(0.7 * fine + coarse, rng.uniform(0.3, 1.5), 2.0)
    tissue.paint(gaps, 0.04, 0.08)
    tissue.nuclei(tissue.scatter(rng.uniform(20, 70)), 3.4, rng.uniform(2, 3.4), angle, dark=0.9)
    tissue.nuclei(tissue.scatter(rng.uniform(5, 60)), 4.8, 1.15, dark=0.95)


def _tumour(tissue: Tissue) -> None:
    """TUM: nests of large crowded irregular nuclei around ragged holes, little stroma."""
    rng = tissue.rng
    angle = rng.uniform(0, np.pi)
    tissue.pink += rng.uniform(0.45, 0.75) * (1 + 0.2 * tissue.fibers(angle, 5, 45, 16))
    tissue.blue += 0.12
    tissue.nuclei(tissue.scatter(rng.uniform(20, 60)), 3.6, 2.2, angle, dark=0.9)
    field = tissue.noise(rng.uniform(50, 80))
    nest = _band(field, rng.uniform(-2.0, -0.9), -0.6)
    tissue.paint(nest, rng.uniform(0.22, 0.42) + 0.04 * tissue.noise(5), rng.uniform(0.45, 0.7))
    hollow = rng.uniform(0.9, 2.2)
    field = field + 0.12 * tissue.noise(9)
    centers = scattered(rng, tissue.size, rng.uniform(17, 22), 0.28)
    depth = tissue.on(centers, field)
    solid = (depth > -1.0) & (depth < hollow - 0.1)
    slope = np.gradient(field)
    outwards = np.arctan2(tissue.on(centers, slope[0]), tissue.on(centers, slope[1]))
    tissue.nuclei(
        centers[solid], rng.uniform(6.4, 8), rng.uniform(1.15, 1.6), outwards[solid], rng.uniform(0.75, 1.0),
        open_chromatin=rng.uniform(0.3, 0.9),
    )  # fmt: skip
    tissue.paint(_band(field, hollow, hollow + 0.15), 0.03, 0.06)
    dead = tissue.scatter(rng.uniform(5, 30), 9)
    tissue.nuclei(dead[tissue.on(dead, field) > hollow + 0.2], 2.5, 1.3)


TISSUES: dict[str, Callable[[Tissue], None]] = {
    "ADI": _fat,
    "BACK": _background,
    "DEB": _debris,
    "LYM": _lymphocytes,
    "MUC": _mucus,
    "MUS": _muscle,
    "NORM": _mucosa,
    "STR": _stroma,
    "TUM": _tumour,
}
