"""How far the runs that fill a folder are: a small file for each, in the folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal, Self

from monai_pipelines.data.shards import share_of
from monai_pipelines.errors import ScanError
from monai_pipelines.remote import Place, Source, as_place, local, whole_write

State = Literal["running", "finished", "stopped"]
SILENT_S = 60.0  # after which a running one that has written nothing is taken for dead
_WRITTEN_S = 5.0
_NAMES = "progress-*.json"
_WINDOW = 60  # of the rate, in writings: five minutes


@dataclass
class Progress:
    """What a run has written about itself.

    Attributes:
        job: the same for all shards of one job.
        shard: "i/n", or None.
        planned: items.
        done: items that are ready, by this run or before it.
        unusable: reasons by name.
        state: running, finished, or stopped by an error.
        per_s: items per second in the last five minutes.
        time: when it was written, seconds since 1970.
    """

    job: str
    shard: str | None
    planned: int
    done: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    state: State = "running"
    per_s: float = 0.0
    time: float = 0.0

    @property
    def left(self) -> int:
        return self.planned - self.done - len(self.unusable)

    @property
    def is_alive(self) -> bool:
        return self.state == "running" and time.time() - self.time < SILENT_S


class RunRecord:
    """Keeps the `Progress` of a run in its folder, written whole every few seconds, unless nothing is new at the end.

    Runs of the same items under the same chain share one file, shards have one each.

    Args:
        folder: that the run fills.
        names: of all items of the job, as in the user's table; that of an unusable item appears in the file.
        made_by: what the results depend on, such as the fingerprint of the chain.
        shard: of the run, see `share_of`.
    """

    def __init__(self, folder: Source, names: Sequence[str], made_by: Sequence[Any], shard: str | None = None) -> None:
        job = hashlib.sha256(repr((*made_by, sorted(names))).encode(errors="replace")).hexdigest()[:12]
        self.progress = Progress(job, shard, len(set(share_of(names, shard))))
        part = f"-{shard.replace('/', 'of')}" if shard else ""
        self.file = as_place(folder) / f"progress-{job}{part}.json"
        self._finished: set[str] = set()
        self._times = deque([(time.monotonic(), 0)], maxlen=_WINDOW)
        self._lock, self._ended = Lock(), Event()

    def add(self, name: str, reason: str | None) -> None:
        """An item is ready, or cannot be used for a reason; one that was added before does not count again."""
        with self._lock:
            if name not in self._finished:
                self._finished.add(name)
                if reason:
                    self.progress.unusable[name] = reason
                else:
                    self.progress.done += 1

    def __enter__(self) -> Self:
        Thread(target=self._keep_writing, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        self.progress.state = "stopped" if kind else "finished"
        with suppress(OSError, ValueError, TypeError):
            before = _read(self.file)
            if replace(before, time=0, per_s=0) == replace(self.progress, time=0, per_s=0):
                return  # nothing new: a complete folder is not written to
        self._write()

    def _keep_writing(self) -> None:
        while not self._ended.wait(_WRITTEN_S):
            self._write()

    def _write(self) -> None:
        with self._lock:
            progress, (then, before) = self.progress, self._times[0]
            now, finished = time.monotonic(), progress.planned - progress.left
            progress.per_s = round((finished - before) / max(now - then, 1), 4)
            self._times.append((now, finished))
            progress.time = round(time.time(), 1)
            # what is made reports a full disk
            with suppress(OSError, ScanError), whole_write(self.file) as part:
                part.write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")


def read_progress(folder: Source) -> list[list[Progress]]:
    """The runs that have filled a folder, the shards of a job together; the latest job first."""
    jobs: dict[str, list[Progress]] = {}
    for file in _records(as_place(folder)):
        progress = _read(file)
        jobs.setdefault(progress.job, []).append(progress)
    for shards in jobs.values():
        shards.sort(key=lambda progress: int((progress.shard or "1/").partition("/")[0]))
    return sorted(jobs.values(), key=lambda shards: -max(progress.time for progress in shards))


def _records(folder: Place) -> list[Place]:
    if isinstance(folder, Path):
        return list(folder.glob(_NAMES))
    return [file.place for file in folder.files(again=True) if fnmatch(file.place.name, _NAMES)]


def _read(file: Place) -> Progress:
    with local(file) as path:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
