"""From a table of scans and labels to datalists, split by patient."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from sklearn.model_selection import train_test_split

from monai_pipelines.errors import CohortError

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
                "validation": "validation", "test": "test", "testing": "test"}  # fmt: skip

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
SIDECARS = (".csv", ".tsv", ".txt", ".json", ".yaml", ".md", ".raw", ".zraw", ".raw.gz")

Item = dict[str, Any]


@dataclass(frozen=True)
class Cohort:
    """A table's scans, split by patient.

    Attributes:
        train, validation, test: MONAI datalists: ``image`` (path), ``label`` (class index), ``patient``, ``name`` (the
            image as the table has it) and any further column of the table.
        classes: class names by index.
    """

    train: list[Item]
    validation: list[Item]
    test: list[Item]
    classes: tuple[str, ...]

    def labels(self, split: str = "train") -> list[int]:
        """Class index of every scan of a split."""
        return [item["label"] for item in getattr(self, split)]


def read_cohort(
    table: str | PathLike[str],
    classes: Sequence[str],
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> Cohort:
    """Read a table of scans and split it by patient.

    The table is a CSV with the columns ``image`` (relative to the table), ``label`` (class name or index) and
    optionally ``patient`` (default: every scan is a patient of its own) and ``split`` (train, validation, test).
    Without ``split`` the patients of each label (a patient's highest) are drawn at random, at least one for each split.

    Args:
        table: the CSV file.
        classes: class names by index.
        fractions: share of the patients in train, validation and test.
        seed: of the split.

    Returns:
        the `Cohort`.

    Raises:
        CohortError: lists all problems at once: missing files, missing or unknown labels, a scan of two patients or
            two classes, a patient in two splits, a class with no patient in a split.
    """
    rows = _read_rows(table)
    problems: list[str] = []
    items = [item for row in rows if (item := _item(row, Path(table).parent, list(classes), problems)) is not None]
    labels: dict[str, int] = {}
    patient_of: dict[str, str] = {}
    label_of: dict[str, int] = {}
    for item in items:
        if patient_of.setdefault(item["image"], item["patient"]) != item["patient"]:
            problems.append(f"{item['name']}: listed for patients {patient_of[item['image']]} and {item['patient']}")
        if label_of.setdefault(item["image"], item["label"]) != item["label"]:
            names = classes[label_of[item["image"]]], classes[item["label"]]
            problems.append(f"{item['name']}: listed as {names[0]} and as {names[1]}")
        labels[item["patient"]] = max(item["label"], labels.get(item["patient"], 0))
    if any(item.get("split") for item in items):
        split_of = _given_split(items, problems)
    else:
        split_of = _drawn_split(labels, fractions, seed, classes, problems)
    split: dict[str, list[Item]] = {s: [i for i in items if split_of.get(i["patient"]) == s] for s in SPLITS}
    if not problems:
        for name in SPLITS:
            there = {item["label"] for item in split[name]}
            problems += [f"class {c!r} has no patient in {name}" for k, c in enumerate(classes) if k not in there]
    if problems:
        raise CohortError(table, problems)
    return Cohort(split["train"], split["validation"], split["test"], tuple(classes))


def find_scans(source: str | PathLike[str]) -> list[Item]:
    """Scans to be classified: the ``image`` column of a CSV table, or all scans in a folder.

    In a folder every NIfTI, NRRD and MetaImage file is a scan, and every folder that directly holds other files (but
    notes, tables and the data files of such volumes) is one DICOM series.

    Args:
        source: a CSV file, a folder, or one scan.

    Returns:
        a MONAI datalist: ``image`` (path), ``name`` (relative to the folder, or as the table has it).

    Raises:
        FileNotFoundError: no such file or folder.
        CohortError: nothing to classify in it.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder; wanted a CSV table, a folder of scans, or a scan")
    if path.suffix.lower() == ".csv":
        rows = _read_rows(path, needed=("image",))
        missing = [f"line {row['line']}: no image" for row in rows if not row["image"].strip()]
        if missing:
            raise CohortError(source, missing)
        images = [row["image"].strip() for row in rows]
        return [{"image": str(path.parent / image), "name": image} for image in images]
    if path.is_file():
        return [{"image": str(path), "name": path.name}]
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    volumes = {p for p in files if p.name.lower().endswith(VOLUMES)}
    series = {p.parent for p in files if p not in volumes and not p.name.lower().endswith(SIDECARS)}
    if not volumes | series:
        raise CohortError(source, ["no scan in it: wanted DICOM series folders, NIfTI, NRRD or MetaImage files"])
    return [
        {"image": str(p), "name": str(p.relative_to(path)) if p != path else path.resolve().name}
        for p in sorted(volumes | series)
    ]


def _read_rows(table: str | PathLike[str], needed: Sequence[str] = ("image", "label")) -> list[Item]:
    if not Path(table).is_file():
        raise CohortError(table, [f"no such table; wanted a CSV with the columns {', '.join(needed)}"])
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        rows: list[Item] = [{**row, "line": reader.line_num} for row in reader]
        columns = list(reader.fieldnames or ())
    problems = [f"no column {c!r}; the table's columns are {', '.join(columns)}" for c in needed if c not in columns]
    problems += [f"line {r['line']}: more fields than columns (a comma without quotes?)" for r in rows if None in r]
    if problems:
        raise CohortError(table, problems)
    if not rows:
        raise CohortError(table, ["no row in it"])
    return rows


def _item(row: Item, folder: Path, classes: list[str], problems: list[str]) -> Item | None:
    where = f"line {row.pop('line')}"
    image, label = row["image"].strip(), row["label"].strip()
    before = len(problems)
    if not image:
        problems.append(f"{where}: no image")
    elif not (folder / image).exists():
        problems.append(f"{where}: {image}: no such file or folder")
    if label in classes:
        row["label"] = classes.index(label)
    elif label.isdecimal() and int(label) < len(classes):
        row["label"] = int(label)
    else:
        wanted = f"wanted one of {', '.join(classes)} or 0 to {len(classes) - 1}"
        problems.append(
            f"{where}: {image}: " + (f"unknown label {label!r}, {wanted}" if label else f"no label, {wanted}")
        )
    if len(problems) > before:
        return None
    patient = row.get("patient", "").strip() or image
    return {**row, "image": str(folder / image), "name": image, "patient": patient}


def _given_split(items: Sequence[Item], problems: list[str]) -> dict[str, str]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        split = _SPLIT_NAMES.get(item["split"].strip().lower())
        if split is None:
            problems.append(f"{item['name']}: unknown split {item['split']!r}, wanted train, validation or test")
        else:
            found[item["patient"]].add(split)
    problems += [f"patient {p} is in {' and '.join(sorted(s))}" for p, s in found.items() if len(s) > 1]
    return {patient: min(splits) for patient, splits in found.items()}


def _drawn_split(
    labels: dict[str, int], fractions: Sequence[float], seed: int, classes: Sequence[str], problems: list[str]
) -> dict[str, str]:
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three positive numbers that sum to 1, got {list(fractions)}")
    patients = sorted(labels)
    few = [c for k, c in enumerate(classes) if sum(label == k for label in labels.values()) < 3]
    problems += [f"class {c!r} has fewer than 3 patients: it cannot be in train, validation and test" for c in few]
    if few:
        return {}
    split_of: dict[str, str] = {}
    for k in range(len(classes)):
        members = [p for p in patients if labels[p] == k]
        num_test = min(max(1, round(len(members) * fractions[2])), len(members) - 2)
        num_validation = min(max(1, round(len(members) * fractions[1])), len(members) - num_test - 1)
        rest, test = train_test_split(members, test_size=num_test, random_state=seed)
        train, validation = train_test_split(rest, test_size=num_validation, random_state=seed)
        for split, drawn in zip(SPLITS, (train, validation, test), strict=True):
            split_of |= dict.fromkeys(drawn, split)
    return split_of
