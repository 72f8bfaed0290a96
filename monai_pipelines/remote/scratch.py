"""A bounded folder of copies on this machine, shared by its processes: the least recently used leave first."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from weakref import finalize

FOLDER = "MONAI_PIPELINES_SCRATCH"
SIZE = "MONAI_PIPELINES_SCRATCH_GB"
DEFAULT_GB = 50.0
_GB = 10**9
_KEEP = 0.8  # of the size, when room is made: looking through the folder takes time


class ScratchError(OSError):
    """The scratch folder cannot take what is wanted: no fault of the file."""


class Held:
    """A copy that stays while this object lives, or until it is released.

    Attributes:
        folder: with the files.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._release = finalize(self, _unlock, lock, os.getpid())

    def release(self) -> None:
        self._release()


class Scratch:
    """Copies by their keys, each made once, whole or not at all, and locked by everyone who uses it.

    Every copy has a lock file with its number of bytes, whose time is that of its last use: it is locked exclusively
    to make or remove the copy and shared to use it. The system releases the locks of processes that die.

    Args:
        folder: on a local disk; created if missing, for this user alone.
        max_bytes: of all copies.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise ScratchError(f"{folder} belongs to another user; name another folder in {FOLDER}")

    def hold(self, key: str, num_bytes: int, fill: Callable[[Path], None]) -> Held:
        """The copy of a key.

        Args:
            key: a file name that changes with the content.
            num_bytes: expected.
            fill: writes the files into a folder, if they are not there.

        Raises:
            ScratchError: no room.
        """
        folder, lock_file = self.folder / key, self.folder / f"{key}.lock"
        while True:
            lock = _lock(lock_file)
            if folder.is_dir():
                os.utime(lock_file)
                return Held(folder, lock)
            _unlock(lock)
            lock = _lock(lock_file, exclusive=True)
            try:
                if not folder.is_dir():
                    self._fill(folder, lock_file, num_bytes, fill)
            finally:
                _unlock(lock)

    def _fill(self, folder: Path, lock_file: Path, num_bytes: int, fill: Callable[[Path], None]) -> None:
        part = folder.with_suffix(".part")  # the lock's owner is the only one who writes there
        shutil.rmtree(part, ignore_errors=True)
        try:
            self._reserve(lock_file, num_bytes)
            part.mkdir()
            fill(part)
            made = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
            if made != num_bytes:  # the store did not say
                self._reserve(lock_file, made)
            part.rename(folder)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            self._reserve(lock_file, 0)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ScratchError(
                    f"{self.folder}: its disk is full; make space, or name another folder in {FOLDER}"
                ) from None
            raise

    def _reserve(self, lock_file: Path, num_bytes: int) -> None:
        """Write down the bytes of a copy, and make room for them."""
        counter = _lock(self.folder / "bytes", exclusive=True)
        try:
            before = _number(lock_file)
            total = _number(self.folder / "bytes") - before + num_bytes
            if total > self.max_bytes and num_bytes > before:
                total = self._make_room(lock_file, num_bytes) + num_bytes
                if total > self.max_bytes:
                    raise ScratchError(
                        f"{self.folder}: no room for {num_bytes / _GB:.3g} GB beside files in use, of "
                        f"{self.max_bytes / _GB:.3g} GB allowed; set {SIZE} higher, or use fewer processes"
                    )
            lock_file.write_text(str(num_bytes))
            (self.folder / "bytes").write_text(str(total))
        finally:
            _unlock(counter)

    def _make_room(self, wanted_by: Path, num_bytes: int) -> int:
        """Remove copies that nobody uses, those first that were used least recently; returns the bytes of the rest."""
        copies = []
        for file in self.folder.glob("*.lock"):
            if file != wanted_by:
                with suppress(FileNotFoundError):
                    copies.append((file.stat().st_mtime_ns, file, _number(file)))
        total = sum(size for *_, size in copies)
        for _, file, size in sorted(copies):
            if total <= min(self.max_bytes - num_bytes, _KEEP * self.max_bytes):
                break
            lock = _lock_now(file)
            if lock is not None:
                shutil.rmtree(file.with_suffix(""), ignore_errors=True)
                shutil.rmtree(file.with_suffix(".part"), ignore_errors=True)
                file.unlink()
                _unlock(lock)
                total -= size
        return total


def this_scratch() -> Scratch:
    """The scratch folder of this machine.

    It is named by the environment variable MONAI_PIPELINES_SCRATCH, by default ``monai_pipelines-<user id>`` in the
    folder for temporary files, and MONAI_PIPELINES_SCRATCH_GB bounds its size, by default to 50 GB.

    Raises:
        ValueError: a size that is no number above 0.
        ScratchError: the folder is another user's.
    """
    text = os.environ.get(SIZE) or str(DEFAULT_GB)
    try:
        size_gb = float(text)
    except ValueError:
        size_gb = 0.0
    if not size_gb > 0:
        raise ValueError(f"{SIZE}: wanted a number of GB above 0, got {text!r}")
    folder = os.environ.get(FOLDER) or Path(tempfile.gettempdir()) / f"monai_pipelines-{os.getuid()}"
    return Scratch(Path(folder), int(size_gb * _GB))


def _lock(file: Path, exclusive: bool = False) -> int:
    """The descriptor of a file's lock."""
    import fcntl

    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # removed while we waited


def _lock_now(file: Path) -> int | None:
    """The descriptor of an exclusive lock; None if another has one."""
    import fcntl

    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int, made_by: int | None = None) -> None:
    import fcntl

    if made_by in (None, os.getpid()):  # a forked process has the lock of its parent, too
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return 0
