"""Writes H&E-like tiles in the format of PathMNIST: 28 x 28 pixels, one `pathmnist.npz`."""

from __future__ import annotations

from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np

from monai_pipelines.phantoms.histology import Stain, histology_tile
from monai_pipelines.phantoms.tissue import TISSUES
from monai_pipelines.phantoms.writing import draw_all, new_folder

SIDE, SHRINK = 28, 8


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
        directory: new or empty folder; gets `pathmnist.npz` with `{train,val,test}_images` (N, 28, 28, 3) uint8 and
            `_labels` (N, 1) uint8.
        num_slides: slides, which differ in stain and light; at least 10.
        seed: same seed, same tiles.
        tiles_per_class: tiles of each slide in each of the nine classes.
        num_workers: processes; None: one per core. More than one needs the usual `if __name__ == "__main__"`.
        progress: show a progress bar.

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
    slides = list(draw_all(partial(_draw_slide, tiles_per_class=tiles_per_class), seeds, num_workers, progress))
    ends = num_slides * 7 // 10, num_slides * 8 // 10
    parts = {"train": slides[: ends[0]], "val": slides[ends[0] : ends[1]], "test": slides[ends[1] :]}
    labels = np.repeat(np.arange(len(TISSUES), dtype=np.uint8), tiles_per_class)[:, None]
    arrays = {f"{split}_images": np.concatenate(part) for split, part in parts.items()}
    arrays |= {f"{split}_labels": np.tile(labels, (len(part), 1)) for split, part in parts.items()}
    np.savez_compressed(folder / "pathmnist.npz", allow_pickle=False, **arrays)
    return folder / "pathmnist.npz"


def _draw_slide(seed: np.random.SeedSequence, tiles_per_class: int) -> np.ndarray:
    stain_seed, *seeds = seed.spawn(1 + len(TISSUES) * tiles_per_class)
    stain = Stain.draw(np.random.default_rng(stain_seed))
    names = [name for name in sorted(TISSUES) for _ in range(tiles_per_class)]
    tiles = np.stack([histology_tile(s, name, SIDE * SHRINK, stain) for s, name in zip(seeds, names, strict=True)])
    blocks = tiles.reshape(len(tiles), SIDE, SHRINK, SIDE, SHRINK, 3)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
