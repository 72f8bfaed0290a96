"""Outcomes of items computed by other processes, which may crash: of this machine, or workers of a Dask cluster."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

from rich.progress import track
from torch.utils.data import DataLoader, Dataset, Subset

from monai_pipelines.data.progress import RunRecord

logger = logging.getLogger(__name__)

Outcome = tuple[Any, str | None]
Work = Callable[[Mapping[str, Any]], Outcome]
Compute = Callable[[Sequence[int]], Iterator[tuple[int, Outcome]]]

CRASHED = "reading it crashes the process; convert or export it again"
CLAIMED: Outcome = (None, "another process is making it")
_WORKER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")
PAUSE_S = 2.0


class WorkerCrashed(RuntimeError):
    """A worker process of a `DataLoader` crashed."""


def each_outcome(
    work: Work,
    items: Sequence[Mapping[str, Any]],
    label: str,
    num_workers: int = 0,
    scheduler: str | None = None,
    record: RunRecord | None = None,
) -> Iterator[Outcome]:
    """Outcomes of all items in order, with a progress bar.

    Locally, items in progress when a process crashes are retried one by one; on a cluster see
    `monai_pipelines.data.cluster.on_cluster`. What another run has claimed comes after everything else.

    Args:
        work: makes (result, None) of an item, or (None, why it cannot be used), or `CLAIMED`.
        items: of a datalist.
        label: of the progress bar.
        num_workers: local processes; with 0 a crash is one of the caller.
        scheduler: address of a Dask scheduler whose workers are used instead.
        record: of the run: where it stands is added to it.
    """
    early: dict[int, Outcome] = {}
    with _executor(work, items, num_workers, scheduler) as compute:
        due = 0
        for index, outcome in track(_as_done(compute, len(items)), label, total=len(items)):
            if record:
                record.add(items[index].get("name") or f"item {index}", outcome[1])
            early[index] = outcome
            while due in early:
                yield early.pop(due)
                due += 1


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


def _executor(
    work: Work, items: Sequence[Mapping[str, Any]], num_workers: int, scheduler: str | None
) -> AbstractContextManager[Compute]:
    if scheduler is None:
        return nullcontext(partial(_locally, _Outcomes(work, items), num_workers=num_workers))
    from monai_pipelines.data.cluster import on_cluster

    return on_cluster(work, items, scheduler)


def _as_done(compute: Compute, total: int) -> Iterator[tuple[int, Outcome]]:
    left = list(range(total))
    while left:
        claimed = []
        for index, outcome in compute(left):
            if outcome[1] == CLAIMED[1]:
                claimed.append(index)
            else:
                yield index, outcome
        if claimed and len(left) == total:
            logger.warning("%d of %d are being made by another process: waiting for them", len(claimed), total)
        left = claimed
        time.sleep(PAUSE_S if left else 0)


class _Outcomes(Dataset):
    def __init__(self, work: Work, items: Sequence[Mapping[str, Any]]) -> None:
        self.work, self.items = work, items

    def __getitem__(self, index: int) -> Outcome:
        return self.work(self.items[index])


def _locally(dataset: Dataset, indices: Sequence[int], num_workers: int) -> Iterator[tuple[int, Outcome]]:
    done = 0
    while done < len(indices):
        try:
            for outcome in _load(dataset, indices[done:], num_workers):
                yield indices[done], outcome
                done += 1
        except WorkerCrashed:
            for index in indices[done : done + 2 * num_workers]:
                yield index, _alone(dataset, index)
                done += 1


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
