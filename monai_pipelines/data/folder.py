"""Labeled 2D images in folders, zips of folders, or tables."""

from __future__ import annotations

import hashlib
import logging
import lzma
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import track

from monai_pipelines.chains import did_you_mean
from monai_pipelines.data.split import SPLIT_NAMES, Cohort, Item, Listing, split_sources
from monai_pipelines.data.table import classes_hint, find_inputs, list_table, renamed, table_in
from monai_pipelines.errors import CohortError
from monai_pipelines.model import class_names
from monai_pipelines.remote import Place, Remote, Source, as_place, files_below
from monai_pipelines.walk import is_clutter

logger = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".dcm", ".dicom")
MAX_RATIO = 200  # images hardly shrink in a zip, zip bombs do
MIN_BOMB_BYTES = 1 << 30
_NOT_IN_FILE_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')


def read_images(
    source: Source | None,
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    patient_pattern: str | None = None,
    multilabel: bool = False,
    extract_dir: str | PathLike[str] | None = None,
    test_source: Source | None = None,
    rename: Mapping[str, str] | None = None,
) -> Cohort:
    r"""Read labeled 2D images and split them by patient.

    The source is one of

    - a CSV table, or a folder with a ``table.csv``, also at a URL: see `read_cohort`;
    - a folder with one folder of images per class;
    - a folder with ``train``, ``test`` and optionally ``validation`` (``val``), each with one folder per class;
    - a zip of such a folder, unpacked once (`unpack`).

    A folder that contains only one such folder is entered. Files that are not images are listed in the log.

    Args:
        source: the table, folder or zip; None: only ``test_source``.
        classes: class names by index; None takes the names of the folders, sorted.
        fractions, seed, multilabel: of `read_cohort`; multilabel images need a table.
        patient_pattern: regular expression whose first group is the patient, such as ``(person\d+)_``, searched in a
            file's path below the source or in the table's ``image``; not for a table that names the patients. None:
            every image is a different patient.
        extract_dir: where a zip is unpacked; None: beside it.
        test_source, rename: of `read_cohort`. Of ``test_source`` a class may be missing, and where its table names the
            patients, or the pattern finds none, the pattern is not used.

    Raises:
        CohortError: lists all problems at once: those of `read_cohort`, class folders that are missing or unknown,
            images outside the class folders or without a patient.
        ValueError: a ``patient_pattern`` that is not a regular expression with a group.
    """

    def listed(source: Source, external: bool) -> Listing:
        if not external:
            return list_images(source, classes, patient_pattern, multilabel, extract_dir, rename)
        listing = list_images(source, classes, None, multilabel, extract_dir, rename, complete=False)
        return with_patients_if_named(listing, compile_pattern(patient_pattern))

    return split_sources(listed, source, test_source, fractions, seed)


def list_images(
    source: Source,
    classes: Sequence[str] | None = None,
    patient_pattern: str | None = None,
    multilabel: bool = False,
    extract_dir: str | PathLike[str] | None = None,
    rename: Mapping[str, str] | None = None,
    complete: bool = True,
) -> Listing:
    """The images of a source, not yet split, with all its problems.

    Args:
        source, classes, patient_pattern, multilabel, extract_dir, rename: of `read_images`.
        complete: whether each class must have a folder.
    """
    path = as_place(source)
    pattern = compile_pattern(patient_pattern)
    if isinstance(path, Remote):
        if path.suffix.lower() == ".zip":
            raise CohortError(path, ["wanted a table at a URL, got a zip; download it, and name the file"])
        return with_patients(list_table(table_in(path), classes, multilabel, rename=rename), pattern)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder; wanted a CSV table, a folder of images, or a zip")
    if path.suffix.lower() == ".zip":
        path = unpack(path, extract_dir)
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise CohortError(source, ["wanted a CSV table, a folder of images, or a zip of one"])
        return with_patients(list_table(path, classes, multilabel, rename=rename), pattern)
    path = _innermost(path)
    if (path / "table.csv").is_file():
        return with_patients(list_table(path / "table.csv", classes, multilabel, rename=rename), pattern)
    if multilabel:
        raise CohortError(source, ["multilabel images want a table.csv with the columns image and label"])
    return _list_folders(source, path, classes, pattern, rename, complete)


def find_images(source: Source) -> list[Item]:
    """2D images to be classified: a CSV table's ``image``, all images below a folder, or one; see `find_inputs`."""
    return find_inputs(source, "image", ", ".join(IMAGES), _images)


def _list_folders(
    source: Source,
    path: Path,
    classes: Sequence[str] | None,
    pattern: re.Pattern[str] | None,
    rename: Mapping[str, str] | None,
    complete: bool,
) -> Listing:
    """One folder per class, or folders of the splits that contain such folders."""
    split_folders = [folder for folder in _folders(path) if folder.name.lower() in SPLIT_NAMES]
    problems = [
        f"folder {folder.name!r} is next to {split_folders[0].name!r} but is not a split"
        for folder in _folders(path)
        if split_folders and folder not in split_folders
    ]
    names = sorted({folder.name for part in split_folders or [path] for folder in _folders(part)})
    if not names:
        wanted = "wanted a table.csv, one folder of images per class, or train, validation and test with such folders"
        raise CohortError(source, [wanted])
    classes = sorted({*renamed(names, rename)}) if classes is None else class_names(classes)
    problems += _folder_problems(classes, names, rename, complete)
    items: list[Item] = []
    outside = []
    for image in _images(path):
        relative = image.relative_to(path)
        *folders, _ = relative.parts
        split = folders.pop(0) if split_folders and folders else ""
        if not folders:
            outside.append(relative.as_posix())
        elif (name := renamed(folders[:1], rename)[0]) in classes and (not split or split.lower() in SPLIT_NAMES):
            item: Item = {"image": str(image), "name": relative.as_posix(), "label": classes.index(name)}
            items.append({**item, "split": split} if split else item)
    if outside:
        problems.append(f"images outside the class folders: {len(outside)}, such as {outside[0]}")
    problems += _name_patients(items, pattern)
    return Listing(source, items, tuple(classes), problems)


def _folder_problems(
    classes: Sequence[str], names: Sequence[str], rename: Mapping[str, str] | None, complete: bool
) -> list[str]:
    """Classes without a folder, if each must have one, and folders without a class."""
    by_case = {name.lower(): name for name in names}
    problems, meant = [], renamed(names, rename)
    for name in classes:
        if complete and name not in meant:
            near = by_case.get(name.lower())
            hint = f" (did you mean {near!r}?)" if near else did_you_mean(name, names)
            problems.append(f"no folder for class {name!r}{hint}")
    strange = [name for name, class_name in zip(names, meant, strict=True) if class_name not in classes]
    problems += [f"folder {name!r} is none of the classes {', '.join(classes)}" for name in strange]
    return problems + (classes_hint(names) if problems and strange else [])


def compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """A ``patient_pattern``; ValueError unless it is a regular expression with a group."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient_pattern {pattern!r} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise ValueError(
            f"patient_pattern {pattern!r} has no group: put the part that names the patient in parentheses"
        )
    return compiled


def with_patients(listing: Listing, pattern: re.Pattern[str] | None) -> Listing:
    """A listing whose patients are found in the names of its items, unless its table names them."""
    if pattern is None:
        return listing
    named = any(item["patient"] != item["name"] for item in listing.items)
    problem = "the table's column 'patient' names the patients: drop the column or the patient_pattern"
    problems = [problem] if named else _name_patients(listing.items, pattern)
    return replace(listing, problems=listing.problems + problems)


def with_patients_if_named(listing: Listing, pattern: re.Pattern[str] | None) -> Listing:
    """A listing of other data than those of the pattern: it may name the patients, or have none in its names."""
    if pattern is None or any(item["patient"] != item["name"] for item in listing.items):
        return listing
    if not any(pattern.search(item["name"]) for item in listing.items):
        text = "%s: patient_pattern %r finds no patient in it: every image counts as a different one"
        logger.warning(text, listing.source, pattern.pattern)
        return listing
    return with_patients(listing, pattern)


def _name_patients(items: Sequence[Item], pattern: re.Pattern[str] | None) -> list[str]:
    """Set the patient of every item; returns problems."""
    nameless = []
    for item in items:
        match = pattern.search(item["name"]) if pattern else None
        item["patient"] = match[1] if match and match[1] else item["name"]
        if not (match and match[1]):
            nameless.append(item["name"])
    if not pattern or not nameless:
        return []
    images = f"{len(nameless)} of {len(items)} images, such as {nameless[0]}"
    return [f"patient_pattern {pattern.pattern!r} finds no patient in {images}; null: a patient for each image"]


def _innermost(path: Path) -> Path:
    """Enter a folder whose only folder contains folders or a table."""
    match _folders(path):
        case [inner] if inner.name.lower() not in SPLIT_NAMES and not (path / "table.csv").is_file():
            if _folders(inner) or (inner / "table.csv").is_file():
                return _innermost(inner)
    return path


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not is_clutter(p.name))


def _images(path: Place) -> list[Any]:
    """The images below a folder, by suffix, or by content where they are DICOM; others are listed in the log.

    At a URL by suffix alone.
    """
    images: list[Any] = []
    others, num_unnamed = Counter[str](), 0
    for file in files_below(path):
        if isinstance(file, Remote):
            if file.name.lower().endswith(IMAGES):
                images.append(file)
        elif not file.is_file():
            others["broken link"] += 1
        elif (named := file.name.lower().endswith(IMAGES)) or _is_dicom(file):
            images.append(file)
            num_unnamed += not named
        else:
            others[file.suffix.lower() or "no suffix"] += 1
    if num_unnamed:
        logger.info("%s: files that are DICOM by their content: %d", path, num_unnamed)
    if others:
        counts = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(others.items()))
        logger.warning("%s: files that are not images are ignored: %s", path, counts)
    return images


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM" and file.name.upper() != "DICOMDIR"


def unpack(archive: str | PathLike[str], directory: str | PathLike[str] | None = None) -> Path:
    """Unpack a zip once into a new folder, completely or not at all; returns the folder.

    The folder is named after the archive and a hash of its name, size and time, so a changed archive is unpacked again.
    Archives with links, absolute paths or ``..`` are refused, as are encrypted ones and those that need more space than
    the disk has or far more than images can. Characters that are not allowed in file names become ``_``; hidden files
    and those added by macOS are ignored.

    Args:
        archive: the zip.
        directory: of the new folder; None: that of the archive.

    Raises:
        CohortError: lists all problems of the archive.
        OSError: the folder cannot be written.
    """
    archive = Path(archive)
    parent = archive.parent if directory is None else Path(directory)
    status = archive.stat()
    key = hashlib.sha256(repr((archive.name, status.st_size, status.st_mtime_ns)).encode()).hexdigest()[:8]
    folder = parent / f"{archive.stem}-{key}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            targets = _targets(archive, opened, shutil.disk_usage(parent).free)
            with tempfile.TemporaryDirectory(dir=parent, prefix=f".{folder.name}.") as temporary:
                whole = Path(temporary) / folder.name
                for name, entry in track(targets.items(), f"unpacking {archive.name}"):
                    (whole / name).parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(entry) as source, (whole / name).open("xb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
                try:
                    whole.rename(folder)
                except OSError:
                    if not folder.is_dir():  # another process was faster
                        raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError, lzma.LZMAError, zlib.error) as error:
        raise CohortError(
            archive, [f"not a complete zip that can be unpacked ({error}); copy or download it again"]
        ) from error
    return folder


def _targets(archive: Path, opened: zipfile.ZipFile, free_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by file name in the new folder."""
    targets: dict[str, zipfile.ZipInfo] = {}
    problems: list[str] = []
    for entry in opened.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        path = entry.filename.replace("\\", "/")
        parts = PurePosixPath(path).parts
        hidden = [part for part in parts if part.startswith(".") and part != ".."]
        if path.endswith("/") or hidden or "__MACOSX" in parts:
            continue
        if not parts or parts[0] == "/" or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
            problems.append(f"{entry.filename!r} points outside the archive")
        elif kind not in (0, stat.S_IFREG):
            problems.append(f"{entry.filename!r} is a link or device, not a file")
        elif entry.flag_bits & 0x1:
            problems.append(f"{entry.filename!r} is encrypted; unpack the archive yourself and use the folder")
        else:
            name = "/".join(_NOT_IN_FILE_NAMES.sub("_", part) for part in parts)
            if name in targets:
                problems.append(f"{name!r} is in it twice")
            targets[name] = entry
    packed = sum(entry.compress_size for entry in targets.values())
    unpacked = sum(entry.file_size for entry in targets.values())
    if unpacked > MIN_BOMB_BYTES and unpacked > MAX_RATIO * packed:
        problems.append(f"{packed / 1e6:.1f} MB would unpack to {unpacked / 1e9:.1f} GB: images never shrink that much")
    if unpacked > free_bytes:
        problems.append(
            f"wanted {unpacked / 1e9:.1f} GB of disk, got {free_bytes / 1e9:.1f} GB free; choose extract_dir"
        )
    if not targets:
        problems.append("no file in it")
    if problems:
        raise CohortError(archive, problems)
    return targets
