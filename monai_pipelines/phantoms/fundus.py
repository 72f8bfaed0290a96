"""Writes a cohort of synthetic fundus photographs, one folder per class, with the true lesions."""

from __future__ import annotations

from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from monai_pipelines.phantoms.retina import Camera, Eye, Spot, fundus_photo
from monai_pipelines.phantoms.writing import draw_all, new_folder, write_csv


class _Plan(NamedTuple):
    patient: str
    diseased: bool
    seed: np.random.SeedSequence


def write_fundus_cohort(
    directory: str | PathLike[str],
    num_patients: int = 200,
    seed: int = 0,
    *,
    size: int = 400,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write both eyes of synthetic patients as `<class>/<patient>_left.jpeg` and `_right.jpeg`, half of them diseased.

    The classes are `disease` (diabetic retinopathy) and `normal`. `lesions.csv` has the columns image, kind, x, y
    and radius, in pixels. The same arguments give the same bytes, for any `num_workers`.

    Args:
        directory: new or empty folder.
        num_patients: at least 2.
        seed: random seed.
        size: rows and columns, at least 64.
        num_workers: processes; None: one per core. More than one needs the usual `if __name__ == "__main__"`.
        progress: show a progress bar.

    Returns:
        The directory.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: fewer than 2 patients or 64 pixels.

    Example:
        >>> import tempfile
        >>> folder = write_fundus_cohort(tempfile.mkdtemp(), 2, size=64, num_workers=1, progress=False)
        >>> len(list(folder.glob("disease/*.jpeg"))), len(list(folder.glob("normal/*.jpeg")))
        (2, 2)
    """
    if num_patients < 2:
        raise ValueError(f"write_fundus_cohort: num_patients must be at least 2, one per class, got {num_patients}")
    if size < 64:
        raise ValueError(f"write_fundus_cohort: size must be at least 64 pixels, got {size}")
    folder = new_folder(directory, "write_fundus_cohort", "disease", "normal")
    root = np.random.SeedSequence(seed)
    diseased = np.random.default_rng(root).permutation(np.arange(num_patients) % 2 == 1)
    plans = [
        _Plan(f"phantom-{index:04d}", bool(diseased[index]), child)
        for index, child in enumerate(root.spawn(num_patients))
    ]
    write = partial(_write_patient, folder=folder, size=size)
    rows: list[list[object]] = []
    for photos in draw_all(write, plans, num_workers, progress):
        for image, spots in photos:
            rows += [[image, spot.kind, *(f"{value:.1f}" for value in spot[1:])] for spot in spots]
    write_csv(folder / "lesions.csv", ["image", *Spot._fields], rows)
    return folder


def _write_patient(plan: _Plan, folder: Path, size: int) -> list[tuple[str, list[Spot]]]:
    shared, *seeds = plan.seed.spawn(3)
    rng = np.random.default_rng(shared)
    eye, camera = Eye.draw(rng), Camera.draw(rng)
    written = []
    for side, seed in zip(("left", "right"), seeds, strict=True):
        photo = fundus_photo(seed, diseased=plan.diseased, left=side == "left", size=size, eye=eye, camera=camera)
        image = f"{'disease' if plan.diseased else 'normal'}/{plan.patient}_{side}.jpeg"
        Image.fromarray(photo.rgb).save(folder / image, quality=92)
        written.append((image, photo.lesions))
    return written
