"""Open files of this process: opened when read, a few at a time."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure, silent_logs
from monai_pipelines.remote import Remote, Staged

if TYPE_CHECKING:
    from monai_pipelines.slides.readers import Reader

Backend = Literal["openslide", "tifffile"]
Stamp = tuple[int, int]  # bytes, and nanoseconds of the last change

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


@contextmanager
def raise_scan_errors(path: str | Remote, *unchanged: type[Exception]) -> Iterator[None]:
    """Turn errors of parsers and decoders on broken files into `ScanError`, except for `unchanged` types.

    One about the copy of a slide in a store becomes one about the slide.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ScanError) and isinstance(path, Remote):
            raise ScanError(path, error.reason) from None
        if isinstance(error, (ScanError, *unchanged)):
            raise
        raise ScanError(path, f"broken file ({failure(error)}); copy it again") from None


def stamp_of(path: str | Remote) -> Stamp:
    """Changes when the file is written to."""
    if isinstance(path, Remote):
        stats = copied(path).stats()
        return sum(size or 0 for _, size, _ in stats), zlib.crc32(repr(stats).encode())
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def copied(slide: Remote) -> Remote:
    """What is copied to read a slide in a store: of a DICOM file the folder, where OpenSlide finds the others."""
    return slide.parent if slide.suffix.lower() == ".dcm" else slide


def _on_this_machine(path: str | Remote) -> tuple[str, Staged | None]:
    if not isinstance(path, Remote):
        return path, None
    whole = copied(path)
    staged = whole.stage()
    return str(staged.path if whole == path else staged.path / path.name), staged


def open_reader(path: str | Remote, backend: Backend, stamp: Stamp | None = None) -> Reader:
    """The reader of this slide in this process, opened if necessary; one of a copy keeps it from being removed.

    Raises:
        ScanError: the file is broken, or its stamp differs.
        OpenSlideError: OpenSlide refuses it.
        tifffile.TiffFileError: it is no TIFF.
    """
    from openslide import OpenSlideError
    from tifffile import TiffFileError

    from monai_pipelines.slides.readers import READERS

    def opened() -> Reader:
        file, staged = _on_this_machine(path)
        if stamp and not (os.path.isfile(file) and stamp_of(path) == stamp):
            raise ScanError(path, "changed since it was opened, or is gone; open it again")
        with silent_logs(), raise_scan_errors(path, OpenSlideError, TiffFileError):
            reader = READERS[backend](file)
        reader.staged = staged
        return reader

    return HANDLES.get((path, backend, stamp), opened)


def drop_reader(path: str | Remote, backend: Backend, stamp: Stamp | None = None) -> None:
    """Reopen this slide at its next read."""
    HANDLES.drop((path, backend, stamp))


def close_slides() -> None:
    """Close the slides that this process holds open; they are reopened when read.

    Example:
        >>> close_slides()
    """
    HANDLES.clear()
