"""A slide and a selection of its tiles: light values, which open the file when read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.errors import ScanError
from monai_pipelines.remote import Remote
from monai_pipelines.slides.geometry import TileSize, average_area, fit_level, fit_tile
from monai_pipelines.slides.handles import Backend, Stamp, drop_reader, open_reader, raise_scan_errors

if TYPE_CHECKING:
    from monai_pipelines.slides.readers import Reader

BLOCK_PX = 2048  # side of the blocks that a thumbnail reads


@dataclass(frozen=True)
class Slide:
    """A slide, made by `open_slide`: its description, not the open file.

    It can be pickled, compared and hashed. The file is opened on the first read of each process and stays open while
    it is among the 8 that the process read last; see `close_slides`.

    Args:
        path: of the file, absolute where `open_slide` made it, or what is in a store.
        mpp: um per pixel at level 0.
        size: (width, height) at level 0.
        level_sizes: (width, height) of each level.
        level_downsamples: level-0 pixels along a pixel of each level.
        vendor: OpenSlide's name; "tiff" if tifffile reads it.
        backend: "openslide" or "tifffile".
        stamp: size in bytes and modification time in ns of the file that was described; None: any.

    Example:
        >>> import tempfile, tifffile
        >>> from monai_pipelines.slides import open_slide
        >>> path = f"{tempfile.mkdtemp()}/slide.tif"
        >>> pixels = np.full((600, 800, 3), 200, dtype=np.uint8)
        >>> tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb")
        >>> slide = open_slide(path, mpp=0.25)
        >>> slide.size, slide.mpp, slide.backend
        ((800, 600), 0.25, 'openslide')
        >>> size = slide.tile_size(256, mpp=0.5)
        >>> size
        TileSize(tile_px=256, mpp=0.5, level=0, level_px=512, level0_px=512)
        >>> slide.read_tiles([(0, 0), (512, 0)], size).shape
        (2, 256, 256, 3)
    """

    path: str | Remote
    mpp: float
    size: tuple[int, int]
    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    vendor: str
    backend: Backend
    stamp: Stamp | None = None

    @property
    def color_profile(self) -> bytes | None:
        """ICC profile of the scanner's colors; None if the file has none."""
        return self._reader.color_profile

    @property
    def properties(self) -> Mapping[str, str]:
        """The file's metadata under OpenSlide's names, read-only; resolution and description if tifffile reads it."""
        return MappingProxyType(self._reader.properties)

    def tile_size(self, tile_px: int, mpp: float) -> TileSize:
        """Size of tiles of this resolution; they are never enlarged, see `fit_tile`.

        Args:
            tile_px: side of a tile.
            mpp: um per pixel of a tile.

        Raises:
            ScanError: the slide is coarser.
            ValueError: `tile_px` or `mpp` is not above 0.
        """
        if tile_px < 1 or mpp <= 0:
            raise ValueError(f"tile_size: tile_px and mpp must be above 0, got {tile_px} and {mpp}")
        size = fit_tile(tile_px, mpp, self.mpp, self.level_downsamples)
        if size is None:
            raise ScanError(
                self.path,
                f"wanted tiles of {mpp:g} um per pixel, the slide has {self.mpp:.4g} and tiles are never enlarged; "
                f"ask for {self.mpp:.4g} or more",
            )
        return size

    def read_region(self, x: int, y: int, width: int, height: int, level: int = 0) -> NDArray[np.uint8]:
        """A region of one level, white behind transparent pixels and beyond the edge.

        Args:
            x, y: upper left corner at level 0, rounded to pixels of the level.
            width, height: in pixels of the level.
            level: that is read, 0 is the finest.

        Returns:
            (height, width, 3).

        Raises:
            ScanError: the region cannot be read.
            ValueError: there is no such level, or the region has no size.
        """
        if not 0 <= level < len(self.level_sizes):
            raise ValueError(f"read_region: level must lie in 0..{len(self.level_sizes) - 1}, got {level}")
        if width < 1 or height < 1:
            raise ValueError(f"read_region: width and height must be 1 or more, got {width} and {height}")
        out = np.empty((height, width, 3), dtype=np.uint8)
        self._read(out, level, *self._position(x, y, level))
        return out

    def read_tiles(self, coords: ArrayLike, size: TileSize, num_threads: int = 1) -> NDArray[np.uint8]:
        """Tiles in the order of their coordinates, shrunk by averaging if the level is finer.

        Args:
            coords: (N, 2) upper left corners (x, y) at level 0.
            size: from `tile_size`.
            num_threads: for reading and decoding.

        Returns:
            (N, tile_px, tile_px, 3).

        Raises:
            ScanError: a tile cannot be read.
            ValueError: coordinates that are not (N, 2), or no thread.
        """
        corners = np.asarray(coords, dtype=np.int64)
        if corners.size == 0:
            corners = corners.reshape(0, 2)
        if corners.ndim != 2 or corners.shape[1] != 2:
            raise ValueError(f"read_tiles: coords must be (N, 2), got shape {corners.shape}")
        if num_threads < 1:
            raise ValueError(f"read_tiles: num_threads must be 1 or more, got {num_threads}")
        tiles = np.empty((len(corners), size.tile_px, size.tile_px, 3), dtype=np.uint8)

        def read(part: Iterable[int]) -> None:
            for index in part:
                x, y = corners[index].tolist()
                self._read_tile(tiles[index], x, y, size)

        parts = np.array_split(np.arange(len(corners)), num_threads)  # neighbors stay together
        if num_threads == 1:
            read(parts[0])
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                list(pool.map(read, parts))
        return tiles

    def thumbnail(self, mpp: float) -> tuple[NDArray[np.uint8], float]:
        """The whole slide, small, by averaging whole blocks of the nearest finer level.

        An incomplete last row or column of blocks is left out.

        Args:
            mpp: um per pixel, met as nearly as whole blocks allow.

        Returns:
            (h, w, 3), and the level-0 pixels along a pixel of it.

        Raises:
            ScanError: the slide cannot be read.
            ValueError: `mpp` is not above 0.
        """
        if mpp <= 0:
            raise ValueError(f"thumbnail: mpp must be above 0, got {mpp}")
        target = mpp / self.mpp
        level = fit_level(target, self.level_downsamples) or 0
        width, height = self.level_sizes[level]
        factor = min(max(1, round(target / self.level_downsamples[level])), width, height)
        small = np.empty((height // factor, width // factor, 3), dtype=np.uint8)
        side = max(1, BLOCK_PX // factor)
        for top in range(0, small.shape[0], side):
            for left in range(0, small.shape[1], side):
                block = np.empty_like(small[top : top + side, left : left + side], order="C")
                self._read(block, level, left * factor, top * factor, factor)
                small[top : top + side, left : left + side] = block
        return small, factor * self.level_downsamples[level]

    @property
    def _reader(self) -> Reader:
        return open_reader(self.path, self.backend, self.stamp)

    def _position(self, x: int, y: int, level: int) -> tuple[int, int]:
        """The pixel of this level that is nearest to a position at level 0."""
        downsample = self.level_downsamples[level]
        return round(x / downsample), round(y / downsample)

    def _read(self, out: NDArray[np.uint8], level: int, x: int, y: int, factor: int = 1) -> None:
        try:
            with raise_scan_errors(self.path):
                self._reader.read(out, level, x, y, factor)
        except ScanError:
            drop_reader(self.path, self.backend, self.stamp)  # after an error OpenSlide's handle is dead
            raise

    def _read_tile(self, out: NDArray[np.uint8], x: int, y: int, size: TileSize) -> None:
        level_x, level_y = self._position(x, y, size.level)
        factor, rest = divmod(size.level_px, size.tile_px)
        if not rest:
            self._read(out, size.level, level_x, level_y, factor)
            return
        region = np.empty((size.level_px, size.level_px, 3), dtype=np.uint8)
        self._read(region, size.level, level_x, level_y)
        out[:] = average_area(region, size.tile_px)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of a slide, such as a bag, that are not read yet.

    Args:
        slide: of the tiles.
        coords: (N, 2) int64, upper left corners (x, y) at level 0.
        size: of each tile.

    Raises:
        ValueError: coordinates of another shape or type.

    Example:
        >>> slide = Slide("slide.svs", 0.5, (1000, 800), ((1000, 800),), (1.0,), "aperio", "openslide")
        >>> tiles = Tiles(slide, np.array([[0, 0], [256, 0], [512, 0]]), slide.tile_size(256, 0.5))
        >>> len(tiles), tiles[1:].coords.tolist(), len(tiles[[0, 2]])
        (3, [[256, 0], [512, 0]], 2)
    """

    slide: Slide
    coords: NDArray[np.int64]
    size: TileSize

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 2 or self.coords.dtype != np.int64:
            raise ValueError(
                f"Tiles: coords must be (N, 2) int64, got shape {self.coords.shape} of {self.coords.dtype}"
            )

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, index: Any) -> Tiles:
        """A selection: a slice, or an array of indices or booleans."""
        return Tiles(self.slide, self.coords[index], self.size)
