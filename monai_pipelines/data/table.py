"""CSV tables, folders and files as datalists: labeled ones split by patient, others to be classified."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_pipelines.chains import did_you_mean
from monai_pipelines.data.rows import COLUMNS, read_rows
from monai_pipelines.data.split import Cohort, Item, Listing, label_indices, split_sources
from monai_pipelines.errors import CohortError
from monai_pipelines.model import class_names
from monai_pipelines.remote import Place, Remote, Source, as_place, each, entry
from monai_pipelines.transforms.ct.formats import ITK_SUFFIXES, NIFTI_SUFFIXES
from monai_pipelines.transforms.ct.series import is_sidecar
from monai_pipelines.walk import is_text, walk_folders

logger = logging.getLogger(__name__)

VOLUMES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
NO_FINDING = "No Finding"
_NORMAL = re.compile("non?($|[^a-z])|normal|healthy|benign|negative|control", re.I)


def read_cohort(
    table: Source | None,
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    multilabel: bool = False,
    test_source: Source | None = None,
    rename: Mapping[str, str] | None = None,
) -> Cohort:
    """Read a table of scans or images and split it by patient.

    The table is a CSV with the columns ``image`` (relative to the table, or a URL), ``label`` (class name or index) and
    optionally ``patient`` (default: a different one for each scan) and ``split`` (train, validation, test).
    Without ``split`` the patients of each label (a patient's highest) are drawn at random, at least one for each split;
    a ``split`` without validation gets one drawn from its training patients. With ``multilabel`` a label is
    any number of names joined by ``|`` (empty or "No Finding": none), and patients are drawn by their rarest label.

    Args:
        table: the CSV file, or the folder of a ``table.csv``, also at a URL; None: only ``test_source``.
        classes: class names by index; None takes the names in the table, sorted.
        fractions: share of the patients in train, validation and test; (0, 0, 1): all are test. (k, K), for a
            cross-validation: fold k of K, from 1, is the test, the next one is the validation.
        seed: of the split.
        multilabel: an image may have several labels, or none.
        test_source: another table (or folder), all of it for the test; ``table`` is then split into train and
            validation. None: ``table`` has the test, too.
        rename: classes by the names that the data have for them.

    Raises:
        CohortError: lists all problems at once: missing files, missing or unknown labels, a scan of two patients or
            two classes, a patient in two splits, a class with no patient in a split.
    """

    def listed(source: Source, external: bool) -> Listing:
        return list_table(table_in(source), classes, multilabel, rename=rename)

    return split_sources(listed, table, test_source, fractions, seed)


def table_in(source: Source) -> Place:
    """The table itself, or the ``table.csv`` of a folder."""
    place = as_place(source)
    is_folder = place.is_dir() if isinstance(place, Path) else place.suffix.lower() != ".csv"
    return place / "table.csv" if is_folder else place


def list_table(
    table: Source,
    classes: Sequence[str] | None = None,
    multilabel: bool = False,
    is_optional: Callable[[str], bool] | None = None,
    labeled: bool = True,
    rename: Mapping[str, str] | None = None,
) -> Listing:
    """The content of a table, not yet split, with all its problems.

    Args:
        table, classes, multilabel, rename: of `read_cohort`.
        is_optional: whether an image of this name may be missing.
        labeled: whether the table has labels; without them a column ``label`` is one like any other.
    """
    known = COLUMNS if labeled else tuple(column for column in COLUMNS if column != "label")
    rows = read_rows(table, needed=("image", "label") if labeled else ("image",), known=known)
    if labeled and classes is None:
        labels = {name for row in rows for name in _label_names(row["label"], multilabel, rename)}
        classes = sorted(labels, key=lambda name: (len(name) if name.isdecimal() else 0, name))
    classes = class_names(classes or ()) if labeled else ()
    problems: list[str] = []
    used: set[int] = set()
    unknown: defaultdict[str, list[str]] = defaultdict(list)
    items: list[Item] = []
    lines: list[str] = []
    names = list(classes)
    for row, place, exists in zip(rows, *_places(as_place(table).parent, rows), strict=True):
        where, image = f"line {row.pop('line')}", _name(row["image"])
        wrong = []
        if not image:
            wrong.append(f"{where}: no image")
        elif not exists and not (is_optional and is_optional(image)):
            wrong.append(f"{where}: {image}: no such file or folder")
        indices, strange = [], []
        for name in _label_names(row["label"], multilabel, rename) if labeled else ():
            if name in names:
                indices.append(names.index(name))
            elif name.isdecimal() and int(name) < len(names):
                indices.append(int(name))
            else:
                strange.append(name)
        for name in strange:
            unknown[name].append(f"{where}: {image}")
        used.update(indices)
        problems += wrong
        if not wrong and not strange:
            if labeled:
                row["label"] = [float(k in indices) for k in range(len(names))] if multilabel else indices[0]
            patient = row.get("patient", "").strip() or image
            items.append({**row, "image": as_image(place), "name": image, "patient": patient})
            lines.append(where)
    problems += _unknown_labels(unknown, names, multilabel)
    if not used and not multilabel:
        problems += classes_hint(sorted(filter(None, unknown)))
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        is_remote = isinstance(item["image"], Remote)
        earlier = first.setdefault(str(item["image"]) if is_remote else os.path.realpath(item["image"]), index)
        same = items[earlier]
        if earlier == index:
            continue
        if is_remote and same["image"] != item["image"]:
            problems.append(
                f"{lines[index]}: {item['name']}: differs from {lines[earlier]} only in the query of the URL, which "
                "does not tell images apart; give them different paths"
            )
            continue
        if (same["patient"], same.get("label")) == (item["patient"], item.get("label")):
            also = "" if same["name"] == item["name"] else f", there as {same['name']}"
            problems.append(f"{lines[index]}: {item['name']}: already in {lines[earlier]}{also}; remove one row")
        if same["patient"] != item["patient"]:
            problems.append(f"{item['name']}: listed for patients {same['patient']} and {item['patient']}")
        if labeled and same["label"] != item["label"]:
            texts = ("|".join(names[k] for k in label_indices(one["label"])) or NO_FINDING for one in (same, item))
            problems.append(f"{item['name']}: listed as {' and as '.join(texts)}")
    return Listing(table, items, tuple(classes), problems)


def _unknown_labels(places: Mapping[str, Sequence[str]], names: Sequence[str], multilabel: bool) -> list[str]:
    """One line for each label, with its first place and the number of others."""
    problems = []
    for name, (first, *others) in places.items():
        more = f" and {len(others):,} more row{'s' if others[1:] else ''}" if others else ""
        problem = f"unknown label {name!r}{did_you_mean(name, names)}" if name else "no label"
        separator = " (several labels are joined by |)" if multilabel and re.search("[;,/]", name) else ""
        wanted = f"wanted one of {', '.join(names)} or 0 to {len(names) - 1}"
        problems.append(f"{first}{more}: {problem}, {wanted}{separator}")
    return problems


def classes_hint(found: Sequence[str]) -> list[str]:
    """How to name the classes of a training as the data do."""
    listed = ",".join(map(repr, sorted(found, key=lambda name: not _NORMAL.match(name))))
    positive = ", the positive one last" if len(found) == 2 else ""
    return [f'to train with the names that the data have, add --classes "[{listed}]"{positive}'] if found else []


def renamed(names: Iterable[str], rename: Mapping[str, str] | None) -> list[str]:
    """Classes by the names that data have for them.

    Example:
        >>> renamed(["NORMAL", "tumour"], {"NORMAL": "healthy"})
        ['healthy', 'tumour']
    """
    return [(rename or {}).get(name, name) for name in names]


def _name(image: str) -> str:
    """The text of a table; of a URL without user, password and query."""
    named = as_place(image.strip())
    return str(named) if isinstance(named, Remote) else image.strip()


def as_image(place: Place) -> str | Remote:
    """The ``image`` of an item."""
    return str(place) if isinstance(place, Path) else place


def _places(folder: Place, rows: Sequence[Mapping[str, str]]) -> tuple[list[Place], list[bool]]:
    """What the rows of a table name, and whether it exists; stores are asked for many at once."""
    places = [_place(folder, row["image"].strip()) for row in rows]
    remote = {place for place in places if isinstance(place, Remote)}
    found = dict(zip(remote, each(Remote.exists, remote, "looking for images"), strict=True)) if remote else {}
    return places, [found[place] if isinstance(place, Remote) else place.exists() for place in places]


def _place(folder: Place, image: str) -> Place:
    named = entry(folder, image)
    return _on_disk(folder, image) if isinstance(folder, Path) and isinstance(named, Path) else named


def _on_disk(folder: Path, image: str) -> Path:
    """The path of a table's ``image``: also with Windows' separators, or in the decomposed form that macOS writes."""
    path = folder / image
    if path.exists():
        return path
    others = (image.replace("\\", "/"), unicodedata.normalize("NFD", image))
    return next((folder / other for other in others if (folder / other).exists()), path)


def find_scans(source: Source) -> list[Item]:
    """Scans to be classified: a CSV table's ``image``, all scans in a folder, or one; see `find_inputs`.

    In a folder every NIfTI, NRRD and MetaImage file is a scan, and so is every folder that directly holds DICOM files
    (or others that may be damaged ones), with all below it. Texts, documents and pictures are left out; links are
    followed. At a URL names alone decide.
    """
    return find_inputs(source, "scan", "DICOM series folders, NIfTI, NRRD or MetaImage files", _list_scans)


def _list_scans(folder: Place) -> list[Place]:
    if isinstance(folder, Remote):
        return _list_remote_scans(folder)
    found: list[Place] = []
    texts = []
    for place, folders, files in walk_folders(folder):
        found += [file for file in files if file.name.lower().endswith(VOLUMES)]
        others = [file for file in files if not is_sidecar(file)]
        here = [file for file in others if file.is_file() and is_text(file)]
        if len(here) < len(others):
            found.append(place)
            folders.clear()
        else:
            texts += here
    if texts:
        logger.warning("%s: text files are ignored: %d, such as %s", folder, len(texts), texts[0].name)
    return sorted(found)


def _list_remote_scans(folder: Remote) -> list[Place]:
    files = [file.place for file in folder.files()]
    volumes = [file for file in files if file.name.lower().endswith(VOLUMES)]
    series: list[Remote] = []
    for place in sorted({file.parent for file in files if file not in volumes and not is_sidecar(file)}):
        if not any(place.url.startswith(f"{above.url.rstrip('/')}/") for above in series):
            series.append(place)
    return sorted([*volumes, *series])


def _label_names(label: str, multilabel: bool, rename: Mapping[str, str] | None) -> list[str]:
    names = [name.strip() for name in (label.split("|") if multilabel else [label])]
    names = renamed(names, rename)
    return [name for name in names if name not in ("", NO_FINDING)] if multilabel else names


def find_inputs(
    source: Source,
    kind: str,
    wanted: str,
    list_folder: Callable[[Any], Iterable[Place]],
    columns: Sequence[str] = (),
) -> list[Item]:
    """The ``image`` column of a CSV table, one file, or the inputs in a folder; a missing file is left to the reader.

    Args:
        source: a CSV file, a file or a folder, or the URL of one.
        kind: of the input, for messages: "scan", "image", ...
        wanted: in a folder, for messages.
        list_folder: gives the inputs in a folder, which may be the folder itself, in order.
        columns: further columns of a table that are kept where they are not empty.

    Returns:
        a MONAI datalist: ``image`` (path, or `Remote` where it is at a URL), ``name`` (relative to the folder, or as
        the table has it), ``columns``.

    Raises:
        FileNotFoundError: no such file or folder.
        CohortError: nothing to classify in it.
    """
    path = as_place(source)
    if not path.exists():
        article = "an" if kind[0] in "aeiou" else "a"
        raise FileNotFoundError(
            f"{path}: no such file or folder; wanted a CSV table, a folder of {kind}s, or {article} {kind}"
        )
    if path.suffix.lower() == ".csv":
        return _from_table(path, columns)
    if path.is_file():
        return [{"image": as_image(path), "name": path.name}]
    inputs = list(list_folder(path))
    if not inputs:
        raise CohortError(path, [f"no {kind} in it: wanted {wanted}"])
    return [{"image": as_image(place), "name": _relative(place, path)} for place in inputs]


def _relative(place: Place, folder: Place) -> str:
    if place == folder:
        return folder.resolve().name if isinstance(folder, Path) else folder.name
    if isinstance(place, Path) and isinstance(folder, Path):
        return place.relative_to(folder).as_posix()
    return str(place).removeprefix(f"{str(folder).rstrip('/')}/")


def _from_table(table: Place, columns: Sequence[str]) -> list[Item]:
    rows = read_rows(table, needed=("image",))
    missing = [f"line {row['line']}: no image" for row in rows if not row["image"].strip()]
    if missing:
        raise CohortError(table, missing)
    return [
        {"image": as_image(_place(table.parent, row["image"].strip())), "name": _name(row["image"])}
        | {column: row[column].strip() for column in columns if row.get(column, "").strip()}
        for row in rows
    ]
