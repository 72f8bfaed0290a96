"""Images in folders, zips of folders, or tables: what is there, with which label and patient."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from monai_pipelines.chains import did_you_mean
from monai_pipelines.data.archive import unpack
from monai_pipelines.data.split import SPLIT_NAMES, Cohort, Item, Listing, split_listing
from monai_pipelines.data.table import list_named, list_table
from monai_pipelines.errors import CohortError

logger = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".dcm", ".dicom")
_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")


def read_images(
    source: str | PathLike[str],
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    patient_pattern: str | None = None,
    multilabel: bool = False,
    extract_dir: str | PathLike[str] | None = None,
) -> Cohort:
    r"""Read labelled 2D images from wherever they are and split them by patient.

    The source is one of

    - a CSV table, or a folder with a ``table.csv``: see `read_cohort`;
    - a folder with one folder of images for each class;
    - a folder with ``train``, ``test`` and maybe ``validation`` (``val``), each with one folder for each class;
    - a zip of such a folder, unpacked once (`unpack`).

    A folder that holds nothing but such a folder is stepped into. Files that are no images are named in the log.

    Args:
        source: the table, folder or zip.
        classes: class names by index; None takes the names of the folders, sorted.
        fractions: share of the patients in train, validation and test, where the source gives no split.
        seed: of the split.
        patient_pattern: regular expression whose first group is the patient, searched in a file's path below the
            source or as the table has it, such as ``(person\d+)_``; not for a table that names patients itself. None
            makes every image a patient of its own.
        multilabel: an image may have several labels, or none; the source is a table.
        extract_dir: where a zip is unpacked; None: beside it.

    Returns:
        the `Cohort`.

    Raises:
        CohortError: lists all problems at once: as `read_cohort`, and class folders that are missing or are no class,
            images outside of the class folders or without a patient.
        ValueError: a ``patient_pattern`` that is no regular expression with a group.
    """
    listing = list_images(source, classes, patient_pattern, multilabel, extract_dir)
    return split_listing(listing, fractions, seed)


def list_images(
    source: str | PathLike[str],
    classes: Sequence[str] | None = None,
    patient_pattern: str | None = None,
    multilabel: bool = False,
    extract_dir: str | PathLike[str] | None = None,
) -> Listing:
    """What a source of images holds, not yet split, with all its problems; the arguments are those of `read_images`."""
    path = Path(source)
    pattern = _patient_pattern(patient_pattern)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder; wanted a CSV table, a folder of images, or a zip")
    if path.suffix.lower() == ".zip":
        path = unpack(path, extract_dir)
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise CohortError(source, ["wanted a CSV table, a folder of images, or a zip of one"])
        return _list_table(path, classes, multilabel, pattern)
    path = _innermost(path)
    if (path / "table.csv").is_file():
        return _list_table(path / "table.csv", classes, multilabel, pattern)
    if multilabel:
        raise CohortError(source, ["several labels an image want a table.csv with the columns image and label"])
    return _list_folders(source, path, classes, pattern)


def find_images(source: str | PathLike[str]) -> list[Item]:
    """2D images to be classified: the ``image`` column of a CSV table, all images below a folder, or one image.

    Args:
        source: a CSV file, a folder, or an image.

    Returns:
        a MONAI datalist: ``image`` (path), ``name`` (relative to the folder, or as the table has it).

    Raises:
        FileNotFoundError: no such file or folder.
        CohortError: nothing to classify in it.
    """
    path = Path(source)
    if (named := list_named(path, "a folder of images, or an image")) is not None:
        return named
    images = _images(path, list(_files(path)))
    if not images:
        raise CohortError(source, [f"no image in it: wanted {', '.join(IMAGES)}"])
    return [{"image": str(image), "name": image.relative_to(path).as_posix()} for image in images]


def _list_table(
    table: Path, classes: Sequence[str] | None, multilabel: bool, pattern: re.Pattern[str] | None
) -> Listing:
    """A table whose patients may be named by the pattern."""
    listing = list_table(table, classes, multilabel)
    if pattern is None:
        return listing
    if any(item["patient"] != item["name"] for item in listing.items):
        told = "the table's column 'patient' names the patients: drop the column or the patient_pattern"
        return replace(listing, problems=[*listing.problems, told])
    return replace(listing, problems=listing.problems + _name_patients(listing.items, pattern))


def _list_folders(
    source: str | PathLike[str], path: Path, classes: Sequence[str] | None, pattern: re.Pattern[str] | None
) -> Listing:
    """One folder for each class, or folders of the splits with such folders."""
    problems: list[str] = []
    parts: list[tuple[str, Path]] = [("", path)]
    if any(folder.name.lower() in SPLIT_NAMES for folder in _folders(path)):
        parts = [(folder.name, folder) for folder in _folders(path) if folder.name.lower() in SPLIT_NAMES]
        others = [folder.name for folder in _folders(path) if folder.name.lower() not in SPLIT_NAMES]
        problems += [f"folder {name!r} stands beside {parts[0][0]!r} but is no split" for name in others]
    names = sorted({folder.name for _, part in parts for folder in _folders(part)})
    if not names:
        wanted = "wanted a table.csv, one folder of images for each class, or train, validation and test with such"
        raise CohortError(source, [wanted])
    wanted_classes = names if classes is None else list(classes)
    problems += _unlike(wanted_classes, names)
    items: list[Item] = []
    files = list(_files(path))
    folder_of = {part / name: (split, k) for split, part in parts for k, name in enumerate(wanted_classes)}
    depth = 1 if parts[0][0] == "" else 2
    outside = []
    for image in _images(path, files):
        relative = image.relative_to(path)
        home = path.joinpath(*relative.parts[:depth])
        if len(relative.parts) <= depth:
            outside.append(relative.as_posix())
        elif home in folder_of:
            split, label = folder_of[home]
            item: Item = {"image": str(image), "name": relative.as_posix(), "label": label}
            items.append({**item, "split": split} if split else item)
    if outside:
        problems.append(f"{len(outside)} images lie outside of the class folders, such as {outside[0]}")
    problems += _name_patients(items, pattern)
    return Listing(source, items, tuple(wanted_classes), problems)


def _unlike(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Class folders that are missing, and folders that are no class."""
    by_case = {name.lower(): name for name in names}
    problems = []
    for name in classes:
        if name not in names:
            near = by_case.get(name.lower())
            problems.append(
                f"no folder for class {name!r}" + (f" (did you mean {near!r}?)" if near else did_you_mean(name, names))
            )
    return problems + [
        f"folder {name!r} is none of the classes {', '.join(classes)}" for name in names if name not in classes
    ]


def _patient_pattern(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient_pattern {pattern!r} is no regular expression: {error}") from error
    if not compiled.groups:
        raise ValueError(f"patient_pattern {pattern!r} has no group: put what names the patient into brackets")
    return compiled


def _name_patients(items: Sequence[Item], pattern: re.Pattern[str] | None) -> list[str]:
    """Give every item its patient; what is wrong with it."""
    nameless = []
    for item in items:
        found = pattern.search(item["name"]) if pattern else None
        item["patient"] = found[1] if found and found[1] else item["name"]
        if pattern and not (found and found[1]):
            nameless.append(item["name"])
    if not pattern or not nameless:
        return []
    told = f"{len(nameless)} of {len(items)} images, such as {nameless[0]}"
    return [f"patient_pattern {pattern.pattern!r} finds no patient in {told}"]


def _innermost(path: Path) -> Path:
    """Step into a folder that holds nothing but one folder with folders or a table in it."""
    folders = _folders(path)
    if len(folders) == 1 and folders[0].name.lower() not in SPLIT_NAMES and not (path / "table.csv").is_file():
        inner = folders[0]
        if _folders(inner) or (inner / "table.csv").is_file():
            return _innermost(inner)
    return path


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not _is_clutter(p))


def _files(path: Path) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not _is_clutter(entry):
            yield from _files(entry)
        elif entry.is_file() and not _is_clutter(entry):
            yield entry


def _images(path: Path, files: Sequence[Path]) -> list[Path]:
    """Those that are images; the others are named in the log."""
    others = Counter(file.suffix.lower() or "no suffix" for file in files if not file.name.lower().endswith(IMAGES))
    if others:
        told = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(others.items()))
        logger.warning("%s: %d files are no images and are left out: %s", path, others.total(), told)
    return [file for file in files if file.name.lower().endswith(IMAGES)]


def _is_clutter(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _CLUTTER
