"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from uuid import uuid4

_DAY_S = 24 * 60 * 60


@contextmanager
def atomic_write(file: str | PathLike[str]) -> Iterator[Path]:
    """Write a file through a temporary one beside it: ``file`` is always either the old one or the complete new one.

    Args:
        file: replaced at the end, when the new content is on the disk; after an error it is untouched. Missing folders
            are created.

    Yields:
        the temporary path, unique to this call.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp(), "numbers.txt")
        >>> with atomic_write(file) as part:
        ...     _ = part.write_text("1 2 3")
        >>> file.read_text()
        '1 2 3'
    """
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid4().hex}.part")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def remove_old_parts(folder: str | PathLike[str], age_s: float = _DAY_S) -> None:
    """Remove temporary files that killed runs left in a folder; younger ones may belong to a running one."""
    for part in Path(folder).glob(f"*.{'[0-9a-f]' * 32}.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > age_s:
                part.unlink()
