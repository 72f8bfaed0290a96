"""The files below a folder, without what operating systems and file servers put there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_CLUTTER = ("__macosx", "@eadir", "#recycle", "thumbs.db", "desktop.ini")
_TEXT_BYTES = 512
_DATA_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:)[ \t]*([^\r\n]+?)[ \t]*$", re.IGNORECASE | re.MULTILINE)


def is_clutter(name: str) -> bool:
    """Hidden files and folders, thumbnails, and what else operating systems and file servers put beside data."""
    return name.startswith(".") or name.lower() in _CLUTTER


def walk_folders(folder: Path) -> Iterator[tuple[Path, list[str], list[Path]]]:
    """Each folder at and below one, in order, links followed but not in circles; clutter is left out.

    Yields:
        the folder, the names of the folders in it (remove some, and they are not entered), and the paths of its files,
        broken links among them.
    """
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        yield Path(place), folders, [Path(place, name) for name in sorted(names) if not is_clutter(name)]


def walk_files(folder: Path) -> Iterator[Path]:
    """Each file below a folder, in order of folders and names; see `walk_folders`."""
    for _, _, files in walk_folders(folder):
        yield from files


def is_text(file: Path) -> bool:
    """Whether a file is text, such as a README, and not a damaged image."""
    with file.open("rb") as opened:
        start = opened.read(_TEXT_BYTES)
    return bool(start) and not re.search(rb"[\x00-\x08\x0e-\x1f]", start)


def is_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8, which some libraries need to open it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def files_of(path: Path) -> list[Path]:
    """All files that an image is made of: a file, those below a folder, or what a header names beside itself.

    Headers are ``.mhd``, ``.nhdr`` and ``.mrxs``; broken links and missing data files are left out.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        found = list(walk_files(path))
    elif suffix == ".mrxs":
        found = [path, *walk_files(path.with_suffix(""))]
    elif suffix in (".mhd", ".nhdr"):
        found = [path, *_data_files(path)]
    else:
        found = [path]
    return [file for file in found if file.is_file()]


def _data_files(header: Path) -> list[Path]:
    """The files with the voxels of a MetaImage or NRRD header: one, a list, or a printf pattern."""
    names, pattern = named_data_files(header.read_bytes())
    return sorted(header.parent.glob(pattern)) if pattern else [header.parent / name for name in names]


def named_data_files(header: bytes) -> tuple[list[str], str]:
    """The names that a MetaImage or NRRD header has for files with the voxels, or a pattern for `fnmatch`."""
    match = _DATA_FILE.search(header)
    if not match or match[1].upper() == b"LOCAL":
        return [], ""
    first = os.fsdecode(match[1])
    if first.upper().startswith("LIST"):
        rest = os.fsdecode(header[match.end() :]).splitlines()
        return [line.strip() for line in rest if line.strip()], ""
    if "%" in first:
        return [], re.sub(r"%0?\d*d", "*", first.split()[0])
    return [first], ""


def file_stats(path: Path) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time in ns of each file of an image (`files_of`)."""
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file in files_of(path) for stat in [file.stat()]]
