"""From a table of scans or images and their labels to datalists, split by patient."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from monai_pipelines.data.split import Cohort, Item, Listing, split_listing
from monai_pipelines.errors import CohortError

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
SIDECARS = (".csv", ".tsv", ".txt", ".json", ".yaml", ".md", ".raw", ".zraw", ".raw.gz")
NO_FINDING = "No Finding"


def read_cohort(
    table: str | PathLike[str],
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    multilabel: bool = False,
) -> Cohort:
    """Read a table of scans or images and split it by patient.

    The table is a CSV with the columns ``image`` (relative to the table), ``label`` (class name or index) and
    optionally ``patient`` (default: every scan is a patient of its own) and ``split`` (train, validation, test).
    Without ``split`` the patients of each label (a patient's highest) are drawn at random, at least one for each split;
    a ``split`` without validation gets one drawn from its training patients. With several labels an image the column
    holds names joined by ``|``, none for an empty field or "No Finding", and a patient is drawn by his rarest label.

    Args:
        table: the CSV file.
        classes: class names by index; None takes the names in the table, sorted.
        fractions: share of the patients in train, validation and test.
        seed: of the split.
        multilabel: an image may have several labels, or none.

    Returns:
        the `Cohort`.

    Raises:
        CohortError: lists all problems at once: missing files, missing or unknown labels, a scan of two patients or
            two classes, a patient in two splits, a class with no patient in a split.
    """
    return split_listing(list_table(table, classes, multilabel), fractions, seed)


def list_table(
    table: str | PathLike[str],
    classes: Sequence[str] | None = None,
    multilabel: bool = False,
    stands_in: Callable[[str], bool] | None = None,
) -> Listing:
    """What a table holds, not yet split, with all its problems.

    Args:
        table, classes, multilabel: of `read_cohort`.
        stands_in: whether something stands in for a missing image of this name, so that it is no problem.
    """
    rows = _read_rows(table)
    if classes is None:
        found = {name for row in rows for name in _label_names(row["label"], multilabel)}
        classes = sorted(found, key=lambda name: (len(name) if name.isdecimal() else 0, name))
    problems: list[str] = []
    folder, names = Path(table).parent, list(classes)
    items = [item for row in rows if (item := _item(row, folder, names, multilabel, stands_in, problems)) is not None]
    first: dict[str, Item] = {}
    for item in items:
        same = first.setdefault(item["image"], item)
        if same["patient"] != item["patient"]:
            problems.append(f"{item['name']}: listed for patients {same['patient']} and {item['patient']}")
        if same["label"] != item["label"]:
            told = " and as ".join(_label_text(one["label"], names) for one in (same, item))
            problems.append(f"{item['name']}: listed as {told}")
    return Listing(table, items, tuple(classes), problems)


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
    if (named := list_named(path, "a folder of scans, or a scan")) is not None:
        return named
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    volumes = {p for p in files if p.name.lower().endswith(VOLUMES)}
    series = {p.parent for p in files if p not in volumes and not p.name.lower().endswith(SIDECARS)}
    if not volumes | series:
        raise CohortError(source, ["no scan in it: wanted DICOM series folders, NIfTI, NRRD or MetaImage files"])
    return [
        {"image": str(p), "name": str(p.relative_to(path)) if p != path else path.resolve().name}
        for p in sorted(volumes | series)
    ]


def list_named(path: Path, wanted: str, columns: Sequence[str] = ()) -> list[Item] | None:
    """What a CSV table names, with further ``columns``, or the one file that ``path`` is; None for a folder.

    Raises:
        FileNotFoundError: no such file or folder; tells what is ``wanted`` besides a table.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; wanted a CSV table, {wanted}")
    if path.suffix.lower() == ".csv":
        return list_unlabelled(path, columns)
    return [{"image": str(path), "name": path.name}] if path.is_file() else None


def list_unlabelled(table: Path, columns: Sequence[str] = ()) -> list[Item]:
    """The ``image`` column of a table as datalist: ``image`` (path), ``name``, and what is in further ``columns``.

    A missing file is left to the reader.
    """
    rows = _read_rows(table, needed=("image",))
    missing = [f"line {row['line']}: no image" for row in rows if not row["image"].strip()]
    if missing:
        raise CohortError(table, missing)
    return [
        {"image": str(table.parent / row["image"].strip()), "name": row["image"].strip()}
        | {column: row[column].strip() for column in columns if row.get(column, "").strip()}
        for row in rows
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


def _item(
    row: Item,
    folder: Path,
    classes: list[str],
    multilabel: bool,
    stands_in: Callable[[str], bool] | None,
    problems: list[str],
) -> Item | None:
    where = f"line {row.pop('line')}"
    image, label = row["image"].strip(), row["label"].strip()
    before = len(problems)
    if not image:
        problems.append(f"{where}: no image")
    elif not (folder / image).exists() and not (stands_in is not None and stands_in(image)):
        problems.append(f"{where}: {image}: no such file or folder")
    indices = []
    for name in _label_names(label, multilabel):
        if name in classes:
            indices.append(classes.index(name))
        elif name.isdecimal() and int(name) < len(classes):
            indices.append(int(name))
        else:
            wanted = f"wanted one of {', '.join(classes)} or 0 to {len(classes) - 1}"
            told = f"unknown label {name!r}" if name else "no label"
            problems.append(f"{where}: {image}: {told}, {wanted}")
    if len(problems) > before:
        return None
    row["label"] = [float(k in indices) for k in range(len(classes))] if multilabel else indices[0]
    patient = row.get("patient", "").strip() or image
    return {**row, "image": str(folder / image), "name": image, "patient": patient}


def _label_names(label: str, multilabel: bool) -> list[str]:
    names = [name.strip() for name in (label.split("|") if multilabel else [label])]
    return [name for name in names if name not in ("", NO_FINDING)] if multilabel else names


def _label_text(label: int | list[float], classes: Sequence[str]) -> str:
    if isinstance(label, int):
        return classes[label]
    return "|".join(c for c, present in zip(classes, label, strict=True) if present) or NO_FINDING
