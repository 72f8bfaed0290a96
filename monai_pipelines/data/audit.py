"""What is in a set of images before anyone trains on it: counts, sizes, and whatever would make a result untrue."""

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
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_pipelines.data import Listing
from monai_pipelines.data.split import SPLIT_NAMES, SPLITS, split_problems
from monai_pipelines.errors import ScanError
from monai_pipelines.transforms.image2d.decode import decode_in_thread

WHOLE = "all"  # the split of a source that gives none
_THUMBNAIL = 24  # pixels
_DETAIL = 1.5  # Gaussian sd in thumbnail pixels: what is coarser is taken away
_FAINT = 2.0  # grey levels of contrast that count half
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # as decode_image takes it
_BLOCK = 1024
_SHOWN = 20


@dataclass(frozen=True)
class Duplicates:
    """Images that show the same.

    Attributes:
        images: names, with ``splits`` and ``classes`` beside them.
        similarity: 1 for equal pixels, else the lowest by which an image of the group was linked to another.
        num_patients: how many patients they are said to be of.
    """

    images: list[str]
    splits: list[str]
    classes: list[str]
    similarity: float
    num_patients: int

    @property
    def across_splits(self) -> bool:
        """Whether some are trained on and others tested with."""
        return len(set(self.splits)) > 1

    @property
    def across_classes(self) -> bool:
        """Whether at least one has a wrong label."""
        return len(set(self.classes)) > 1

    @property
    def told(self) -> str:
        """What is wrong with it."""
        wrong = ["two classes"] * self.across_classes + ["two splits"] * self.across_splits
        return ", ".join(wrong) or ("several patients" if self.num_patients > 1 else "one patient")


@dataclass(frozen=True)
class Audit:
    """What `audit_images` found, as plain data.

    Attributes:
        source: what was looked at.
        counts: images by split and class.
        sizes: by class: ``height`` and ``width`` as [least, median, greatest], and how many differ.
        file_types: by class: files of each type, told by content.
        colours: by class: grey and colour images.
        problems: what `monai_pipelines.data.read_images` refuses, beside patients in several splits.
        unreadable: by name: why.
        patients_in_several_splits: for each such patient the names of the images, by split.
        exact, near: groups of images with equal pixels, and of images that show the same.
    """

    source: str
    counts: dict[str, dict[str, int]]
    sizes: dict[str, dict[str, Any]]
    file_types: dict[str, dict[str, int]]
    colours: dict[str, dict[str, int]]
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
    def to_mend(self) -> list[str]:
        """What makes results untrue or training stop, one line each: near duplicates are only to be looked at."""
        torn = sum(group.across_splits for group in self.exact)
        wrong = sum(group.across_classes for group in self.exact)
        loose = sum(group.num_patients > 1 for group in self.exact) if WHOLE in self.counts else 0
        found = {
            "problems of the source": len(self.problems),
            "unreadable images": len(self.unreadable),
            "patients in several splits": len(self.patients_in_several_splits),
            "groups of equal images in several splits": torn,
            "groups of equal images in several classes": wrong,
            "groups of equal images of several patients, which a drawn split may part": loose,
        }
        return [f"{count} {what}" for what, count in found.items() if count]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "imbalance": self.imbalance, "to_mend": self.to_mend}


@dataclass(frozen=True, eq=False)
class _Look:
    """What is kept of an image."""

    height: int
    width: int
    channels: int
    file_type: str
    digest: bytes
    thumbnail: NDArray[np.float32]


def audit_images(listing: Listing, similarity: float = 0.95, num_workers: int | None = None) -> Audit:
    """Look at every image of a source, once.

    Near duplicates are found by the detail of a small grey thumbnail: what is left after taking away the coarse
    shading and dividing by the local contrast, so that neither brightness nor the same anatomy makes images alike.
    A similarity of 1 is the same detail in one of the eight orientations. The default was chosen by looking at pairs:
    above it lie copies that were compressed again, made smaller or brighter, mirrored or turned by 90 degrees, below it
    different images of one anatomy and copies that were cut or turned by a little. Tiles have no anatomy in common:
    there a lower one finds more. Every image is compared with every other, so twice the images take four times as long.

    Args:
        listing: of the source (`monai_pipelines.data.list_images`).
        similarity: from which on two images count as near duplicates, 0 to 1.
        num_workers: threads that decode; None: one per core.

    Returns:
        the `Audit`.

    Raises:
        ValueError: a similarity outside 0 to 1.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"audit_images: similarity must lie in 0 to 1, got {similarity}")
    items = list({item["image"]: item for item in listing.items}.values())
    with warnings.catch_warnings(), ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # as decode_image does, once for all threads
        looks = list(track(pool.map(_look, (item["image"] for item in items)), "looking", total=len(items)))
    readable = [(item, look) for item, look in zip(items, looks, strict=True) if isinstance(look, _Look)]
    told = {item["name"]: look for item, look in zip(items, looks, strict=True) if isinstance(look, str)}
    classes = [*listing.classes]
    if any(isinstance(item["label"], list) for item in items):
        classes.append("none of them")
    by_class = {c: [look for item, look in readable if c in _class_names(item, listing.classes)] for c in classes}
    splits = [s for s in (*SPLITS, WHOLE) if any(_split(item) == s for item in items)]
    exact, near = _duplicates(readable, listing.classes, similarity)
    return Audit(
        source=str(listing.source),
        counts={
            s: {c: sum(_split(i) == s and c in _class_names(i, listing.classes) for i in items) for c in classes}
            for s in splits
        },
        sizes={c: _sizes(own) for c, own in by_class.items()},
        file_types={c: dict(Counter(look.file_type for look in own)) for c, own in by_class.items()},
        colours={
            c: dict(Counter("grey" if look.channels == 1 else "colour" for look in own)) for c, own in by_class.items()
        },
        problems=split_problems(listing),
        unreadable=told,
        patients_in_several_splits=_torn_patients(items),
        exact=exact,
        near=near,
    )


def print_audit(audit: Audit) -> None:
    """Print the findings as tables; long lists are cut, `Audit.to_dict` has all."""
    console = Console()
    table = Table("class", *audit.counts, "height x width (median)", "file types", "colours", title=audit.source)
    for name in audit.sizes:
        size, types = audit.sizes[name], audit.file_types[name]
        told = ", ".join(f"{t} {n}" for t, n in sorted(types.items()))
        colours = ", ".join(f"{t} {n}" for t, n in sorted(audit.colours[name].items()))
        table.add_row(escape(name), *(str(n[name]) for n in audit.counts.values()), _size_text(size), told, colours)
    factors = (f"{f:.1f}" if f else "a class is empty" for f in audit.imbalance.values())
    table.add_section()
    table.add_row("largest / smallest", *factors)
    console.print(table)
    _print_lines(console, "Problems of the source", audit.problems)
    _print_lines(console, "Unreadable images", [f"{name}: {reason}" for name, reason in audit.unreadable.items()])
    torn = [
        "; ".join(f"{s}: {len(names)} image(s), such as {names[0]}" for s, names in patient.items())
        for patient in audit.patients_in_several_splits
    ]
    _print_lines(console, "Patients in several splits", torn)
    for title, groups in (("Equal images", audit.exact), ("Near duplicates: look at them", audit.near)):
        lines = [
            f"{group.told} ({group.similarity:.3f}): "
            + ", ".join(f"{n} [{c}, {s}]" for n, c, s in zip(group.images, group.classes, group.splits, strict=True))
            for group in groups
        ]
        _print_lines(console, title, lines)
    verdict = "; ".join(audit.to_mend) or "nothing"
    console.print(f"[bold]To mend:[/bold] {verdict}. To look at: {len(audit.near)} groups of near duplicates.")


# ---- one image


def _look(path: str) -> _Look | str:
    """What is kept of an image, or why it cannot be read."""
    try:
        image = decode_in_thread(path)
    except ScanError as error:
        return error.reason
    pixels = image.pixels
    if (pixels[..., 1:] == pixels[..., :1]).all():
        pixels = pixels[..., :1]  # a grey image saved as colour shows the same
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return _Look(image.height, image.width, pixels.shape[2], image.file_type, digest.digest(), _thumbnail(pixels))


def _thumbnail(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Detail of the image in (24, 24), coarse shading and local contrast taken out, of norm 1 (0: no detail)."""
    grey = pixels @ (_LUMA if pixels.shape[2] == 3 else np.ones(1, np.float32))
    grey = grey if pixels.dtype == np.uint8 else 255 * grey
    small = np.asarray(Image.fromarray(grey).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX))
    detail = small - gaussian_filter(small, _DETAIL)
    detail = detail / (np.sqrt(gaussian_filter(detail**2, _DETAIL)) + _FAINT)
    norm = float(np.linalg.norm(detail))
    return detail / norm if norm > 0.1 else np.zeros_like(detail)


# ---- all images


def _split(item: Mapping[str, Any]) -> str:
    given = item.get("split", "").strip().lower()
    return SPLIT_NAMES.get(given, WHOLE)


def _class_names(item: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    label = item["label"]
    if isinstance(label, int):
        return [classes[label]]
    return [c for c, present in zip(classes, label, strict=True) if present] or ["none of them"]


def _sizes(looks: Sequence[_Look]) -> dict[str, Any]:
    if not looks:
        return {}
    size = np.array([(look.height, look.width) for look in looks])
    spread = [[int(low), int(mid), int(high)] for low, mid, high in np.quantile(size, (0, 0.5, 1), axis=0).T]
    return {"height": spread[0], "width": spread[1], "num_sizes": len(np.unique(size, axis=0))}


def _size_text(size: Mapping[str, Any]) -> str:
    if not size:
        return "-"
    (low, mid, high), (narrow, middle, wide) = size["height"], size["width"]
    return f"{mid} x {middle}" + ("" if size["num_sizes"] == 1 else f" ({low}-{high} x {narrow}-{wide})")


def _torn_patients(items: Sequence[Mapping[str, Any]]) -> list[dict[str, list[str]]]:
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        found[item["patient"]][_split(item)].append(item["name"])
    return [dict(splits) for splits in found.values() if len(splits) > 1]


def _duplicates(
    readable: Sequence[tuple[Mapping[str, Any], _Look]], classes: Sequence[str], similarity: float
) -> tuple[list[Duplicates], list[Duplicates]]:
    """Groups of equal images, and groups of near duplicates (one of each group of equal ones stands for all)."""
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, (_, look) in enumerate(readable):
        same[look.digest].append(index)
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

    def told(group: Sequence[int], value: float) -> Duplicates:
        items = [readable[index][0] for index in group]
        return Duplicates(
            images=[item["name"] for item in items],
            splits=[_split(item) for item in items],
            classes=["|".join(_class_names(item, classes)) for item in items],
            similarity=round(value, 4),
            num_patients=len({item["patient"] for item in items}),
        )

    exact = [told(group, 1.0) for group in groups if len(group) > 1]
    near = [told(group, lowest[number]) for number, group in alike.items()]
    return sorted(exact, key=_worst_first), sorted(near, key=_worst_first)


def _worst_first(group: Duplicates) -> tuple[bool, bool, bool, float]:
    return not group.across_classes, not group.across_splits, group.num_patients == 1, -group.similarity


def _similar(thumbnails: Sequence[NDArray[np.float32]], similarity: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (i < j) whose thumbnails are alike in one of the eight orientations, with how much."""
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


def _print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        table = Table(f"{title}: {len(lines)}")
        for line in lines[:_SHOWN]:
            table.add_row(escape(line))
        if len(lines) > _SHOWN:
            table.add_row(f"... and {len(lines) - _SHOWN} more")
        console.print(table)
