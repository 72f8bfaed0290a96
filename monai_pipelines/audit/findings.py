"""The audit of a cohort before training: counts, sizes, and everything that would invalidate a result."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.audit.kinds import UNLABELED, Kind, KindName
from monai_pipelines.audit.likeness import equal_groups, similar_groups
from monai_pipelines.audit.outliers import find_outliers
from monai_pipelines.audit.patients import suggested_pattern
from monai_pipelines.audit.readings import Reading
from monai_pipelines.audit.shortcuts import shortcut_table
from monai_pipelines.data import Listing, patients_known
from monai_pipelines.data.prepared import why_unusable
from monai_pipelines.data.split import SPLIT_NAMES, SPLITS, Item, label_indices, split_problems
from monai_pipelines.data.workers import Outcome, each_outcome

WHOLE = "all"  # the split of a source without splits
NO_LABEL = "none of them"  # the class of multilabel images without a label
REVEALING = 0.6  # a ROC AUC above this is worth a look at how the classes were collected


@dataclass(frozen=True)
class Duplicates:
    """Items with the same content.

    Attributes:
        images, splits, classes: name, split and class of each.
        similarity: 1 for equal content, otherwise the lowest that links two of the group.
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
        """In words what the items do not have in common."""
        different = ["two classes"] * self.across_classes + ["two splits"] * self.across_splits
        return ", ".join(different) or ("several patients" if self.num_patients > 1 else "one patient")


@dataclass(frozen=True)
class Audit:
    """The findings of `audit_cohort`, as plain data.

    Attributes:
        source, unit: of the items; unit is image, scan or slide.
        counts: number of items by split and class.
        sizes, spacings: by class: [minimum, median, maximum] along each axis; ``num_sizes`` different sizes.
        values: by class: ``low`` and ``high`` of all items, and the ``mean`` of their means.
        file_types, scanners, colors: by class: number of items of each, by content.
        items: for each item ``name``, ``split``, ``class``, ``verdict`` ("ok", what the reader repaired, or why it is
            refused) and the facts of its `Reading`.
        problems: errors of the source, except patients in several splits.
        unreadable: reason by name.
        blank: names of items with a single value.
        not_hu: names of scans without a negative value: no air, so not HU.
        patients_in_several_splits: for each such patient the names of the items, by split.
        exact, near: groups of items with equal content, and of near duplicates.
        outliers: reasons by name.
        shortcuts: of `monai_pipelines.audit.shortcuts.shortcut_table`.
        patient_pattern: that file names suggest where patients are unknown, see
            `monai_pipelines.audit.patients.suggested_pattern`; None: none.
        pictures: small pictures by name, not part of the plain data.
    """

    source: str
    unit: KindName
    counts: dict[str, dict[str, int]]
    sizes: dict[str, dict[str, Any]]
    spacings: dict[str, dict[str, Any]]
    values: dict[str, dict[str, float]]
    file_types: dict[str, dict[str, int]]
    scanners: dict[str, dict[str, int]]
    colors: dict[str, dict[str, int]]
    items: list[dict[str, Any]]
    problems: list[str]
    unreadable: dict[str, str]
    blank: list[str]
    not_hu: list[str]
    patients_in_several_splits: list[dict[str, list[str]]]
    exact: list[Duplicates]
    near: list[Duplicates]
    outliers: dict[str, list[str]]
    shortcuts: list[dict[str, Any]]
    patient_pattern: str | None
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def imbalance(self) -> dict[str, float | None]:
        """Largest class divided by smallest, by split; None where a class has no item."""
        return {s: max(n.values()) / min(n.values()) if min(n.values()) else None for s, n in self.counts.items()}

    @property
    def to_fix(self) -> list[str]:
        """What invalidates results or stops the training, one line each; near duplicates and outliers do not."""
        unit, drawn = self.unit, WHOLE in self.counts
        split = sum(group.across_splits for group in self.exact)
        relabeled = sum(group.across_classes for group in self.exact)
        loose = sum(drawn and group.num_patients > 1 for group in self.exact)
        return _counted(
            (len(self.problems), "problem of the source", "problems of the source"),
            (len(self.unreadable), f"unreadable {unit}", f"unreadable {unit}s"),
            (len(self.blank), f"blank {unit}", f"blank {unit}s"),
            (len(self.not_hu), "scan not in HU: no negative value", "scans not in HU: no negative value"),
            (len(self.patients_in_several_splits), "patient in several splits", "patients in several splits"),
            (split, f"group of equal {unit}s in several splits", f"groups of equal {unit}s in several splits"),
            (relabeled, f"group of equal {unit}s in several classes", f"groups of equal {unit}s in several classes"),
            (
                loose,
                f"group of equal {unit}s of several patients, which a random split may separate",
                f"groups of equal {unit}s of several patients, which a random split may separate",
            ),
        )

    @property
    def to_review(self) -> list[str]:
        """What needs a look, one line each."""
        found = _counted(
            (len(self.near), "group of near duplicates", "groups of near duplicates"),
            (len(self.outliers), "outlier", "outliers"),
        )
        if self.patient_pattern:
            found.append(
                f"patients are unknown, but by their names several {self.unit}s share one, and a random split may "
                f"separate them: add --patient_pattern '{self.patient_pattern}', or a column patient"
            )
        return found + [
            f"ROC AUC of {row['roc_auc']:.2f} from {row['features']} alone"
            for row in self.shortcuts
            if (row["low"] or 0) > REVEALING
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the pictures."""
        plain = asdict(self)
        del plain["pictures"]
        return {**plain, "imbalance": self.imbalance, "to_fix": self.to_fix, "to_review": self.to_review}


def _counted(*counts: tuple[int, str, str]) -> list[str]:
    """Counts above 0 with their words, for one and for several."""
    return [f"{count:,} {one if count == 1 else several}" for count, one, several in counts if count]


def _reading(item: Mapping[str, Any], kind: Kind) -> Outcome:
    """(its `Reading`, None), or (None, why it cannot be read)."""
    try:
        return kind.read(item), None
    except Exception as error:
        return None, why_unusable(error, item["image"])


def audit_cohort(
    listing: Listing,
    kind: Kind,
    similarity: float = 0.95,
    num_workers: int | None = None,
    scheduler: str | None = None,
) -> Audit:
    """Read and compare everything in a source.

    Near duplicates are found by the detail of a small gray picture: coarse shading is removed and local contrast
    normalized, so that images are not similar because of brightness or anatomy. A similarity of 1 is the same detail in
    one of the eight orientations. The default was chosen by visual inspection of pairs: more similar are copies that
    were compressed again, resized, brightened, mirrored or rotated by 90 degrees; less similar are different images of
    one anatomy, and copies that were cropped or rotated slightly. Tiles share no anatomy, so a lower threshold finds
    more of them. The time is quadratic in the number of items.

    Args:
        listing: of the source (`monai_pipelines.audit.list_source`).
        kind: of its items (`monai_pipelines.audit.kind_named`).
        similarity: threshold for near duplicates, 0 to 1.
        num_workers: processes that read; None: one per core.
        scheduler: address of a Dask scheduler whose workers read instead.

    Raises:
        ValueError: a similarity outside 0 to 1.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"audit_cohort: similarity must be above 0 and at most 1, got {similarity}")
    items = list({item["image"]: item for item in listing.items}.values())
    workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    outcomes = list(each_outcome(partial(_reading, kind=kind), items, "reading", workers, scheduler))
    usable = [(item, reading) for item, (reading, _) in zip(items, outcomes, strict=True) if reading]
    readable, readings = [item for item, _ in usable], [reading for _, reading in usable]
    classes = [*listing.classes]
    if any(isinstance(item["label"], list) for item in items):
        classes.append(NO_LABEL)
    by_class = {c: [r for item, r in usable if c in _labels(item, listing.classes)] for c in classes}
    counts = Counter((_split(item), c) for item in items for c in _labels(item, listing.classes))
    exact, near = _duplicates(readable, readings, listing.classes, similarity)
    names = [item["name"] for item in readable]
    return Audit(
        source=str(listing.source),
        unit=kind.name,
        counts={s: {c: counts[s, c] for c in classes} for s in (*SPLITS, WHOLE) if any(s == key for key, _ in counts)},
        sizes={c: _extent([r.size for r in group], kind) for c, group in by_class.items()},
        spacings={c: _extent([r.spacing for r in group if r.spacing], kind) for c, group in by_class.items()},
        values={c: _values(group) for c, group in by_class.items()},
        file_types={c: dict(Counter(r.file_type for r in group)) for c, group in by_class.items()},
        scanners={c: dict(Counter(r.scanner or "unknown" for r in group)) for c, group in by_class.items()},
        colors={c: dict(Counter("gray" if r.channels == 1 else "color" for r in g)) for c, g in by_class.items()},
        items=[_facts(item, *outcome, listing.classes) for item, outcome in zip(items, outcomes, strict=True)],
        problems=listing.problems if listing.classes == UNLABELED else split_problems(listing),
        unreadable={item["name"]: reason for item, (_, reason) in zip(items, outcomes, strict=True) if reason},
        blank=[name for name, reading in zip(names, readings, strict=True) if reading.low == reading.high],
        not_hu=[n for n, r in zip(names, readings, strict=True) if kind.values == "HU" and 0 <= r.low < r.high],
        patients_in_several_splits=_torn_patients(items),
        exact=exact,
        near=near,
        outliers={names[index]: why for index, why in find_outliers(readings, kind).items()},
        shortcuts=shortcut_table(readings, readable, len(listing.classes), kind.values) if readable else [],
        patient_pattern=None if patients_known(items) else suggested_pattern([item["name"] for item in items]),
        pictures={name: reading.picture for name, reading in zip(names, readings, strict=True)},
    )


def _split(item: Mapping[str, Any]) -> str:
    return SPLIT_NAMES.get(item.get("split", "").strip().lower(), WHOLE)


def _labels(item: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    return [classes[k] for k in label_indices(item["label"])] or [NO_LABEL]


def _facts(item: Item, reading: Reading | None, reason: str | None, classes: Sequence[str]) -> dict[str, Any]:
    known = {"name": item["name"], "split": _split(item), "class": "|".join(_labels(item, classes))}
    if reading is None:
        return {**known, "verdict": f"refused: {reason}"}
    facts = ("verdict", "size", "spacing", "low", "mean", "high", "file_type", "scanner")
    return known | {name: getattr(reading, name) for name in facts}


def _extent(values: Iterable[tuple[float, ...]], kind: Kind) -> dict[str, Any]:
    rows = np.array(list(values))
    if not len(rows):
        return {}
    ends = np.quantile(rows, (0, 0.5, 1), axis=0).T
    ends = ends.astype(int) if rows.dtype.kind == "i" else ends.round(4)
    return {**dict(zip(kind.axes, ends.tolist(), strict=True)), "num_sizes": len(np.unique(rows, axis=0))}


def _values(readings: Sequence[Reading]) -> dict[str, float]:
    if not readings:
        return {}
    mean = float(np.mean([reading.mean for reading in readings]))
    return {"low": min(r.low for r in readings), "mean": mean, "high": max(r.high for r in readings)}


def _torn_patients(items: Sequence[Mapping[str, Any]]) -> list[dict[str, list[str]]]:
    names: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        names[item["patient"]][_split(item)].append(item["name"])
    return [dict(splits) for splits in names.values() if len(splits) > 1]


def _duplicates(
    items: Sequence[Item], readings: Sequence[Reading], classes: Sequence[str], similarity: float
) -> tuple[list[Duplicates], list[Duplicates]]:
    """Groups of equal items, and groups of near duplicates, where one of each group of equal items is compared."""
    groups = equal_groups([reading.digest for reading in readings])
    near = similar_groups([readings[group[0]].detail for group in groups], similarity)

    def describe(group: Sequence[int], value: float) -> Duplicates:
        members = [items[index] for index in group]
        return Duplicates(
            images=[item["name"] for item in members],
            splits=[_split(item) for item in members],
            classes=["|".join(_labels(item, classes)) for item in members],
            similarity=round(value, 4),
            num_patients=len({item["patient"] for item in members}),
        )

    exact = [describe(group, 1.0) for group in groups if len(group) > 1]
    linked = [describe([index for number in numbers for index in groups[number]], value) for numbers, value in near]
    return sorted(exact, key=_worst_first), sorted(linked, key=_worst_first)


def _worst_first(group: Duplicates) -> tuple[bool, bool, bool, float]:
    return not group.across_classes, not group.across_splits, group.num_patients == 1, -group.similarity
