"""Open files of this process: opened when read, a few at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

MAX_OPEN = 8


class Handles:
    """The readers that this process used last; beyond `max_open` the oldest is dropped, and closes when unused.

    Example:
        >>> handles = Handles(max_open=1)
        >>> handles.get("a", lambda: "opened") is handles.get("a", lambda: "again")
        True
        >>> handles.get("b", lambda: "other"), handles.get("a", lambda: "again")
        ('other', 'again')
    """

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self.max_open = max_open
        self._open: OrderedDict[Any, Any] = OrderedDict()
        self._inherited: list[Any] = []
        self._lock = Lock()
        os.register_at_fork(after_in_child=self._forget)

    def get(self, key: Any, opener: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._open:
                while len(self._open) >= self.max_open:
                    self._open.popitem(last=False)
                self._open[key] = opener()
            self._open.move_to_end(key)
            return self._open[key]

    def drop(self, key: Any) -> None:
        with self._lock:
            self._open.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._open.clear()

    def _forget(self) -> None:
        """A forked process neither uses nor closes what its parent opened: a lock may be held, a position shared."""
        self._inherited.append(self._open)
        self._open, self._lock = OrderedDict(), Lock()


HANDLES = Handles()


def close_slides() -> None:
    """Close the slides that this process holds open; they are reopened when read.

    Example:
        >>> close_slides()
    """
    HANDLES.clear()
