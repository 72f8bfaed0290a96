"""What images hold, whatever they are called: to recognize them again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from monai_pipelines.walk import files_of

BLOCK = 4096  # bytes
_NUM_BLOCKS = 16  # of an image


def pixel_files(path: Path) -> list[Path]:
    """The files of an image or scan without a header that names them."""
    files = files_of(path)
    return [file for file in files if file != path] or files


def content_hash(source: Path | NDArray[Any]) -> str:
    """16 hex digits of what an image holds: sizes and some blocks of its files, or its pixels in memory.

    Of 16 blocks of 4 KB, spread evenly, each file of a folder has its share, at least one in the middle.

    Raises:
        OSError: no such file, or an empty one.

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
    sources: Iterable[Any] = (
        np.asarray(images) if images is not None else [Path(i["image"]) for i in part if "image" in i]
    )
    hashes = set()
    for source in track([*sources], "hashing contents", transient=True):
        try:
            hashes.add(content_hash(source))
        except OSError:  # a slide of which only features are left; others are reported when they are read
            continue
    return hashes


def _sampled(file: Path, num_blocks: int) -> tuple[int, str]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= num_blocks * BLOCK:
            return size, _short(opened.read())
        blocks = []
        for k in range(num_blocks):
            opened.seek((2 * k + 1) * (size - BLOCK) // (2 * num_blocks))
            blocks.append(opened.read(BLOCK))
    return size, _short(b"".join(blocks))


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
