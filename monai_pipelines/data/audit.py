"""The audit of a set of images before training: counts, sizes, and everything that would invalidate a result."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_pipelines.data import Listing
from monai_pipelines.data.split import SPLIT_NAMES, SPLITS, label_indices, split_problems
from monai_pipelines.errors import ScanError
from monai_pipelines.transforms.image2d.decode import LUMA, decode_in_thread

WHOLE = "all"  # the split of a source without splits
NO_LABEL = "none of them"  # the class of multilabel images without a label
_THUMBNAIL = 24  # pixels
_DETAIL = 1.5  # Gaussian std in thumbnail pixels: coarser structures are removed
_FAINT = 2.0  # gray levels of contrast that are damped by half
_BLOCK = 1024


@dataclass(frozen=True)
class Duplicates:
    """Images with the same content.

    Attributes:
        images, splits, classes: name, split and class of each.
        similarity: 1 for equal pixels, otherwise the lowest that links two images of the group.
        num_patients: number of their patients according to the source.
    """

    images: list[str]
    splits: list[str]
    classes: list[str]
    similarity: float
    num_patients: int

    @property
    def across_splits(self) -> bool:
        return len(set(self.splits)) > 1

    @property
    def across_classes(self) -> bool:
        """Whether at least one has the wrong label."""
        return len(set(self.classes)) > 1

    @property
    def kind(self) -> str:
        """In words what the images do not have in common."""
        different = ["two classes"] * self.across_classes + ["two splits"] * self.across_splits
        return ", ".join(different) or ("several patients" if self.num_patients > 1 else "one patient")


@dataclass(frozen=True)
class Audit:
    """The findings of `audit_images`, as plain data.

    Attributes:
        source: of the images.
        counts: number of images by split and class.
        sizes: by class: ``height`` and ``width`` as [minimum, median, maximum], and ``num_sizes``.
        file_types: by class: number of files of each type, by content.
        colors: by class: number of gray and color images.
        problems: errors of `monai_pipelines.data.read_images`, except patients in several splits.
        unreadable: reason by name.
        patients_in_several_splits: for each such patient the names of the images, by split.
        exact, near: groups of images with equal pixels, and of near duplicates.
    """

    source: str
    counts: dict[str, dict[str, int]]
    sizes: dict[str, dict[str, Any]]
    file_types: dict[str, dict[str, int]]
    colors: dict[str, dict[str, int]]
    problems: list[str]
    unreadable: dict[str, str]
    patients_in_several_splits: list[dict[str, list[str]]]
    exact: list[Duplicates]
    near: list[Duplicates]

    @property
    def imbalance(self) -> dict[str, float | None]:
        """Largest class divided by smallest, by split; None where a class has no image."""
        return {s: max(n.values()) / min(n.values()) if min(n.values()) else None for s, n in self.counts.items()}

    @property
    def to_fix(self) -> list[str]:
        """Problems that invalidate results or stop the training, one line each; near duplicates are not among them."""
        drawn = WHOLE in self.counts
        counts = {
            "problems of the source": len(self.problems),
            "unreadable images": len(self.unreadable),
            "patients in several splits": len(self.patients_in_several_splits),
            "groups of equal images in several splits": sum(group.across_splits for group in self.exact),
            "groups of equal images in several classes": sum(group.across_classes for group in self.exact),
            "groups of equal images of several patients, which a random split may separate": sum(
                drawn and group.num_patients > 1 for group in self.exact
            ),
        }
        return [f"{count} {problem}" for problem, count in counts.items() if count]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "imbalance": self.imbalance, "to_fix": self.to_fix}


@dataclass(frozen=True, eq=False)
class _Summary:
    """What is kept of an image."""

    size: tuple[int, int]
    channels: int
    file_type: str
    digest: bytes
    thumbnail: NDArray[np.float32]


def audit_images(listing: Listing, similarity: float = 0.95, num_workers: int | None = None) -> Audit:
    """Check every image of a source.

    Near duplicates are found by the detail of a small gray thumbnail: coarse shading is removed and local contrast
    normalized, so that images are not similar because of brightness or anatomy. A similarity of 1 is the same detail in
    one of the eight orientations. The default was chosen by visual inspection of pairs: more similar are copies that
    were compressed again, resized, brightened, mirrored or rotated by 90 degrees; less similar are different images of
    one anatomy, and copies that were cropped or rotated slightly. Tiles share no anatomy, so a lower threshold finds
    more of them. The time is quadratic in the number of images.

    Args:
        listing: of the source (`monai_pipelines.data.list_images`).
        similarity: threshold for near duplicates, 0 to 1.
        num_workers: threads that decode; None: one per core.

    Raises:
        ValueError: a similarity outside 0 to 1.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"audit_images: similarity must be above 0 and at most 1, got {similarity}")
    items = list({item["image"]: item for item in listing.items}.values())
    with warnings.catch_warnings(), ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # as decode_image does, once for all threads
        summaries = list(track(pool.map(_summarize, (item["image"] for item in items)), "reading", total=len(items)))
    outcomes = list(zip(items, summaries, strict=True))
    readable = [(item, summary) for item, summary in outcomes if isinstance(summary, _Summary)]
    classes = [*listing.classes]
    if any(isinstance(item["label"], list) for item in items):
        classes.append(NO_LABEL)
    by_class = {c: [summary for item, summary in readable if c in _labels(item, listing.classes)] for c in classes}
    counts = Counter((_split(item), c) for item in items for c in _labels(item, listing.classes))
    exact, near = _duplicates(readable, listing.classes, similarity)
    return Audit(
        source=str(listing.source),
        counts={s: {c: counts[s, c] for c in classes} for s in (*SPLITS, WHOLE) if any(s == key for key, _ in counts)},
        sizes={c: _sizes(group) for c, group in by_class.items()},
        file_types={c: dict(Counter(summary.file_type for summary in group)) for c, group in by_class.items()},
        colors={c: dict(Counter("gray" if s.channels == 1 else "color" for s in g)) for c, g in by_class.items()},
        problems=split_problems(listing),
        unreadable={item["name"]: reason for item, reason in outcomes if isinstance(reason, str)},
        patients_in_several_splits=_torn_patients(items),
        exact=exact,
        near=near,
    )


# ---- one image


def _summarize(path: str) -> _Summary | str:
    """The summary of an image, or why it cannot be read."""
    try:
        image = decode_in_thread(path)
    except ScanError as error:
        return error.reason
    pixels = image.pixels
    if (pixels[..., 1:] == pixels[..., :1]).all():
        pixels = pixels[..., :1]  # equal to the same image saved as gray
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return _Summary(pixels.shape[:2], pixels.shape[2], image.file_type, digest.digest(), _thumbnail(pixels))


def _thumbnail(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Detail of the image in (24, 24) without coarse shading and local contrast, of norm 1 (0: no detail)."""
    gray = pixels @ np.array(LUMA if pixels.shape[2] == 3 else [1], np.float32)
    gray = gray if pixels.dtype == np.uint8 else 255 * gray
    small = np.asarray(Image.fromarray(gray).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))
    detail = small - gaussian_filter(small, _DETAIL)
    detail = detail / (np.sqrt(gaussian_filter(detail**2, _DETAIL)) + _FAINT)
    norm = float(np.linalg.norm(detail))
    return detail / norm if norm > 0.1 else np.zeros_like(detail)


# ---- all images


def _split(item: Mapping[str, Any]) -> str:
    return SPLIT_NAMES.get(item.get("split", "").strip().lower(), WHOLE)


def _labels(item: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    return [classes[k] for k in label_indices(item["label"])] or [NO_LABEL]


def _sizes(summaries: Sequence[_Summary]) -> dict[str, Any]:
    if not summaries:
        return {}
    sizes = np.array([summary.size for summary in summaries])
    height, width = np.quantile(sizes, (0, 0.5, 1), axis=0).T.astype(int).tolist()
    return {"height": height, "width": width, "num_sizes": len(np.unique(sizes, axis=0))}


def _torn_patients(items: Sequence[Mapping[str, Any]]) -> list[dict[str, list[str]]]:
    names: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        names[item["patient"]][_split(item)].append(item["name"])
    return [dict(splits) for splits in names.values() if len(splits) > 1]


def _duplicates(
    readable: Sequence[tuple[Mapping[str, Any], _Summary]], classes: Sequence[str], similarity: float
) -> tuple[list[Duplicates], list[Duplicates]]:
    """Groups of equal images, and groups of near duplicates, where one of each group of equal images is compared."""
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, (_, summary) in enumerate(readable):
        same[summary.digest].append(index)
    groups = list(same.values())
    pairs = list(_similar([readable[group[0]][1].thumbnail for group in groups], similarity))
    first, second = (np.array([pair[k] for pair in pairs], dtype=int) for k in (0, 1))
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(groups), len(groups)))
    _, component = connected_components(links, directed=False)
    lowest: dict[int, float] = {}
    for one, _, value in pairs:
        lowest[component[one]] = min(value, lowest.get(component[one], 1.0))
    alike: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        if component[number] in lowest:
            alike[component[number]] += group

    def describe(group: Sequence[int], value: float) -> Duplicates:
        items = [readable[index][0] for index in group]
        return Duplicates(
            images=[item["name"] for item in items],
            splits=[_split(item) for item in items],
            classes=["|".join(_labels(item, classes)) for item in items],
            similarity=round(value, 4),
            num_patients=len({item["patient"] for item in items}),
        )

    exact = [describe(group, 1.0) for group in groups if len(group) > 1]
    near = [describe(group, lowest[number]) for number, group in alike.items()]
    return sorted(exact, key=_worst_first), sorted(near, key=_worst_first)


def _worst_first(group: Duplicates) -> tuple[bool, bool, bool, float]:
    return not group.across_classes, not group.across_splits, group.num_patients == 1, -group.similarity


def _similar(thumbnails: Sequence[NDArray[np.float32]], similarity: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (i < j) whose thumbnails are similar in one of the eight orientations, with their similarity."""
    if not thumbnails:
        return
    stack = np.stack(thumbnails)
    flat = stack.reshape(len(stack), -1)
    starts = range(0, len(stack), _BLOCK)
    for start in track(starts, "comparing", disable=len(starts) < 4):
        block = stack[start : start + _BLOCK]
        best = np.full((len(block), len(stack) - start), -1, np.float32)
        for turned in (np.rot90(block, quarter, axes=(1, 2)) for quarter in range(4)):
            for mirrored in (turned, turned[:, :, ::-1]):
                np.maximum(best, mirrored.reshape(len(block), -1) @ flat[start:].T, out=best)
        for row, column in np.argwhere(best >= similarity - 1e-6):
            if row < column:
                yield start + int(row), start + int(column), min(1.0, float(best[row, column]))
