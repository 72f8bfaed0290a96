"""A small Dask cluster of real processes, and work for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster

from monai_pipelines import Chain
from monai_pipelines.data.workers import Outcome

Item = dict[str, Any]


@contextmanager
def small_cluster(allowed_failures: int = 3) -> Iterator[LocalCluster]:
    """Two workers; those that die are started again."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": allowed_failures}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster,
    ):
        yield cluster


def number_and_process(item: Item) -> Outcome:
    if item.get("bad"):
        return None, "it is bad"
    return (item["number"], os.getpid()), None


def kill_at_three(item: Item) -> Outcome:
    if item["number"] == 3:
        os._exit(1)
    return item["number"], None


def missing_package(item: Item) -> Outcome:
    raise ImportError("no module named 'decoder'")


class CountsItsCopies:
    """Leaves a file each time it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        (self.folder / f"{os.getpid()}-{os.urandom(4).hex()}").touch()

    def __call__(self, item: Item) -> Outcome:
        return None, None


class CountedStep:
    """A step that notes in a file beside an image that it has worked on it, and may kill its process there."""

    def __init__(self, step: Any, seconds: float = 0.0, deadly: str | None = None) -> None:
        self.step, self.seconds, self.deadly = step, seconds, deadly

    def __call__(self, data: Item) -> Item:
        image = Path(data["image"])
        with image.with_suffix(".made").open("a") as counted:
            counted.write("made\n")
        time.sleep(self.seconds)
        if image.name == self.deadly:
            os._exit(1)
        return self.step(data)


def counted(chain: Chain, **options: Any) -> Chain:
    """The same chain, whose first step counts."""
    chain.transforms = (CountedStep(chain.transforms[0], **options), *chain.transforms[1:])
    return chain


def times_made(folder: Path) -> dict[str, int]:
    """How often `CountedStep` has worked on each image."""
    return {file.stem: len(file.read_text().splitlines()) for file in folder.rglob("*.made")}
