"""Claims of results that are being made: no two processes make the same, and what a dead one claimed is taken over.

A claim is a file beside the result, ``RESULT.claim1``, made with ``O_EXCL``, which local disks and NFS allow once. Its
owner renews its time. It is abandoned when its owner, on this machine, is no longer running, or elsewhere has not
renewed it for a minute. Who takes it over makes ``RESULT.claim2``, so the number says how many processes have died at
this work; after the third nobody tries again.

Results in stores are not claimed (the claim is None): an object is written whole, and twice is the same.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

from monai_pipelines.remote import Place

RENEWED_S, ABANDONED_S = 10.0, 60.0
MOST_DEATHS = 3
DEADLY = (
    f"{MOST_DEATHS} processes ended while working on it (out of memory, or a decoder that crashes?); the next run "
    "tries again: give it more memory, or convert or export the file again"
)
_DAY_S = 24 * 60 * 60

Claim = Path | None


class ClaimedError(Exception):
    """Another process is making the result."""


class DeadlyError(Exception):
    """So many processes have ended while they made the result that nobody tries again."""


@contextmanager
def claimed(file: Place) -> Iterator[Claim]:
    """Claim a result while it is made. Look again whether it is there: another process may just have made it.

    Args:
        file: of the result; its folder exists.

    Yields:
        the claim, for `is_held`.

    Raises:
        ClaimedError, DeadlyError: as `take`.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp(), "result")
        >>> with claimed(file) as claim:
        ...     sorted(path.name for path in file.parent.iterdir()), is_held(claim)
        (['result.claim1'], True)
        >>> sorted(file.parent.iterdir())
        []
    """
    claim = take(file)
    try:
        with renewed(claim):
            yield claim
    finally:
        release_held(file)


def take(file: Place, pid: int | None = None) -> Claim:
    """Claim a result; a claim that its owner has already is given again.

    Args:
        file: of the result.
        pid: of the owner, a process on this machine; None: this one.

    Raises:
        ClaimedError: another process makes the result.
        DeadlyError: three have died at it; `release` lets the next run try again.
    """
    if not isinstance(file, Path):
        return None
    owner = _owner(os.getpid() if pid is None else pid)
    for claim in _claims(file):
        try:
            descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _text(claim) == owner:
                return claim
            if _is_abandoned(claim):
                continue
            raise ClaimedError(file) from None
        with os.fdopen(descriptor, "w") as opened:
            opened.write(owner)
        if any(later.exists() for later in _later(claim)):  # the claims before it are being released
            claim.unlink(missing_ok=True)
            raise ClaimedError(file)
        return claim
    raise DeadlyError(file)


def is_held(claim: Claim, pid: int | None = None) -> bool:
    """Whether a claim is still the owner's: a process cut off for a minute may have lost it."""
    if claim is None:
        return True
    mine = _text(claim) == _owner(os.getpid() if pid is None else pid)
    return mine and not any(later.exists() for later in _later(claim))


@contextmanager
def renewed(claim: Claim) -> Iterator[None]:
    """Keep a claim from looking abandoned to other machines."""
    if claim is None:
        yield
        return
    ended = Event()

    def keep() -> None:
        while not ended.wait(RENEWED_S):
            renew(claim)

    Thread(target=keep, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def renew(claim: Claim) -> None:
    """Show other machines once that the owner of a claim is at work."""
    if claim is not None:
        with suppress(OSError):
            os.utime(claim)


def release(file: Place) -> None:
    """Remove all claims of a result."""
    for claim in reversed(_claims(file)):
        claim.unlink(missing_ok=True)


def release_held(file: Place) -> None:
    """Remove the claims of a result if this process holds it."""
    if any(map(is_held, _claims(file))):
        release(file)


def remove_old_claims(folder: Path) -> None:
    """Remove claims that killed runs left in a folder more than a day ago."""
    for claim in folder.glob(f"*.claim[1-{MOST_DEATHS}]"):
        with suppress(FileNotFoundError):
            if time.time() - claim.stat().st_mtime > _DAY_S:
                claim.unlink()


def _claims(file: Place) -> list[Path]:
    if not isinstance(file, Path):
        return []
    return [file.with_name(f"{file.name}.claim{number}") for number in range(1, MOST_DEATHS + 1)]


def _later(claim: Path) -> list[Path]:
    claims = _claims(claim.with_suffix(""))
    return claims[claims.index(claim) + 1 :]


def _text(claim: Path) -> str | None:
    """None if it has just been released."""
    try:
        return claim.read_text()
    except FileNotFoundError:
        return None


def _is_abandoned(claim: Path) -> bool:
    text = _text(claim)
    if text is None:
        return False
    host, _, process = text.rpartition(" ")
    pid, _, started = process.partition(":")
    if started and host == _host():
        return _started(int(pid)) != started
    try:
        return _clock(claim.parent) - claim.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


def _clock(folder: Path) -> float:
    """Time by the file system, which may be a server with a clock of its own."""
    probe = folder / f".{uuid4().hex}.part"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _owner(pid: int) -> str:
    """Machine, process and its start: process ids are used again."""
    return f"{_host()} {pid}:{_started(pid)}"


@cache
def _host() -> str:
    """The machine; on Linux since its start, and with the container that process ids belong to."""
    name = socket.gethostname()
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name += f" {boot} {os.readlink('/proc/self/ns/pid')}"
    return name


def _started(pid: int) -> str:
    """Clock tick when a process started; empty if it is not running, or this is not Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
