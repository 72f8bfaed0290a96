"""Items worked on by the workers of a Dask cluster, which may come, die and be cut off while they work."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import TYPE_CHECKING, Any

from monai_pipelines.data.workers import Compute, Outcome, Work
from monai_pipelines.versions import library_versions

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]

KILLS = (
    "{} worker processes ended while reading it (out of memory, or a decoder that crashes?); give workers more memory, "
    "or convert or export it again"
)
_CONNECT_S = 20
_REFRESH_S = 5.0
_TASK_S = 2.0  # a task ends after the item during which this time is over
_TASK_ITEMS = 100
_LEAST_TASKS = 8  # submitted ahead, so that a cluster that grows with its load does so

_one_at_a_time = Lock()
_loaded: dict[bytes, tuple[Work, str]] = {}


@contextmanager
def on_cluster(work: Work, items: Sequence[Item], scheduler: str) -> Iterator[Compute]:
    """A function that makes the outcomes of items on the workers of a running Dask cluster.

    The work is sent once to each worker, items in tasks of up to 100 that end after two seconds; twice as many tasks as
    the workers have threads are submitted at a time. A worker process works on one item at a time, so more than one
    thread is of no use. Tasks of a worker that dies go to others; items of a task that too many workers died at
    (``distributed.scheduler.allowed-failures``) are tried one by one, at last with nothing else on the cluster.

    Args:
        work: can be pickled; makes the outcome of an item, small enough to be sent back.
        items: of a datalist; their files, and the current folder, are seen by all workers under the same paths.
        scheduler: address, as tcp://host:8786.

    Yields:
        a function of indices of items, which gives these and their outcomes as they come.

    Raises:
        ImportError: Dask is not installed.
        OSError: no scheduler there, or it has gone away.
        RuntimeError: workers have other versions of libraries.
    """
    client = _connect(scheduler)
    try:
        yield _Tasks(client, work, items, scheduler)
    finally:
        client.close()


def _connect(scheduler: str) -> Client:
    try:
        from distributed import Client
    except ImportError:
        raise ImportError(
            f"the scheduler {scheduler} wants Dask, which is not installed: pip install 'monai_pipelines[cluster]'"
        ) from None
    try:
        return Client(scheduler, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{scheduler}: no Dask scheduler answers within {_CONNECT_S} s ({type(error).__name__}); is it running, "
            "and is this the address that it prints, as tcp://host:8786?"
        ) from None


class _Tasks:
    """The tasks of one run."""

    def __init__(self, client: Client, work: Work, items: Sequence[Item], scheduler: str) -> None:
        self.client, self.items, self.scheduler = client, items, scheduler
        self.content = pickle.dumps((_versions(), os.getcwd(), work))
        self.work = self._sent()

    def _sent(self) -> Future:
        import dask

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "100GB"}):
            return self.client.submit(_as_bytes, self.content, pure=False, priority=1)

    def __call__(self, indices: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        suspects, deaths = list(indices), 0
        for most_items, most_tasks in ((_TASK_ITEMS, None), (1, None), (1, 1)):  # at last with nothing beside it
            waiting, suspects = deque(suspects), []
            for chosen, done in self._tasks(waiting, most_items, most_tasks):
                if isinstance(done, int):
                    suspects += chosen
                    deaths = done
                else:
                    yield from zip(chosen, done, strict=True)
        yield from ((index, (None, KILLS.format(deaths))) for index in suspects)

    def _tasks(
        self, waiting: deque[int], most_items: int, most_tasks: int | None
    ) -> Iterator[tuple[list[int], list[Outcome] | int]]:
        """Items and their outcomes, or how many workers have died at their task."""
        from distributed import as_completed

        running: dict[Future, list[int]] = {}
        completed = as_completed(loop=self.client.loop)
        num_threads, counted = self._count_threads(), time.monotonic()
        try:
            while waiting or running:
                while waiting and len(running) < (most_tasks or max(_LEAST_TASKS, 2 * num_threads)):
                    size = min(most_items, len(waiting) // (2 * num_threads) or 1)
                    chosen = [waiting.popleft() for _ in range(size)]
                    chunk = [self.items[index] for index in chosen]
                    future = self.client.submit(_outcomes, self.work, chunk, pure=False)
                    running[future] = chosen
                    completed.add(future)
                future = next(completed)
                if future.status in ("lost", "pending"):  # its worker has died with the result: it is made again
                    completed.add(future)
                    continue
                chosen, done = running.pop(future), self._result(future)
                future.release()
                if not isinstance(done, int):
                    waiting.extendleft(reversed(chosen[len(done) :]))
                    chosen = chosen[: len(done)]
                yield chosen, done
                if time.monotonic() - counted > _REFRESH_S:
                    num_threads, counted = self._count_threads(), time.monotonic()
        finally:
            self.client.cancel(list(running))

    def _count_threads(self) -> int:
        num_threads = sum(self.client.nthreads().values())
        if not num_threads:
            logger.warning("%s has no workers yet: waiting for them", self.scheduler)
        return max(1, num_threads)

    def _result(self, future: Future) -> list[Outcome] | int:
        from distributed import KilledWorker

        if future.status == "finished":
            return future.result()
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker) and error.task != future.key:  # none of its items was to blame
            self.work = self._sent()
            return []
        if isinstance(error, KilledWorker):
            return error.allowed_failures + 1
        if error is None:
            raise OSError(
                f"{self.scheduler}: the connection to the scheduler is lost; run this again when it is back: what is "
                "complete is not made again"
            )
        raise error


def _as_bytes(content: bytes) -> bytes:
    """A task of its own, so that its result is kept by workers, and made again if those die."""
    return content


def _outcomes(content: bytes, items: Sequence[Item]) -> list[Outcome]:
    """Outcomes of items, at least one, until the time of a task is over."""
    with _one_at_a_time:
        work, folder = _load(content)
        outcomes, start = list[Outcome](), time.monotonic()
        with chdir(folder):
            for item in items:
                outcomes.append(work(item))
                if time.monotonic() - start > _TASK_S:
                    break
        return outcomes


def _load(content: bytes) -> tuple[Work, str]:
    """The work and the client's folder, unpickled once in a process."""
    if content not in _loaded:
        wanted, folder, work = pickle.loads(content)
        found = _versions()
        names = [name for name in sorted(wanted | found) if wanted.get(name) != found.get(name)]
        if names:
            different = ", ".join(f"{name} {found.get(name)} instead of {wanted.get(name)}" for name in names)
            raise RuntimeError(f"a worker on {gethostname()} has {different}: install the same versions as here")
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"a worker on {gethostname()} does not see {folder}: workers want the same folders under the same paths"
            )
        _loaded.clear()
        _loaded[content] = work, folder
    return _loaded[content]


def _versions() -> dict[str, str]:
    return {name: version for name, version in library_versions().items() if name != "python"}
