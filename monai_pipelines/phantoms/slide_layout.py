"""Plans a phantom slide: pieces of tissue in layers, islands, holes, pen strokes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from monai_pipelines.phantoms.fields import noise

STEP_UM = 4.0
LEAST_ISLAND = 16  # cells; smaller ones are lost in the smoothing of outlines
KINDS = ("glass", "STR", "NORM", "MUS", "ADI", "LYM", "DEB", "TUM")
GLASS, STROMA, MUCOSA, MUSCLE, FAT, LYMPHOCYTES, DEBRIS, TUMOUR = range(len(KINDS))


class SlideLayout(NamedTuple):
    """Kinds of tissue and pen strokes on a slide, `STEP_UM` per cell.

    Attributes:
        kinds: (h, w) uint8, index into `KINDS`.
        pen: (h, w) bool, under a pen stroke.
    """

    kinds: np.ndarray
    pen: np.ndarray


def draw_layout(
    rng: np.random.Generator, shape: tuple[int, int], tumour_fraction: float, tumour: bool, pen: bool
) -> SlideLayout:
    """Plan a slide.

    Every slide has islands that cover `tumour_fraction` of its tissue: of tumour, or of lymphocytes, debris and
    mucosa, so that a lack of islands does not reveal the class.

    Args:
        rng: draws everything.
        shape: rows and columns of cells, `STEP_UM` each.
        tumour_fraction: share of the tissue, or a little more: no island is smaller than `LEAST_ISLAND` cells.
        tumour: the islands are of tumour.
        pen: with pen strokes on the glass.
    """
    drawing = _Drawing(rng, shape)
    centers, pieces = drawing.pieces(int(rng.integers(2, 5)), rng.uniform(0.28, 0.4))
    for number in range(len(centers)):
        drawing.layers(pieces == number)
    tissue = drawing.kinds != GLASS
    drawing.spread(LYMPHOCYTES, np.isin(drawing.kinds, (STROMA, MUCOSA)), rng.uniform(0, 0.12), 90)
    drawing.spread(DEBRIS, tissue, rng.uniform(0, 0.05), 110)
    drawing.spread(GLASS, tissue, rng.uniform(0, 0.025), 70)
    islands = drawing.islands(tumour_fraction * (drawing.kinds != GLASS).sum(), tumour)
    strokes = drawing.pen(centers, tissue, islands) if pen else np.zeros(shape, dtype=bool)
    return SlideLayout(drawing.kinds, strokes)


class _Drawing:
    """A layout being drawn."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng, self.shape = rng, shape
        self.rows, self.columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        self.kinds = np.zeros(shape, dtype=np.uint8)

    def noise(self, length_um: float) -> np.ndarray:
        """A random field, mean 0, standard deviation 1."""
        height, width = self.shape
        return noise(self.rng, max(self.shape), length_um / STEP_UM)[:height, :width]

    def pieces(self, count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Centers (count, 2), and for every cell the number of its piece, -1 on glass."""
        rng, extent = self.rng, np.array(self.shape)
        tries = rng.uniform(0.24, 0.76, (80, count, 2)) * extent
        apart = np.linalg.norm(tries[:, :, None] - tries[:, None], axis=-1) + 1e9 * np.eye(count)
        centers = tries[apart.min(axis=(1, 2)).argmax()]
        areas = rng.dirichlet(np.full(count, 8.0)) * share * extent.prod()
        radius = np.sqrt(areas / np.pi)[:, None, None]
        far = radius * [
            self._distance(center, rng.uniform(1, 1.5)) / size + 0.2 * self.noise(350) + 0.06 * self.noise(90)
            for center, size in zip(centers, radius, strict=True)
        ]
        nearest, (first, second, *_) = far.argmin(axis=0), np.sort(far, axis=0)
        edge = np.minimum.reduce([self.rows, self.columns, extent[0] - self.rows, extent[1] - self.columns])
        room = np.minimum(second - first, edge + 40 / STEP_UM * self.noise(250))
        free = room > 60 / STEP_UM
        pieces = np.full(self.shape, -1)
        for number, area in enumerate(areas):
            pieces[_lowest(far[number] + 4 / STEP_UM * self.noise(16), free & (nearest == number), area)] = number
        return centers, pieces

    def _distance(self, center: Sequence[float] | np.ndarray, stretch: float = 1.0) -> np.ndarray:
        """Distance in cells from a place, longer across one direction by `stretch`."""
        angle = self.rng.uniform(0, np.pi)
        down, along = self.rows - center[0], self.columns - center[1]
        first = down * np.sin(angle) + along * np.cos(angle)
        second = down * np.cos(angle) - along * np.sin(angle)
        return np.hypot(first / np.sqrt(stretch), second * np.sqrt(stretch))

    def layers(self, piece: np.ndarray) -> None:
        """Mucosa, stroma, muscle and fat in layers, as in the wall of the bowel; some pieces lack some."""
        if not piece.any():
            return
        rng = self.rng
        angle = rng.uniform(0, 2 * np.pi)
        depth = self.rows * np.sin(angle) + self.columns * np.cos(angle) + 120 / STEP_UM * self.noise(400)
        shares = np.array([0.42, 0.3, 0.26, 0.06]) * rng.lognormal(0, 0.35, 4) * (rng.random(4) < [1, 1, 0.75, 0.5])
        cuts = np.quantile(depth[piece], np.cumsum(shares)[:3] / shares.sum())
        order = np.array([MUCOSA, STROMA, MUSCLE, FAT], dtype=np.uint8)
        layers = order[np.searchsorted(cuts, depth + 12 / STEP_UM * self.noise(24))]
        self.kinds[piece] = layers[piece]

    def spread(self, kind: int, where: np.ndarray, share: float, length_um: float) -> None:
        """Spots of a kind."""
        spots = self.noise(length_um) + 0.25 * self.noise(length_um / 4)
        self.kinds[_lowest(spots, where, share * where.sum())] = kind

    def islands(self, area: float, tumour: bool) -> np.ndarray:
        """Islands of a total area, tiny and large; returns their cells."""
        rng = self.rng
        count = 1 + rng.poisson(1.6)
        islands = np.zeros(self.shape, dtype=bool)
        for part in np.maximum(rng.dirichlet(np.full(count, 0.9)) * area, LEAST_ISLAND):
            kind = TUMOUR if tumour else rng.choice([LYMPHOCYTES, DEBRIS, MUCOSA], p=[0.5, 0.15, 0.35])
            free = (self.kinds != GLASS) & ~islands
            center = rng.choice(np.argwhere(free))
            radius = np.sqrt(part / np.pi)
            bent = 0.3 * radius * self.noise(max(STEP_UM * radius, 40)) + self.noise(30)
            island = _lowest(self._distance(center, rng.uniform(1, 1.8)) + bent, free, part)
            self.kinds[island] = kind
            islands |= island
        return islands

    def pen(self, centers: np.ndarray, tissue: np.ndarray, islands: np.ndarray) -> np.ndarray:
        """A stroke around a piece, or part of it; of several the one that hides least."""
        strokes = [self._stroke(centers) for _ in range(6)]
        hidden = [4 * (stroke & islands).sum() + (stroke & tissue).sum() for stroke in strokes]
        return strokes[int(np.argmin(hidden))]

    def _stroke(self, centers: np.ndarray) -> np.ndarray:
        rng = self.rng
        angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(1.5, 2 * np.pi), 400)
        radius = rng.uniform(380, 560) / STEP_UM * (1 + 0.08 * np.sin(angles * rng.uniform(1, 3)))
        stretch, (row, column) = rng.uniform(0.8, 1.25), rng.choice(centers)
        thick = rng.uniform(30, 60) / STEP_UM * (1 + 0.15 * np.sin(angles * rng.uniform(2, 5)))
        image = Image.new("1", self.shape[::-1])
        draw = ImageDraw.Draw(image)
        columns, rows = column + stretch * radius * np.cos(angles), row + radius * np.sin(angles)
        for *place, half in np.stack([columns, rows, thick], axis=1).tolist():
            draw.circle(place, half, fill=1)
        return np.array(image)


def _lowest(values: np.ndarray, where: np.ndarray, count: float) -> np.ndarray:
    """The `count` cells of `where` with the lowest values, or all of it."""
    chosen = np.zeros(where.shape, dtype=bool)
    places = np.flatnonzero(where)
    chosen.flat[places[np.argsort(values.flat[places], kind="stable")[: round(count)]]] = True
    return chosen
