"""Tiles per second from a slide, against OpenSlide and MONAI's readers, and the time to plan its tiles.

    python benchmarks/slide_reading.py [--rounds 5] [--csv benchmarks/results/slide_reading.csv]

Slides of 20,000 x 20,000 pixels, levels 1/4/16 of JPEG tiles (4:2:0, quality 80), are generated: a disc of tissue on
white with 1000 tiles in it, read row by row in batches of 100. Tiles of 256 px at 0.5 um per pixel are read from four
files: "aligned", with tiles of 256 px at 0.5 um; "shrunk", of 256 px at 0.25 um; "unaligned", of 240 px at 0.5 um;
"fraction", of 256 px at 0.23 um: 557 px become 256, where PIL's box filter includes pixels whole or not at all.
OpenSlide: `read_region` for each tile, to RGB, and PIL's box filter for shrinking. MONAI: `WSIReader.get_data` at the
same positions; `MaskedPatchWSIDataset` with OpenSlide, item by item at 1000 of its positions, listing not timed.

Methods alternate; each reopens the slide in every round. `times_openslide` is how many times as fast as OpenSlide a
method is. "plan": thumbnail, tissue mask and list of tiles.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import openslide
from harness import arguments, per_second, record, speedups, timed
from monai.data import MaskedPatchWSIDataset, WSIReader
from PIL import Image

from monai_pipelines import load_chain
from monai_pipelines.phantoms.histology import Stain, histology_tile
from monai_pipelines.phantoms.slide_file import write_pyramid
from monai_pipelines.slides import open_slide

SIDE, TILE, NUM_TILES, BATCH, TEXTURE, MPP = 20_000, 256, 1000, 100, 2048, 0.5
# um per pixel, side of the file's tiles
SLIDES = {"aligned": (0.5, 256), "shrunk": (0.25, 256), "unaligned": (0.5, 240), "fraction": (0.23, 256)}
OURS, OPENSLIDE, PLAN = "monai_pipelines, {} thread(s)", "OpenSlide", "plan"


class Picture:
    """One level, drawn on demand: a repeated texture in the cells of a disc, white elsewhere.

    Args:
        texture: (TEXTURE, TEXTURE, 3) of level 0.
        downsample: of the level.
        cell_px: side of a cell at level 0.
    """

    def __init__(self, texture: np.ndarray, downsample: int, cell_px: int) -> None:
        self.texture = np.asarray(Image.fromarray(texture).reduce(downsample))
        self.downsample, self.cell_px = downsample, cell_px
        self.shape = (SIDE // downsample, SIDE // downsample, 3)

    def __getitem__(self, area: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (np.arange(*side.indices(self.shape[0])) for side in area)
        tissue = in_tissue(*np.ix_(*(side * self.downsample // self.cell_px for side in (rows, columns))), self.cell_px)
        texture = self.texture[np.ix_(rows % len(self.texture), columns % len(self.texture))]
        return np.where(tissue[..., None], texture, np.uint8(243))


def in_tissue(row: np.ndarray, column: np.ndarray, cell_px: int) -> np.ndarray:
    """Whether cells lie in the disc, which has just over 1000 cells."""
    center = SIDE / cell_px / 2 - 0.5
    return (row - center) ** 2 + (column - center) ** 2 < 18.2**2


def openslide_tiles(path: Path, coords: np.ndarray, level0_px: int) -> Iterator[np.ndarray]:
    """One `read_region` for each tile."""
    with openslide.OpenSlide(path) as slide:
        for batch in batches(coords):
            tiles = np.empty((BATCH, TILE, TILE, 3), dtype=np.uint8)
            for tile, xy in zip(tiles, batch.tolist(), strict=True):
                region = slide.read_region(xy, 0, (level0_px, level0_px)).convert("RGB")
                tile[:] = np.asarray(region if level0_px == TILE else region.resize((TILE, TILE), Image.Resampling.BOX))
            yield tiles


def our_tiles(path: Path, coords: np.ndarray, num_threads: int) -> Iterator[np.ndarray]:
    """`Slide.read_tiles`."""
    slide = open_slide(path)
    size = slide.tile_size(TILE, MPP)
    for batch in batches(coords):
        yield slide.read_tiles(batch, size, num_threads)


def monai_tiles(path: Path, coords: np.ndarray) -> Iterator[np.ndarray]:
    """`WSIReader` at the same positions."""
    reader = WSIReader("openslide", level=0)
    with reader.read(str(path)) as slide:
        for batch in batches(coords):
            tiles = [reader.get_data(slide, location=(y, x), size=(TILE, TILE))[0] for x, y in batch.tolist()]
            yield np.stack(tiles).transpose(0, 2, 3, 1)


def masked_patches(path: Path) -> Callable[[], Iterator[np.ndarray]]:
    """`MaskedPatchWSIDataset` at 1000 of its positions."""
    patches = MaskedPatchWSIDataset(
        [{"image": str(path)}], patch_size=TILE, patch_level=0, mask_level=2, reader="openslide"
    )
    indices = np.linspace(0, len(patches) - 1, NUM_TILES).astype(int).tolist()
    return lambda: (patches[index]["image"] for index in indices)


def batches(coords: np.ndarray) -> list[np.ndarray]:
    """Coordinates in batches of BATCH."""
    return np.array_split(coords, NUM_TILES // BATCH)


def plan(path: Path) -> Iterator[np.ndarray]:
    """Thumbnail, tissue mask, list of tiles."""
    yield load_chain("slide_tiles").until("sample")({"image": str(path)})["image"].coords


def readers(path: Path, coords: np.ndarray, level0_px: int) -> dict[str, Callable[[], Iterator[np.ndarray]]]:
    """Whatever reads the same tiles."""
    found: dict[str, Callable[[], Iterator[np.ndarray]]] = {
        OPENSLIDE: partial(openslide_tiles, path, coords, level0_px),
        **{OURS.format(threads): partial(our_tiles, path, coords, threads) for threads in (1, 2)},
    }
    if path.stem == "aligned":
        found["MONAI WSIReader"] = partial(monai_tiles, path, coords)
    return found


def main() -> None:
    args = arguments(__doc__, "slide_reading.csv").parse_args()
    texture = histology_tile(0, "TUM", TEXTURE, Stain.draw(np.random.default_rng(0)))
    with tempfile.TemporaryDirectory() as folder:
        for name, (mpp, side) in SLIDES.items():
            path, level0_px = Path(folder) / f"{name}.tif", round(TILE * MPP / mpp)
            write_pyramid(path, [Picture(texture, d, level0_px) for d in (1, 4, 16)], mpp, tile_px=side)
            cells = np.indices([SIDE // level0_px] * 2)
            rows, columns = np.nonzero(in_tissue(*cells, level0_px))
            coords = np.column_stack([columns, rows])[:NUM_TILES] * level0_px
            methods = readers(path, coords, level0_px)
            differences = {
                method: difference(read(), methods[OPENSLIDE]())
                for method, read in methods.items()
                if method != OPENSLIDE
            }
            if name == "aligned":
                methods["MONAI MaskedPatchWSIDataset"] = masked_patches(path)
            reading = {method: partial(exhaust, read) for method, read in methods.items()}
            seconds = timed({**reading, PLAN: partial(exhaust, partial(plan, path))}, args.rounds)
            read = {method: seconds[method] for method in methods}
            extra = {"tiles_per_s": per_second(read, NUM_TILES), "times_openslide": speedups(read, OPENSLIDE)}
            data = f"{name}: {NUM_TILES} tiles of {TILE} at {MPP} um, file's of {side} at {mpp} um"
            record(
                args.csv, seconds, partner, differences, data, "openslide-bin", "monai",
                extra=extra,
            )  # fmt: skip


def partner(name: str) -> str:
    """Our method that does the same."""
    return PLAN if name == PLAN else OURS.format(1)


def exhaust(read: Callable[[], Iterator[np.ndarray]]) -> None:
    """Read all tiles."""
    deque(read(), maxlen=0)


def difference(tiles: Iterator[np.ndarray], others: Iterator[np.ndarray]) -> str:
    """Mean and maximum, in gray levels."""
    distances = [np.abs(a.astype(np.int16) - b) for a, b in zip(tiles, others, strict=True)]
    largest = max(int(d.max()) for d in distances)
    return f"gray levels from OpenSlide's: {np.mean(distances):.2f} on average, {largest} at most"


if __name__ == "__main__":
    main()
