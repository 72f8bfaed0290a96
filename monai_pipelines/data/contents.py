"""What images hold, whatever they are called: to recognize them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from monai_pipelines.errors import ScanError
from monai_pipelines.remote import File, Place, Remote, as_place, each, read_blocks, size_of
from monai_pipelines.walk import files_of

T = TypeVar("T")

BLOCK = 4096  # bytes
_NUM_BLOCKS = 16  # of an image


@overload
def pixel_files(place: Path) -> Sequence[Path]: ...
@overload
def pixel_files(place: Place) -> Sequence[Path | File]: ...
def pixel_files(place: Place) -> Sequence[Path | File]:
    """The files of an image or scan without a header that names them."""
    if isinstance(place, Path):
        files = files_of(place)
        return [file for file in files if file != place] or files
    objects = place.files()
    return [one for one in objects if one.place != place] or objects


def content_hash(source: Place | NDArray[Any]) -> str:
    """16 hex digits of what an image holds: sizes and some blocks of its files, or its pixels in memory.

    Of 16 blocks of 4 KB, spread evenly, each file of a folder has its share, at least one in the middle.

    Raises:
        OSError: no such file, or an empty one.
        ScanError: a store does not give it.

    Example:
        >>> content_hash(np.zeros((1, 2, 2), np.uint8)) == content_hash(np.ones((1, 2, 2), np.uint8))
        False
    """
    if isinstance(source, np.ndarray):
        return _short(repr((source.shape, source.dtype)).encode() + source.tobytes())
    files = pixel_files(source)
    parts = sorted(_sampled(file, max(1, _NUM_BLOCKS // len(files))) for file in files)
    if not any(size for size, _ in parts):
        raise OSError(f"{source}: empty")
    return _short(repr(parts).encode())


def content_hashes(part: Any) -> set[str]:
    """`content_hash` of the items of a datalist or dataset that have files or, in `ArrayDataset`, pixels."""
    images = getattr(part, "images", None)
    sources: Sequence[Any] = (
        [*np.asarray(images)] if images is not None else [as_place(i["image"]) for i in part if "image" in i]
    )
    return {found for found in for_each(sources, _hash_if_there, "hashing contents") if found}


def for_each(sources: Sequence[Any], do: Callable[[Any], T], description: str = "") -> list[T]:
    """Do something with each source: one by one, or, if any is in a store, several at once."""
    if any(isinstance(source, Remote) for source in sources):
        return each(do, sources, description)
    return [do(source) for source in track(sources, description, transient=True, disable=not description)]


def _hash_if_there(source: Any) -> str:
    try:
        return content_hash(source)
    except (OSError, ScanError):  # a slide of which only features are left; others are reported when they are read
        return ""


def _sampled(file: Path | File, num_blocks: int) -> tuple[int, str]:
    size = size_of(file)
    if size <= num_blocks * BLOCK:
        return size, _short(b"".join(read_blocks(file, [0], size)))
    starts = [(2 * k + 1) * (size - BLOCK) // (2 * num_blocks) for k in range(num_blocks)]
    return size, _short(b"".join(read_blocks(file, starts, BLOCK)))


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
