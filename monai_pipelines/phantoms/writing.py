"""Shared by the writers of cohorts: a new folder, processes with a progress bar, tables."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.progress import track

Plan = TypeVar("Plan")
Result = TypeVar("Result")


def new_folder(directory: str | PathLike[str], writer: str, *subfolders: str) -> Path:
    """Make a folder and its subfolders; one with any content is an error of `writer`."""
    folder = Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{writer}: {folder} must be new or empty (name another, or delete it)")
    for name in ("", *subfolders):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def balanced_kinds(rng: np.random.Generator, labels: np.ndarray, num_kinds: int) -> np.ndarray:
    """Kinds 0, 1, ... of all members, balanced in each class, so that the kind does not reveal the class."""
    kinds = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        kinds[members] = rng.permutation(np.arange(len(members)) % num_kinds)
    return kinds


def draw_all(
    draw: Callable[[Plan], Result], plans: Sequence[Plan], num_workers: int | None, progress: bool
) -> list[Result]:
    """Results of `draw` in the order of the plans, drawn in `num_workers` processes (None: one per core)."""
    draw = partial(_on_one_thread, draw)
    workers = min(num_workers or os.cpu_count() or 1, len(plans))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else nullcontext() as pool:
        results = pool.map(draw, plans) if pool else map(draw, plans)
        return list(track(results, "Drawing phantoms", total=len(plans), disable=not progress))


def _on_one_thread(draw: Callable[[Plan], Result], plan: Plan) -> Result:
    """Matrix products are small: more threads would only wait for each other and for those of other workers."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        return draw(plan)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a table, the same bytes on every system; returns its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path
