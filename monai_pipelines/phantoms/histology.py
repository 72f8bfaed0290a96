"""Writes H&E-like tiles of nine colorectal tissues: one folder per class, or in the format of PathMNIST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_pipelines.phantoms.fields import Seed
from monai_pipelines.phantoms.tissue import TISSUES, Tissue
from monai_pipelines.phantoms.writing import draw_all, new_folder

HEMATOXYLIN = (0.56, 0.72, 0.41)
EOSIN = (0.22, 0.80, 0.56)
SIDE, SHRINK = 28, 8  # PathMNIST: pixels, of 8 x 8 pixels each


class Stain(NamedTuple):
    """How a slide was stained and scanned: optical density of each stain, (3,), light without tissue, blur, noise."""

    blue_od: np.ndarray
    pink_od: np.ndarray
    light: np.ndarray
    blur_px: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stain:
        """The stain of one laboratory."""
        blue, pink = (
            np.abs(np.array(mean) + rng.normal(0, 0.045, 3)) * rng.uniform(0.65, 1.35) for mean in (HEMATOXYLIN, EOSIN)
        )
        light = 255 * rng.uniform(0.88, 0.98) * rng.uniform(0.96, 1, 3)
        return cls(1.25 * blue, 0.62 * pink, light, rng.uniform(0.3, 0.9), rng.uniform(0.5, 3))

    def color(self, tissue: Tissue, rng: np.random.Generator) -> np.ndarray:
        """(size, size, 3) uint8 by Beer-Lambert: light x exp(-od x amount); sections vary in thickness."""
        thickness = rng.uniform(0.6, 1.45)
        blue, pink = (
            thickness * np.maximum(gaussian_filter(amount, self.blur_px), 0)[..., None]
            for amount in (tissue.blue, tissue.pink)
        )
        rgb = self.light * np.exp(-blue * self.blue_od - pink * self.pink_od)
        return np.clip(np.rint(rgb + self.noise * rng.standard_normal(rgb.shape)), 0, 255).astype(np.uint8)


def histology_tile(seed_or_rng: Seed, tissue: str, size: int = 224, stain: Stain | None = None) -> np.ndarray:
    """Draw one tile, (size, size, 3) uint8, 0.5 um per pixel.

    Args:
        seed_or_rng: same seed, same tile.
        tissue: ADI, BACK, DEB, LYM, MUC, MUS, NORM, STR or TUM.
        size: rows and columns.
        stain: the slide's; None draws one.

    Raises:
        ValueError: an unknown tissue.

    Example:
        >>> histology_tile(0, "LYM", size=64).shape
        (64, 64, 3)
    """
    if tissue not in TISSUES:
        raise ValueError(f"histology_tile: tissue must be one of {', '.join(TISSUES)}, got {tissue!r}")
    rng = np.random.default_rng(seed_or_rng)
    drawing = Tissue(rng, size)
    TISSUES[tissue](drawing)
    return (stain or Stain.draw(rng)).color(drawing, rng)


def write_histology_tiles(
    directory: str | PathLike[str],
    num_per_class: int | Mapping[str, int] = 60,
    seed: int = 0,
    *,
    size: int = 224,
    num_slides: int = 24,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write tiles as `<class>/<slide>_<number>.png`.

    Slides differ in stain and light, and each gives tiles of every class. The same arguments give the same bytes,
    for any `num_workers`.

    Args:
        directory: new or empty folder.
        num_per_class: tiles per class, or a number for each class wanted, as {"LYM": 200, "TUM": 10}.
        seed: random seed.
        size: rows and columns, 0.5 um each.
        num_slides: slides, the patients of this set.
        num_workers: processes; None: one per core. More than one needs the usual `if __name__ == "__main__"`.
        progress: show a progress bar.

    Returns:
        The directory.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: unknown classes, no tiles of a class, or no slides.

    Example:
        >>> import tempfile
        >>> counts = {"LYM": 2, "TUM": 1}
        >>> folder = write_histology_tiles(tempfile.mkdtemp(), counts, size=64, num_slides=2, progress=False,
        ...     num_workers=1)
        >>> sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
        ['LYM/slide-0000_0000.png', 'LYM/slide-0001_0001.png', 'TUM/slide-0000_0000.png']
    """
    counts = dict(num_per_class) if isinstance(num_per_class, Mapping) else dict.fromkeys(TISSUES, num_per_class)
    if unknown := sorted(set(counts) - set(TISSUES)):
        raise ValueError(f"write_histology_tiles: unknown classes {unknown}, wanted some of {', '.join(TISSUES)}")
    if not counts or min(counts.values()) < 1 or num_slides < 1:
        raise ValueError(
            f"write_histology_tiles: wanted at least 1 tile per class and 1 slide, got {counts} and {num_slides}"
        )
    folder = new_folder(directory, "write_histology_tiles", *counts)
    plans = []
    for index, slide_seed in enumerate(np.random.SeedSequence(seed).spawn(num_slides)):
        tiles = [(name, number) for name, count in counts.items() for number in range(index, count, num_slides)]
        plans.append((slide_seed, f"slide-{index:04d}", tiles))
    draw_all(partial(_write_slide, folder=folder, size=size), plans, num_workers, progress)
    return folder


def write_pathmnist(
    directory: str | PathLike[str],
    num_slides: int = 40,
    seed: int = 0,
    *,
    tiles_per_class: int = 4,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write tiles of 224 x 224 pixels shrunk to 28 x 28, split by slide: 7 of 10 train, 1 validation, 2 test.

    Args:
        directory: gets `pathmnist.npz` with `{train,val,test}_images` (N, 28, 28, 3) uint8 and `_labels` (N, 1) uint8.
        num_slides: slides, which differ in stain and light; at least 10.
        tiles_per_class: tiles of each slide in each of the nine classes.
        seed, num_workers, progress: of `write_histology_tiles`.

    Returns:
        Path of the file.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: fewer than 10 slides, or no tiles.

    Reference: Yang et al., MedMNIST v2, Scientific Data 2023.
    """
    if num_slides < 10 or tiles_per_class < 1:
        raise ValueError(f"write_pathmnist: wanted 10 slides and 1 tile or more, got {num_slides}, {tiles_per_class}")
    folder = new_folder(directory, "write_pathmnist")
    seeds = np.random.SeedSequence(seed).spawn(num_slides)
    slides = draw_all(partial(_draw_small, tiles_per_class=tiles_per_class), seeds, num_workers, progress)
    ends = num_slides * 7 // 10, num_slides * 8 // 10
    parts = {"train": slides[: ends[0]], "val": slides[ends[0] : ends[1]], "test": slides[ends[1] :]}
    labels = np.repeat(np.arange(len(TISSUES), dtype=np.uint8), tiles_per_class)[:, None]
    arrays = {f"{split}_images": np.concatenate(part) for split, part in parts.items()}
    arrays |= {f"{split}_labels": np.tile(labels, (len(part), 1)) for split, part in parts.items()}
    np.savez_compressed(folder / "pathmnist.npz", allow_pickle=False, **arrays)
    return folder / "pathmnist.npz"


def _tiles(seed: np.random.SeedSequence, tissues: Sequence[str], size: int) -> list[np.ndarray]:
    """Tiles of one slide, which share its stain."""
    stain_seed, *seeds = seed.spawn(1 + len(tissues))
    stain = Stain.draw(np.random.default_rng(stain_seed))
    return [histology_tile(seed, tissue, size, stain) for seed, tissue in zip(seeds, tissues, strict=True)]


def _write_slide(plan: tuple[np.random.SeedSequence, str, list[tuple[str, int]]], folder: Path, size: int) -> None:
    seed, slide, tiles = plan
    for (name, number), pixels in zip(tiles, _tiles(seed, [name for name, _ in tiles], size), strict=True):
        Image.fromarray(pixels).save(folder / name / f"{slide}_{number:04d}.png", compress_level=1)


def _draw_small(seed: np.random.SeedSequence, tiles_per_class: int) -> np.ndarray:
    """Tiles of one slide, (N, 28, 28, 3), in the order of the classes."""
    tiles = np.stack(_tiles(seed, np.repeat(sorted(TISSUES), tiles_per_class).tolist(), SIDE * SHRINK))
    blocks = tiles.reshape(len(tiles), SIDE, SHRINK, SIDE, SHRINK, 3)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
