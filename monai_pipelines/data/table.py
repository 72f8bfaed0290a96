"""Tables of scans or images and their labels as datalists, split by patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from monai_pipelines.data.finding import find_inputs, read_rows
from monai_pipelines.data.split import Cohort, Item, Listing, split_listing

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
    optionally ``patient`` (default: a different one for each scan) and ``split`` (train, validation, test).
    Without ``split`` the patients of each label (a patient's highest) are drawn at random, at least one for each split;
    a ``split`` without validation gets one drawn from its training patients. With ``multilabel`` a label is
    any number of names joined by ``|`` (empty or "No Finding": none), and patients are drawn by their rarest label.

    Args:
        table: the CSV file.
        classes: class names by index; None takes the names in the table, sorted.
        fractions: share of the patients in train, validation and test.
        seed: of the split.
        multilabel: an image may have several labels, or none.

    Raises:
        CohortError: lists all problems at once: missing files, missing or unknown labels, a scan of two patients or
            two classes, a patient in two splits, a class with no patient in a split.
    """
    return split_listing(list_table(table, classes, multilabel), fractions, seed)


def list_table(
    table: str | PathLike[str],
    classes: Sequence[str] | None = None,
    multilabel: bool = False,
    is_optional: Callable[[str], bool] | None = None,
) -> Listing:
    """The content of a table, not yet split, with all its problems.

    Args:
        table, classes, multilabel: of `read_cohort`.
        is_optional: whether an image of this name may be missing.
    """
    rows = read_rows(table, needed=("image", "label"))
    if classes is None:
        labels = {name for row in rows for name in _label_names(row["label"], multilabel)}
        classes = sorted(labels, key=lambda name: (len(name) if name.isdecimal() else 0, name))
    problems: list[str] = []
    folder, names = Path(table).parent, list(classes)
    items = [item for row in rows if (item := _item(row, folder, names, multilabel, is_optional, problems)) is not None]
    first: dict[str, Item] = {}
    for item in items:
        same = first.setdefault(item["image"], item)
        if same["patient"] != item["patient"]:
            problems.append(f"{item['name']}: listed for patients {same['patient']} and {item['patient']}")
        if same["label"] != item["label"]:
            labels_text = " and as ".join(_label_text(one["label"], names) for one in (same, item))
            problems.append(f"{item['name']}: listed as {labels_text}")
    return Listing(table, items, tuple(classes), problems)


def find_scans(source: str | PathLike[str]) -> list[Item]:
    """Scans to be classified: the ``image`` column of a CSV table, or all scans in a folder.

    In a folder every NIfTI, NRRD and MetaImage file is a scan, and every folder that directly holds other files (but
    notes, tables and the data files of such volumes) is one DICOM series.

    Args:
        source: a CSV file, a folder, or one scan.

    Returns:
        a MONAI datalist; see `find_inputs`.
    """
    return find_inputs(source, "scan", "DICOM series folders, NIfTI, NRRD or MetaImage files", _list_scans)


def _list_scans(folder: Path) -> list[Path]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    volumes = {p for p in files if p.name.lower().endswith(VOLUMES)}
    series = {p.parent for p in files if p not in volumes and not p.name.lower().endswith(SIDECARS)}
    return sorted(volumes | series)


def _item(
    row: Item,
    folder: Path,
    classes: list[str],
    multilabel: bool,
    is_optional: Callable[[str], bool] | None,
    problems: list[str],
) -> Item | None:
    where = f"line {row.pop('line')}"
    image, label = row["image"].strip(), row["label"].strip()
    before = len(problems)
    if not image:
        problems.append(f"{where}: no image")
    elif not (folder / image).exists() and not (is_optional and is_optional(image)):
        problems.append(f"{where}: {image}: no such file or folder")
    indices = []
    for name in _label_names(label, multilabel):
        if name in classes:
            indices.append(classes.index(name))
        elif name.isdecimal() and int(name) < len(classes):
            indices.append(int(name))
        else:
            wanted = f"wanted one of {', '.join(classes)} or 0 to {len(classes) - 1}"
            problem = f"unknown label {name!r}" if name else "no label"
            problems.append(f"{where}: {image}: {problem}, {wanted}")
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
