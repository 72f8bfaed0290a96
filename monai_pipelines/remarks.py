"""What libraries say about a file while they read it: kept from the terminal, for the caller to pass on or drop."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_LOCK = RLock()  # loggers and the terminal are shared by all threads


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def logged_remarks(name: str) -> Iterator[list[str]]:
    """The messages of a library's logger, instead of its handlers.

    Example:
        >>> with logged_remarks("library") as remarks:
        ...     logging.getLogger("library").warning("odd")
        >>> remarks
        ['odd']
    """
    logger, remarks = logging.getLogger(name), list[str]()
    with _LOCK:
        handlers, propagate = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [_Collector(remarks)], False
        try:
            yield remarks
        finally:
            logger.handlers, logger.propagate = handlers, propagate


@contextmanager
def printed_remarks() -> Iterator[list[str]]:
    """The lines that native libraries print to the process's stderr, complete when the block is left.

    Example:
        >>> with printed_remarks() as remarks:
        ...     _ = os.write(2, b"odd\\n")
        >>> remarks
        ['odd']
    """
    remarks: list[str] = []
    with _LOCK, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield remarks
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            remarks += file.read().decode(errors="replace").splitlines()
