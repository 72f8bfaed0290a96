"""Items read one after another by worker processes, none of which can stop the others."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

_WORKER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")

Outcome = tuple[Any, str | None]


class Outcomes(Dataset, ABC):
    """What each item of a datalist gives: a result and None, or None and the reason why it cannot be used."""

    def __init__(self, data: Sequence[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    @abstractmethod
    def __getitem__(self, index: int) -> Outcome:
        """Of one item; must not raise."""

    def in_order(self, num_workers: int) -> Iterator[Outcome]:
        """Outcomes of all items in order; items in progress when a worker process crashes are retried one by one."""
        done = 0
        while done < len(self):
            try:
                for outcome in self._load(range(done, len(self)), num_workers):
                    yield outcome
                    done += 1
            except RuntimeError as error:
                if not _WORKER_DIED.search(str(error)):
                    raise
                for index in range(done, min(done + 2 * num_workers, len(self))):
                    yield self._alone(index)
                    done += 1

    def _alone(self, index: int) -> Outcome:
        try:
            return next(self._load([index], num_workers=1))
        except RuntimeError as error:
            if not _WORKER_DIED.search(str(error)):
                raise
            return None, "reading it crashes the process; convert or export it again"

    def _load(self, indices: Sequence[int], num_workers: int) -> Iterator[Outcome]:
        for outcome in DataLoader(Subset(self, indices), batch_size=None, num_workers=num_workers, collate_fn=as_is):
            yield deepcopy(outcome)  # a tensor in a worker's shared memory keeps a file open


def as_is(fetched: Any) -> Any:
    """A ``collate_fn`` that changes nothing."""
    return fetched
