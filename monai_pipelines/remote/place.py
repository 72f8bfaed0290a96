"""Files and folders by their path on this machine or by the URL of a store, and copies of these on this machine."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from rich.progress import track

from monai_pipelines.atomic import atomic_write
from monai_pipelines.errors import CohortError, ScanError
from monai_pipelines.privacy import without_secrets
from monai_pipelines.remote import store
from monai_pipelines.remote.scratch import Held, this_scratch
from monai_pipelines.walk import file_stats as local_stats
from monai_pipelines.walk import is_clutter, named_data_files, walk_files

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # of two letters or more: C: is a disk
_HEADERS = (".mhd", ".nhdr")
_HEADER_BYTES = 2**20
_AT_ONCE = 16  # requests
_MAX_KNOWN = 200_000  # objects: some 100 MB

T = TypeVar("T")
R = TypeVar("R")


class File(NamedTuple):
    """One of the objects that an image is made of."""

    place: Remote
    name: str
    """Relative to the folder that the image is in."""
    info: store.Info


class _Answers:
    """What stores said to this process last, by URL; the oldest leave."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, list[File]] = OrderedDict()
        self._num = 0

    def get(self, url: str) -> list[File] | None:
        return self._files.get(url)

    def put(self, url: str, files: list[File]) -> None:
        self._num += len(files) - len(self._files.pop(url, ()))
        self._files[url] = files
        while self._num > _MAX_KNOWN and len(self._files) > 1:
            self._num -= len(self._files.popitem(last=False)[1])


_answers = _Answers()


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder in a store, with the part of `pathlib.Path` that this package needs.

    As a text it has neither user, password nor query: only ``url`` does.

    Args:
        url: of any store that fsspec knows.

    Example:
        >>> table = Remote("s3://bucket/cohort/table.csv")
        >>> str(table.parent / "scans/one.nii.gz"), table.suffix
        ('s3://bucket/cohort/scans/one.nii.gz', '.csv')
        >>> str(Remote("https://me:secret@host/slide.svs?signature=1a2b"))
        'https://host/slide.svs'
    """

    url: str

    def __str__(self) -> str:
        return without_secrets(self._bare) if self._is_web else re.sub("(?<=://)[^/]*@", "", self.url)

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __truediv__(self, name: str) -> Remote:
        """A file below, by its name with slashes or backslashes; of a URL with a query without that."""
        relative = posixpath.normpath(name.replace("\\", "/"))
        base = self._bare.rstrip("/")
        while relative.startswith("../"):
            base, relative = base.rpartition("/")[0], relative.removeprefix("../")
        return Remote(f"{base}/{quote(relative) if self._is_web else relative}")

    @property
    def _is_web(self) -> bool:
        return store.scheme_of(self.url) in store.READ_ONLY

    @property
    def _bare(self) -> str:
        """The URL without query, which only those of web servers have."""
        return re.split("[?#]", self.url, maxsplit=1)[0] if self._is_web else self.url

    @property
    def name(self) -> str:
        last = PurePosixPath(self._bare.partition("://")[2]).name
        return unquote(last).replace("/", "_") if self._is_web else last

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> Remote:
        return Remote(self._bare.rstrip("/").rpartition("/")[0])

    def exists(self) -> bool:
        """Ask the store, again if need be.

        Raises:
            ScanError: access denied, or no answer.
        """
        try:
            return bool(self.files(again=True))
        except store.MissingError:
            return False

    def is_file(self) -> bool:
        """Whether it is one object; see `exists`."""
        return self.exists() and self.files()[0].place == self

    def is_dir(self) -> bool:
        """Whether it is a folder; see `exists`."""
        return self.exists() and self.files()[0].place != self

    def files(self, again: bool = False) -> list[File]:
        """The objects that an image is made of, as `monai_pipelines.walk.files_of` has files, the image itself first.

        Args:
            again: ask the store even if this process knows the answer.

        Raises:
            ScanError: no such image, access denied, or no answer.
        """
        if again or (known := _answers.get(self.url)) is None:
            known = list(self._files())
            _answers.put(self.url, known)
        return known

    def _files(self) -> Iterator[File]:
        info = store.describe(self.url)
        if info is None:
            yield from self._below(self, f"{self.name}/")
            return
        yield File(self, self.name, info)
        suffix = self.suffix.lower()
        if suffix == ".mrxs":
            yield from self._below(self.parent / self.stem, f"{self.stem}/")
        elif suffix in _HEADERS:
            text = store.read_range(self.url, 0, min(info.size or 0, _HEADER_BYTES))
            names, pattern = named_data_files(text)
            if pattern:
                names = [name for name in store.find(self.parent.url) if fnmatch(name, pattern)]
            for name in names:
                place = self.parent / name
                with suppress(store.MissingError):  # its reader reports it
                    if (data := store.describe(place.url)) is not None:
                        yield File(place, name, data)

    @staticmethod
    def _below(folder: Remote, prefix: str) -> Iterator[File]:
        for name, info in store.find(folder.url).items():
            if not any(is_clutter(part) for part in name.split("/")):
                yield File(Remote(f"{folder.url.rstrip('/')}/{name}"), f"{prefix}{name}", info)

    def stats(self) -> list[tuple[str, int | None, str]]:
        """Name, bytes and version of each object: a key of what the image holds."""
        return [(file.name, file.info.size, file.info.version) for file in self.files()]

    def identity(self) -> str:
        """The URL; without its query, which may be a signature, where objects have versions."""
        return str(self) if all(file.info.version for file in self.files()) else self.url

    def stage(self) -> Staged:
        """A copy on this machine of the objects as they are now.

        Raises:
            ScanError: no such image, access denied, no answer, or torn again and again.
            ScratchError: no room.
        """
        files = self.files(again=True)
        for file in files:
            if any(part in ("", ".", "..") for part in file.name.split("/")):
                raise ScanError(self.url, "a file that belongs to it has an empty name, or '..' in its name; rename it")
        key = hashlib.sha256(repr((self.identity(), self.stats())).encode()).hexdigest()[:32]

        def fill(folder: Path) -> None:
            for file in files:
                (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            each(lambda file: store.download(file.place.url, folder / file.name, file.info), files)

        held = this_scratch().hold(key, sum(file.info.size or 0 for file in files), fill)
        return Staged(held.folder / self.name, self, held)


Place = Path | Remote
Source = str | PathLike[str] | Remote


@dataclass(frozen=True, eq=False)
class Staged:
    """A copy on this machine that stays while this object lives, or until it is released.

    Attributes:
        path: of the copy.
        source: what it is a copy of.
    """

    path: Path
    source: Remote
    held: Held

    def release(self) -> None:
        self.held.release()

    def renamed(self, error: ScanError | CohortError) -> ScanError | CohortError:
        """An error about the copy as one about its source."""
        named = Path(error.path if isinstance(error, ScanError) else error.subject)
        if not named.is_relative_to(self.path):
            return error
        place = self.source if named == self.path else self.source / named.relative_to(self.path).as_posix()
        return ScanError(place, error.reason) if isinstance(error, ScanError) else CohortError(place, error.problems)


def as_place(source: Source) -> Place:
    """What a path or URL names; ``file://`` is a path.

    Example:
        >>> as_place("file:///data/a%20table.csv").as_posix(), as_place("s3://bucket/table.csv")
        ('/data/a table.csv', Remote('s3://bucket/table.csv'))
    """
    if isinstance(source, Remote):
        return source
    if not isinstance(source, str) or not _URL.match(source):
        return Path(source)
    if store.scheme_of(source) == "file":
        return Path(url2pathname(urlsplit(source).path))
    return Remote(source)


def entry(folder: Place, name: str) -> Place:
    """What a table in a folder names: a URL, or a path relative to the folder."""
    named = as_place(name)
    if isinstance(named, Remote) or named.is_absolute() or name.startswith("file://"):
        return named
    return folder / name


@contextmanager
def local(source: Source) -> Iterator[Path]:
    """A file or folder on this machine: itself, or a copy of what is in a store, which stays as long as the context.

    Raises:
        ScanError: a URL without such an image, or whose store denies access or does not answer; one of a copy has the
            URL of the source.
        ScratchError: no room for a copy.
        ImportError: the package for the store is missing.
    """
    place = as_place(source)
    if isinstance(place, Path):
        yield place
        return
    staged = place.stage()
    try:
        yield staged.path
    except (ScanError, CohortError) as error:
        raise staged.renamed(error) from error.__cause__
    finally:
        staged.release()


def read_start(place: Place, length: int) -> tuple[bytes, int]:
    """The first bytes of a file, and how many it has.

    Raises:
        OSError, ScanError: no such file, or it cannot be read.
    """
    file = place if isinstance(place, Path) else place.files(again=True)[0]
    size = size_of(file)
    return read_blocks(file, [0], min(size, length))[0], size


def size_of(file: Path | File) -> int:
    """Bytes of a file; 0 where a store does not say."""
    return file.stat().st_size if isinstance(file, Path) else file.info.size or 0


def read_blocks(file: Path | File, starts: Iterable[int], length: int) -> list[bytes]:
    """Some bytes of a file from several places, without a copy of the rest; it must have them.

    Raises:
        OSError, ScanError: it cannot be read.
    """
    if not isinstance(file, Path):
        return [store.read_range(file.place.url, start, length) for start in starts]
    blocks = []
    with file.open("rb") as opened:
        for start in starts:
            opened.seek(start)
            blocks.append(opened.read(length))
    return blocks


def file_stats(place: Place) -> list[tuple[str, int, int]] | list[tuple[str, int | None, str]]:
    """Name, size and version of each file of an image: a key of what it holds."""
    return local_stats(place) if isinstance(place, Path) else place.stats()


def files_below(folder: Place) -> list[Place]:
    """All files below a folder, in order; see `monai_pipelines.walk.walk_files`."""
    return list(walk_files(folder)) if isinstance(folder, Path) else [file.place for file in folder.files()]


def each(do: Callable[[T], R], places: Iterable[T], description: str = "") -> list[R]:
    """Do something with places in stores, several at once, for most of the time is waiting; the first error is raised.

    Args:
        do: with a place.
        places: any number.
        description: of a progress bar; empty: none.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(do, place) for place in places]
        try:
            bar = track(futures, description, transient=True, disable=not description)
            return [future.result() for future in bar]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def whole_write(place: Place) -> Iterator[Path]:
    """A file to write that becomes one at a path or URL at the end, whole or not at all."""
    if isinstance(place, Path):
        with atomic_write(place) as part:
            yield part
        return
    with TemporaryDirectory() as folder:
        part = Path(folder) / place.name
        yield part
        store.upload(part, place.url)


def unlink(place: Place) -> None:
    """Remove a file, if it is there."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    elif place.exists():
        store.remove(place.url)


def results_folder(source: Source) -> Place:
    """A folder to write to, created if it is a missing one on this machine.

    Raises:
        ValueError: a URL that can only be read.
    """
    folder = as_place(source)
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
    elif store.scheme_of(folder.url) in store.READ_ONLY:
        raise ValueError(f"{folder}: a web server takes no files; name a folder, or s3:// or gs://")
    return folder
