"""Outcomes of items computed by worker processes, which may crash."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

CRASHED = "reading it crashes the process; convert or export it again"
_WORKER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")

Outcome = tuple[Any, str | None]


class WorkerCrashed(RuntimeError):
    """A worker process of a `DataLoader` crashed."""


def each_outcome(dataset: Dataset, num_workers: int) -> Iterator[Outcome]:
    """Outcomes of all items in order; items in progress when a worker process crashes are retried one by one.

    Args:
        dataset: item i is (result, None), or (None, why it cannot be used).
        num_workers: processes; with 0 a crash is one of the caller.
    """
    done, total = 0, len(dataset)  # type: ignore[arg-type]
    while done < total:
        try:
            for outcome in _load(dataset, range(done, total), num_workers):
                yield outcome
                done += 1
        except WorkerCrashed:
            for index in range(done, min(done + 2 * num_workers, total)):
                yield _alone(dataset, index)
                done += 1


def each_until_crash(loader: DataLoader) -> Iterator[Any]:
    """What a loader loads.

    Raises:
        WorkerCrashed: a worker process crashed, here and not in the middle of the caller's work; what it had
            computed but not yet handed over is lost.
    """
    try:
        for fetched in loader:
            with _crashes_wait():
                yield fetched
    except Exception as error:
        if not _is_crash(error):
            raise
        raise WorkerCrashed from error


def as_is(fetched: Any) -> Any:
    """A ``collate_fn`` that changes nothing."""
    return fetched


@contextmanager
def _crashes_wait() -> Iterator[None]:
    """Put torch's SIGCHLD handler off, which raises wherever the process is when a worker dies."""
    if threading.current_thread() is not threading.main_thread():  # there torch has no handler
        yield
        return
    children: list[int] = []
    handler = signal.signal(signal.SIGCHLD, lambda number, frame: children.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
    if children and callable(handler):
        handler(signal.SIGCHLD, None)


def _is_crash(error: Exception) -> bool:
    if isinstance(error, ConnectionError | FileNotFoundError | EOFError):
        # fetching a tensor fails if the worker that announced it is dead, unless it is an error of the dataset
        return "in DataLoader worker process" not in str(error)
    return isinstance(error, RuntimeError) and bool(_WORKER_DIED.search(str(error)))


def _alone(dataset: Dataset, index: int) -> Outcome:
    try:
        return next(_load(dataset, [index], num_workers=1))
    except WorkerCrashed:
        return None, CRASHED


def _load(dataset: Dataset, indices: Sequence[int], num_workers: int) -> Iterator[Outcome]:
    loader = DataLoader(Subset(dataset, indices), batch_size=None, num_workers=num_workers, collate_fn=as_is)
    return map(deepcopy, each_until_crash(loader))  # a tensor in a worker's shared memory keeps a file open
