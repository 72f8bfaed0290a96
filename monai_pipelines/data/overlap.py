"""Patients and images in more than one split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.data.contents import BLOCK, for_each, pixel_files
from monai_pipelines.data.split import SPLITS
from monai_pipelines.errors import ScanError
from monai_pipelines.remote import Place, as_place, local, read_blocks, size_of


class _Image(NamedTuple):
    side: Hashable  # equal images on several sides are found
    key: Any
    source: Place | NDArray[Any]  # a file, a folder of them, or pixels in memory


def patients_known(items: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any image has a patient that is not just the name of the image.

    Args:
        items: of a datalist, with ``name``, or rows of predictions, with the name in ``image``; ``patient`` if known
            (None and "" are unknown).

    Example:
        >>> patients_known([{"name": "a", "patient": "a"}, {"name": "b", "patient": None}])
        False
        >>> patients_known([{"name": "a", "patient": "p1"}])
        True
    """
    return any(item.get("patient") and item["patient"] != item.get("name", item.get("image")) for item in items)


def audit_splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Find patients and equal images in more than one split: both make a test too easy.

    Images are equal if their files are, byte for byte, under any name: all files of a folder (a DICOM series), the data
    of a volume with a detached header, the pixels of an `ArrayDataset`. Only files of the same size with the same bytes
    in the middle are read completely. Images that were saved again are not found; empty files are not compared.

    Args:
        splits: datalist or dataset (with ``data`` and optionally ``skipped`` and ``images``) by name; items with
            ``name`` and, if known, ``patient`` and ``image`` (path).

    Returns:
        plain data without the names of patients:

        - ``patients_in_several_splits``: their number; None if patients are unknown;
        - ``equal_files_in_several_splits``: ``{"images": names, "splits": names}`` for each set of equal images;
        - ``num_skipped``: number of unusable images by split;
        - ``checked``: in words, what was compared.

    Example:
        >>> audit = audit_splits({"train": [{"name": "a", "patient": "p1"}], "test": [{"name": "b", "patient": "p1"}]})
        >>> audit["patients_in_several_splits"], audit["checked"]
        (1, 'patients of 2 images; 2 images without files not compared')
    """
    items = [(split, item) for split, part in splits.items() for item in getattr(part, "data", part)]
    splits_of = defaultdict(set)
    for split, item in items:
        if item.get("patient") not in (None, "", item["name"]):
            splits_of[item["patient"]].add(split)
    named = patients_known(item for _, item in items)
    images = [image for split, part in splits.items() for image in _images(split, part)]
    groups, unread = _equal(images)
    equal = [
        {"images": [image.key for image in group], "splits": list(dict.fromkeys(image.side for image in group))}
        for group in groups
    ]
    num_compared = len(images) - len(unread)
    checked = [f"patients of {_count(len(items))}"] if named else []
    if num_compared:
        by_pixels = any(hasattr(part, "images") for part in splits.values())
        checked.append(f"{'pixels' if by_pixels else 'files'} of {_count(num_compared)}")
    if num_missing := len(items) - num_compared:
        checked.append(f"{_count(num_missing)} without files not compared")
    return {
        "patients_in_several_splits": sum(len(names) > 1 for names in splits_of.values()) if named else None,
        "equal_files_in_several_splits": equal,
        "num_skipped": {split: len(getattr(part, "skipped", ())) for split, part in splits.items()},
        "checked": "; ".join(checked),
    }


def repeated(items: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Items that must not be used beside others with the same files, under any name, and why, by index.

    Of equal files in several splits those of the test set are kept, or else those of the validation set; of equal files
    with different labels, none.

    Args:
        items: of a datalist, with ``image`` (path), ``name``, ``label`` and ``split``.
    """
    images = [
        _Image((item["split"], str(item["label"])), index, as_place(item["image"])) for index, item in enumerate(items)
    ]
    reasons = {}
    for group in _equal(images)[0]:
        members = [image.key for image in group]
        last = max(members, key=lambda index: SPLITS.index(items[index]["split"]))
        for index in members:
            other = next((k for k in members if items[k]["label"] != items[index]["label"]), None)
            if other is not None:
                reasons[index] = f"same file as {items[other]['name']}, which has another label; correct or remove one"
            elif items[index]["split"] != items[last]["split"]:
                split = items[last]["split"]
                reasons[index] = f"same file as {items[last]['name']}, which is in {split}; remove one"
    return dict(sorted(reasons.items()))


def _count(num: int) -> str:
    return "1 image" if num == 1 else f"{num} images"


def _images(split: str, part: Any) -> list[_Image]:
    items = getattr(part, "data", part)
    if hasattr(part, "images"):
        return [_Image(split, item["name"], array) for item, array in zip(items, np.asarray(part.images), strict=True)]
    return [_Image(split, item["name"], as_place(item["image"])) for item in items if "image" in item]


def _equal(images: Sequence[_Image]) -> tuple[list[list[_Image]], list[_Image]]:
    """Groups of equal images on several sides, and those that cannot be read."""
    groups: list[list[_Image]] = [list(images)]
    unread: list[_Image] = []
    for key in (_size, _glimpse, _digest):
        groups = [finer for group in groups for finer in _finer(group, key, unread)]
    return groups, unread


def _finer(images: Iterable[_Image], key: Callable[[Any], Hashable], unread: list[_Image]) -> list[list[_Image]]:
    """Groups on several sides with the same key; what cannot be read is added to ``unread``."""
    groups: defaultdict[Hashable, list[_Image]] = defaultdict(list)
    images = list(images)
    for image, found in zip(images, for_each([image.source for image in images], partial(_key, key)), strict=True):
        (unread if found is None else groups[found]).append(image)
    return [group for group in groups.values() if len({image.side for image in group}) > 1]


def _key(key: Callable[[Any], Hashable], source: Any) -> Hashable | None:
    try:
        return key(source)
    except (OSError, ScanError):
        return None


def _size(source: Place | NDArray[Any]) -> Hashable:
    if isinstance(source, np.ndarray):
        return source.shape
    sizes = sorted(map(size_of, pixel_files(source)))
    if not any(sizes):
        raise OSError(f"{source}: empty")
    return tuple(sizes)


def _glimpse(source: Place | NDArray[Any]) -> Hashable:
    """Some bytes from the middle, which distinguish most images of the same size."""
    if isinstance(source, np.ndarray):
        return source[:, source.shape[1] // 2].tobytes()
    blocks = []
    for file in pixel_files(source):
        size = size_of(file)
        blocks += read_blocks(file, [max(0, size - BLOCK) // 2], min(size, BLOCK))
    return hashlib.sha256(b"".join(sorted(blocks))).digest()


def _digest(source: Place | NDArray[Any]) -> Hashable:
    if isinstance(source, np.ndarray):
        return hashlib.sha256(source.tobytes()).digest()
    digests = []
    with local(source) as path:
        for file in pixel_files(path):
            with file.open("rb") as opened:
                digests.append(hashlib.file_digest(opened, "sha256").digest())
    return tuple(sorted(digests))
