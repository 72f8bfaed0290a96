"""Whether a patient or an image stands in more than one split."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HEADERS = (".mhd", ".nhdr")
_DATA_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:)[ \t]*([^\r\n]+?)[ \t]*$", re.IGNORECASE | re.MULTILINE)
_GLIMPSE = 4096  # bytes


class _Image(NamedTuple):
    split: str
    name: str
    source: Path | NDArray[Any]  # a file, a folder of them, or pixels in memory


def patients_known(items: Iterable[Mapping[str, Any]]) -> bool:
    """Whether anybody is named: not where every image that has a patient has its own name for it.

    Args:
        items: of a datalist, with ``name``, or rows of predictions, with the name in ``image``; ``patient`` where it
            is known (None and "" are not).

    Example:
        >>> patients_known([{"name": "a", "patient": "a"}, {"name": "b", "patient": None}])
        False
        >>> patients_known([{"name": "a", "patient": "p1"}])
        True
    """
    return any(item.get("patient") and item["patient"] != item.get("name", item.get("image")) for item in items)


def audit_splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Look for patients and for equal images in more than one split: both make a test too easy.

    Images are equal where their files are, byte for byte and whatever they are called: of a folder (a DICOM series) all
    files, of a volume with a detached header its data, of an `ArrayDataset` the pixels. Only what has the same size and
    the same bytes in its middle is read as a whole. An image that was saved anew is not found; files without content
    are not compared.

    Args:
        splits: name -> datalist or dataset (with ``data`` and, where it has them, ``skipped`` and ``images``); items
            with ``name`` and, where known, ``patient`` and ``image`` (path).

    Returns:
        plain data without the names of patients:

        - ``patients_in_several_splits``: how many; None where every image counts as a patient of its own;
        - ``equal_files_in_several_splits``: ``{"images": names, "splits": names}`` for each set of equal images;
        - ``num_skipped``: split -> number of images that could not be used;
        - ``checked``: in words, what was compared.

    Example:
        >>> found = audit_splits({"train": [{"name": "a", "patient": "p1"}], "test": [{"name": "b", "patient": "p1"}]})
        >>> found["patients_in_several_splits"], found["checked"]
        (1, 'patients of 2 images; 2 images without a file at hand not compared')
    """
    items = [(split, item) for split, part in splits.items() for item in getattr(part, "data", part)]
    splits_of = defaultdict(set)
    for split, item in items:
        if item.get("patient"):
            splits_of[item["patient"]].add(split)
    named = patients_known(item for _, item in items)
    images = [image for split, part in splits.items() for image in _images(split, part)]
    groups: list[list[_Image]] = [images]
    unread: list[_Image] = []
    for key in (_size, _glimpse, _digest):
        groups = [finer for group in groups for finer in _in_several_splits(group, key, unread)]
    equal = [
        {"images": [image.name for image in group], "splits": list(dict.fromkeys(image.split for image in group))}
        for group in groups
    ]
    num_compared = len(images) - len(unread)
    num_left_out = len(items) - num_compared
    told = [f"patients of {_images_told(len(items))}"] if named else []
    if num_compared:
        by_pixels = any(hasattr(part, "images") for part in splits.values())
        told.append(f"{'pixels' if by_pixels else 'files'} of {_images_told(num_compared)}")
    if num_left_out:
        told.append(f"{_images_told(num_left_out)} without a file at hand not compared")
    return {
        "patients_in_several_splits": sum(len(own) > 1 for own in splits_of.values()) if named else None,
        "equal_files_in_several_splits": equal,
        "num_skipped": {split: len(getattr(part, "skipped", ())) for split, part in splits.items()},
        "checked": "; ".join(told),
    }


def _images_told(num: int) -> str:
    return "1 image" if num == 1 else f"{num} images"


def _images(split: str, part: Any) -> Iterator[_Image]:
    items = getattr(part, "data", part)
    if hasattr(part, "images"):
        for item, pixels in zip(items, np.asarray(part.images), strict=True):
            yield _Image(split, item["name"], pixels)
        return
    for item in items:
        if "image" in item:
            yield _Image(split, item["name"], Path(item["image"]))


def _in_several_splits(
    images: Iterable[_Image], key: Callable[[Any], Hashable], unread: list[_Image]
) -> list[list[_Image]]:
    """Groups with one key each that reach into several splits; what cannot be read goes into ``unread``."""
    groups = defaultdict(list)
    for image in images:
        try:
            groups[key(image.source)].append(image)
        except OSError:
            unread.append(image)
    return [group for group in groups.values() if len({image.split for image in group}) > 1]


def _files(path: Path) -> list[Path]:
    """The files that hold the pixels, in any order."""
    if path.suffix.lower() in _HEADERS and (found := _DATA_FILE.search(path.read_bytes())) and found[1] != b"LOCAL":
        return [path.parent / os.fsdecode(found[1])]
    parts = [path, path.with_suffix("")] if path.suffix.lower() == ".mrxs" else [path]
    inside = [file for part in parts for file in (part.rglob("*") if part.is_dir() else [part])]
    return [file for file in inside if not file.is_dir() and not file.name.startswith(".")]


def _size(source: Path | NDArray[Any]) -> Hashable:
    if isinstance(source, np.ndarray):
        return source.shape
    sizes = sorted(file.stat().st_size for file in _files(source))
    if not any(sizes):
        raise OSError(f"{source}: no content")
    return tuple(sizes)


def _glimpse(source: Path | NDArray[Any]) -> Hashable:
    """Some bytes from the middle: enough to tell most images of one size apart."""
    if isinstance(source, np.ndarray):
        return source[:, source.shape[1] // 2].tobytes()
    blocks = []
    for file in _files(source):
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _GLIMPSE) // 2)
            blocks.append(opened.read(_GLIMPSE))
    return hashlib.sha256(b"".join(sorted(blocks))).digest()


def _digest(source: Path | NDArray[Any]) -> Hashable:
    if isinstance(source, np.ndarray):
        return hashlib.sha256(source.tobytes()).digest()
    digests = []
    for file in _files(source):
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").digest())
    return tuple(sorted(digests))
