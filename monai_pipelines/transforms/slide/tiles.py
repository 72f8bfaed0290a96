"""Selection of tiles: a grid on the tissue, all of it or a random part."""

from __future__ import annotations

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform, Transform
from monai.utils import convert_to_tensor
from numpy.typing import NDArray

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide, Tiles
from monai_pipelines.transforms.inverse import NoWayBack
from monai_pipelines.transforms.keyed import EachKeyd

EDGE = 1e-6  # of a tile: rounding error of tissue fractions


class TileSlide(Transform):
    """Lay a grid of square tiles on the tissue of a slide.

    The grid starts at the upper left corner and has whole tiles only. Steps are whole pixels of the level that is read:
    without ``overlap``, neighbors neither share nor skip pixels. A tile is kept if at least ``min_tissue`` of its area
    is tissue; mask pixels that a tile cuts count in part.

    Args:
        mpp: resolution of the tiles, micrometers per pixel; never finer than the slide's.
        tile_px: side of a tile, pixels.
        overlap: of neighbors, as a fraction of the side, 0..<1.
        min_tissue: least fraction of tissue, 0..1; 0 keeps all tiles.

    Returns:
        `monai_pipelines.slides.Tiles`, unread: coordinates (N, 2) int64, (x, y) of the upper left corners in level-0
        pixels, row by row.

    Raises:
        ScanError: the slide is smaller than a tile or coarser than ``mpp``, or no tile has enough tissue.

    Example:
        >>> from monai_pipelines.slides import Slide
        >>> slide = Slide("a.svs", 0.25, (2000, 1200), ((2000, 1200),), (1.0,), "aperio", "openslide")
        >>> TileSlide(mpp=0.5, tile_px=256)(slide, np.ones((1, 1200, 2000))).coords.tolist()
        [[0, 0], [512, 0], [1024, 0], [0, 512], [512, 512], [1024, 512]]
    """

    def __init__(self, mpp: float = 0.5, tile_px: int = 256, overlap: float = 0.0, min_tissue: float = 0.5) -> None:
        if mpp <= 0:
            raise ValueError(f"TileSlide: mpp must be positive, got {mpp}")
        if tile_px < 1 or tile_px != int(tile_px):
            raise ValueError(f"TileSlide: tile_px must be a whole number of pixels, got {tile_px}")
        if not 0 <= overlap < 1:
            raise ValueError(f"TileSlide: overlap must lie in 0..<1 (a fraction of the side), got {overlap}")
        if not 0 <= min_tissue <= 1:
            raise ValueError(f"TileSlide: min_tissue must lie in 0..1, got {min_tissue}")
        self.mpp, self.tile_px, self.overlap, self.min_tissue = mpp, int(tile_px), overlap, min_tissue

    def __call__(self, slide: Slide, tissue: NdarrayOrTensor) -> Tiles:  # type: ignore[override]
        mask: MetaTensor = convert_to_tensor(tissue, track_meta=True)
        downsample = float(mask.affine[0, 0])
        covered = downsample * mask.shape[-1], downsample * mask.shape[-2]
        if mask.ndim != 3 or any(abs(c - s) > 2 * downsample for c, s in zip(covered, slide.size, strict=True)):
            raise ValueError(
                f"TileSlide: wanted a mask (1, h, w) of the whole slide, {slide.size[0]} x {slide.size[1]} pixels, "
                f"got shape {tuple(mask.shape)} at downsample {downsample:g} (by its affine)"
            )
        size = slide.tile_size(self.tile_px, self.mpp)
        step = max(1, round(size.level_px * (1 - self.overlap)))
        scale = slide.level_downsamples[size.level]
        starts = [
            np.rint(np.arange(0, side - size.level_px + 1, step) * scale).astype(np.int64)
            for side in slide.level_sizes[size.level]
        ]
        if not (len(starts[0]) and len(starts[1])):
            raise ScanError(
                slide.path,
                f"{slide.size[0]} x {slide.size[1]} pixels, smaller than a tile of {size.level0_px}; lower tile_px",
            )
        fractions = _fractions(
            np.asarray(mask[0]) > 0, starts[1] / downsample, starts[0] / downsample, size.level0_px / downsample
        )
        rows, columns = np.nonzero(fractions >= self.min_tissue - EDGE)
        if not len(rows):
            raise ScanError(
                slide.path,
                f"none of {fractions.size} tiles has {self.min_tissue:.0%} tissue, the best has {fractions.max():.1%}; "
                "lower min_tissue or tile_px",
            )
        return Tiles(slide, np.stack([starts[0][columns], starts[1][rows]], axis=1), size)


class RandSampleTiles(RandomizableTransform):
    """Sample tiles at random, anew at each call.

    Draws ``num_tiles`` without replacement, in their original order; all if there are no more.

    Args:
        num_tiles: how many, 1 or more; None for all.

    Returns:
        `Tiles`; the input itself if all are taken.

    Example:
        >>> slide = Slide("a.svs", 0.5, (640, 64), ((640, 64),), (1.0,), "aperio", "openslide")
        >>> tiles = TileSlide(tile_px=64)(slide, np.ones((1, 64, 640)))
        >>> len(tiles), len(RandSampleTiles(3)(tiles))
        (10, 3)
    """

    def __init__(self, num_tiles: int | None = None) -> None:
        super().__init__()
        if num_tiles is not None and num_tiles < 1:
            raise ValueError(f"RandSampleTiles: num_tiles must be 1 or more, or None for all, got {num_tiles}")
        self.num_tiles = num_tiles
        self.drawn: NDArray[np.int64] | None = None

    def randomize(self, data: Tiles) -> None:
        """Draw the tiles."""
        take_all = self.num_tiles is None or len(data) <= self.num_tiles
        self.drawn = None if take_all else np.sort(self.R.choice(len(data), self.num_tiles, replace=False))

    def __call__(self, tiles: Tiles) -> Tiles:
        self.randomize(tiles)
        return tiles if self.drawn is None else tiles[self.drawn]


class TileSlided(EachKeyd, NoWayBack):
    """`TileSlide` for dictionaries, with the mask at ``mask_key``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "tissue",
        mpp: float = 0.5,
        tile_px: int = 256,
        overlap: float = 0.0,
        min_tissue: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, TileSlide(mpp, tile_px, overlap, min_tissue), allow_missing_keys, mask_key)


class RandSampleTilesd(RandomizableTransform, EachKeyd):
    """`RandSampleTiles` for dictionaries; each key gets a separate draw."""

    def __init__(self, keys: KeysCollection, num_tiles: int | None = None, allow_missing_keys: bool = False) -> None:
        self.sample = RandSampleTiles(num_tiles)
        EachKeyd.__init__(self, keys, self.sample, allow_missing_keys)
        RandomizableTransform.__init__(self)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandSampleTilesd:
        self.sample.set_random_state(seed, state)
        return self


def _fractions(
    mask: NDArray[np.bool_], tops: NDArray[np.float64], lefts: NDArray[np.float64], side: float
) -> NDArray[np.float64]:
    """Fraction of the mask in each square of a grid (rows, columns), by an integral image; positions in mask pixels."""
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.int32), axis=1, out=integral[1:, 1:])
    rows = _at(integral, tops + side) - _at(integral, tops)
    columns = _at(rows.T, lefts + side) - _at(rows.T, lefts)
    return columns.T / side**2


def _at(integral: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows at fractional positions, interpolated linearly, the last one beyond the end."""
    before = np.minimum(positions.astype(int), len(integral) - 2)
    part = np.minimum(positions - before, 1)[:, None]
    return integral[before] * (1 - part) + integral[before + 1] * part
