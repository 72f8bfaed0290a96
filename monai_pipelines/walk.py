"""The files below a folder, without what operating systems and file servers put there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_CLUTTER = ("__macosx", "@eadir", "#recycle", "thumbs.db", "desktop.ini")
_TEXT_BYTES = 512


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
