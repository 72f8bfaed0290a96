"""Outcomes of items computed by worker processes, which may crash."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

CRASHED = "reading it crashes the process; convert or export it again"
_WORKER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")

Outcome = tuple[Any, str | None]


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
        except RuntimeError as error:
            if not worker_died(error):
                raise
            for index in range(done, min(done + 2 * num_workers, total)):
                yield _alone(dataset, index)
                done += 1


def worker_died(error: RuntimeError) -> bool:
    """Whether an error of a `DataLoader` says that a worker process crashed."""
    return bool(_WORKER_DIED.search(str(error)))


def as_is(fetched: Any) -> Any:
    """A ``collate_fn`` that changes nothing."""
    return fetched


def _alone(dataset: Dataset, index: int) -> Outcome:
    try:
        return next(_load(dataset, [index], num_workers=1))
    except RuntimeError as error:
        if not worker_died(error):
            raise
        return None, CRASHED


def _load(dataset: Dataset, indices: Sequence[int], num_workers: int) -> Iterator[Outcome]:
    for outcome in DataLoader(Subset(dataset, indices), batch_size=None, num_workers=num_workers, collate_fn=as_is):
        yield deepcopy(outcome)  # a tensor in a worker's shared memory keeps a file open
