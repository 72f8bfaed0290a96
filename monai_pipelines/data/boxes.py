"""Cohorts for detection: the images of a table or folder with the boxes of their lesions, split by patient."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from monai_pipelines.chains import did_you_mean
from monai_pipelines.data.box_files import BoxRow, BoxTable, is_uid, read_boxes
from monai_pipelines.data.box_scans import Series, image_size, join_slices, scan_grid, scan_series, slice_uids
from monai_pipelines.data.folder import compile_pattern, find_images, with_patients, with_patients_if_named
from monai_pipelines.data.split import Cohort, Item, Listing, split_sources
from monai_pipelines.data.table import find_scans, list_table, renamed
from monai_pipelines.errors import CohortError, ScanError
from monai_pipelines.model import class_names
from monai_pipelines.remote import Place, Source, as_place, local

logger = logging.getLogger(__name__)

NEIGHBORS = ("boxes.csv", "boxes.json", "boxes")
ROUNDING_PX = 1.0  # boxes may reach beyond the image by this


def read_detection_cohort(
    source: Source | None,
    boxes: Source | None = None,
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    *,
    one_class: str | None = None,
    space: str | None = None,
    patient_pattern: str | None = None,
    check_inside: bool = True,
    test_source: Source | None = None,
    test_boxes: Source | None = None,
    rename: Mapping[str, str] | None = None,
) -> Cohort:
    r"""Read images or scans with the boxes of their lesions, and split them by patient.

    Each item of the cohort has, beside those of `read_cohort`:

    - ``boxes`` (N, 2 d) float64, all minima before all maxima. 2D: (y_min, x_min, y_max, x_max), edges in pixels of the
      stored, upright image; 3D: (x_min, y_min, z_min, x_max, y_max, z_max), RAS mm. An image without a lesion, listed
      or not, has (0, 2 d);
    - ``box_labels`` (N,) int64, class indices;
    - ``box_ignore`` (N,) bool: findings that count neither as lesions to be found nor as background;
    - ``label``: which classes the image has, without those to be ignored, as for multilabel classification. Patients
      are drawn by their rarest class, those without a lesion separately.

    Boxes name their image as the table does, or by its file name with or without suffix; those of Pascal VOC files
    named after a SOPInstanceUID lie on slices of DICOM scans, and are joined to lesions (`join_slices`); slices of
    other series of the same patient are left out.

    Args:
        source: a CSV table (``image``, optionally ``patient`` and ``split``, see `read_cohort`), or a folder with a
            ``table.csv``, or with images or scans.
        boxes: file or folder, see `read_boxes`; None: ``boxes.csv``, ``boxes.json`` or the folder ``boxes`` beside the
            table.
        classes: class names by index; None takes the names in the boxes.
        fractions, seed: of `read_cohort`.
        one_class: name of one class for all boxes, whatever theirs.
        space: RAS or LPS, of a CSV in mm without the column ``space``.
        patient_pattern: of `read_images`, for a source that does not name the patients.
        check_inside: read the headers of images with boxes, and check that these lie inside: the whole box in 2D,
            its center in 3D.
        test_source, rename: of `read_cohort`.
        test_boxes: of ``test_source``, as ``boxes`` are of ``source``; without a ``source``, ``boxes`` are, too.

    Raises:
        CohortError: lists all problems at once: those of `read_cohort` and `read_boxes`, a box of an unknown image or
            class, outside its image, inverted or of size 0, an image of another size than the boxes' file says.

    Example:
        >>> import tempfile
        >>> from monai_pipelines.phantoms import write_lung_ct_cohort
        >>> table = write_lung_ct_cohort(tempfile.mkdtemp(), 6, matrix=32, slice_mm=20, num_workers=1, progress=False)
        >>> cohort = read_detection_cohort(table, one_class="lesion", check_inside=False)
        >>> cohort.classes, {item["boxes"].shape[1] for item in cohort.train}
        (('lesion',), {6})
    """
    if source is None:
        test_boxes = test_boxes or boxes

    def listed(source: Source, external: bool) -> Listing:
        file, place = test_boxes if external else boxes, as_place(source)
        folder = place if place.is_dir() else place.parent
        found = read_boxes(_neighbor(folder) if file is None else file, space)
        flat = found.dims == 2 and not any(is_uid(row.image) for row in found.rows)
        with_them = with_patients_if_named if external else with_patients
        listing = with_them(_listing(source, flat), compile_pattern(patient_pattern))
        names = class_names([one_class] if one_class else classes or [*dict.fromkeys(renamed(found.classes, rename))])
        meant = renamed([row.name for row in found.rows], rename)
        rows = [row._replace(name=one_class or name) for row, name in zip(found.rows, meant, strict=True)]
        return _with_boxes(listing, found, rows, names, check_inside)

    return split_sources(listed, source, test_source, fractions, seed)


def _with_boxes(
    listing: Listing, found: BoxTable, rows: Sequence[BoxRow], names: tuple[str, ...], check_inside: bool
) -> Listing:
    """A listing whose items have their boxes, with all problems of these."""
    problems = [*listing.problems, *found.problems, *_class_problems(rows, names)]
    images = _Images(listing.items)
    dims, mine, unknown = _assign(found, rows, images)
    problems += unknown
    if check_inside:
        for index in track(sorted(mine), "checking boxes", disable=not mine):
            problems += _outside(listing.items[index], mine[index], dims, found)
    items = [{**item, **_boxes(mine.get(index, []), names, dims)} for index, item in enumerate(listing.items)]
    return replace(listing, items=items, classes=names, problems=problems)


def read_image_boxes(image: Source, boxes: Source) -> NDArray[np.float64]:
    """The boxes of one image or scan, by its name, from a file with those of many.

    Args:
        image: file or folder; boxes name it by the end of its path, with or without suffix, or its slices by
            SOPInstanceUID.
        boxes: file or folder, see `read_boxes`.

    Returns:
        (N, 2 d) in the coordinates of the source, see `read_detection_cohort`; (0, 2 d) if the file lists the image
        without a box.

    Raises:
        CohortError: the file names no such image, several that may be meant, or has problems.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "boxes.csv"
        >>> _ = file.write_text("image,x,y,width,height\\na.png,10,20,4,5\\nb.png,,,,\\n")
        >>> read_image_boxes("scans/a.png", file).tolist(), read_image_boxes("scans/b.png", file).shape
        ([[20.0, 10.0, 25.0, 14.0]], (0, 4))
    """
    path, found = as_place(image), read_boxes(boxes)
    if found.problems:
        raise CohortError(boxes, found.problems)
    listed = dict.fromkeys([*(row.image for row in found.rows), *(name for _, name in found.without)])
    agree = {name: _num_common(name, path) for name in listed}
    names, dims = [name for name in listed if agree[name] and agree[name] == max(agree.values())], found.dims
    rows = [row for row in found.rows if row.image in names]
    if len(names) > 1:
        raise CohortError(boxes, [f"{path} may be {_some(names)}"])
    if not names and any(map(is_uid, listed)) and (series := _series(path)) is not None:
        uids = slice_uids(series)
        names, dims = [uid for uid in uids if uid in listed], 3
        rows = join_slices(series, [row for row in found.rows if row.image in names])
    if not names:
        near = did_you_mean(path.name, [*listed])
        raise CohortError(boxes, [f"it does not name {path}{near}; list an image without a box by a row of its name"])
    return np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 2 * dims)


def _series(image: Source) -> Series | None:
    """Of a scan; None if it is not DICOM, or cannot be read."""
    with suppress(ScanError), local(image) as path:
        return scan_series(path)
    return None


def _num_common(name: str, path: Place) -> int:
    """How many parts of a name and a path agree, from the end; 0 if the last does not, with or without suffix."""
    *folders, last = PurePosixPath(name.replace("\\", "/")).parts or ("",)
    if last not in _short_names(path.name):
        return 0
    parts = path.absolute().parts if isinstance(path, Path) else str(path).split("/")
    pairs = zip(reversed(folders), reversed(parts[:-1]), strict=False)
    return 1 + len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _neighbor(folder: Place) -> Place:
    for name in NEIGHBORS:
        if (folder / name).exists():
            return folder / name
    raise CohortError(folder, [f"no boxes: wanted {', '.join(NEIGHBORS)} beside the table, or name another file"])


def _listing(source: Source, flat: bool) -> Listing:
    path = as_place(source)
    if path.is_dir() and (path / "table.csv").is_file():
        path = path / "table.csv"
    if path.suffix.lower() == ".csv":
        return list_table(path, labeled=False)
    items = find_images(path) if flat else find_scans(path)
    return Listing(source, [{**item, "patient": item["name"]} for item in items], (), [])


class _Images:
    """Images by all the names that a box may give them."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.exact = {item["name"]: index for index, item in enumerate(items)}
        self.others: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            for name in _short_names(item["name"]):
                self.others.setdefault(name, []).append(index)

    def find(self, image: str) -> list[int]:
        """Indices of the images that are meant: one, if the name is right."""
        image = image.replace("\\", "/")
        if image in self.exact:
            return [self.exact[image]]
        return self.others.get(image) or self.others.get(PurePosixPath(image).name, [])


def _short_names(name: str) -> set[str]:
    file = PurePosixPath(name.replace("\\", "/"))
    return {file.name, file.stem, file.name.removesuffix(".nii.gz")}


def _assign(found: BoxTable, rows: Sequence[BoxRow], images: _Images) -> tuple[int, dict[int, list[BoxRow]], list[str]]:
    """Dimensions, boxes by index of their image, and problems: one for each image that is not one of the source's."""
    mine: dict[int, list[BoxRow]] = {}
    on_slices: dict[str, list[BoxRow]] = {}
    lost: dict[str, list[str]] = {}
    problems: dict[str, None] = {}
    for row in rows:
        indices = images.find(row.image)
        if len(indices) > 1:
            problems[f"{row.where}: {row.image} may be {_some(images.items[i]['name'] for i in indices)}"] = None
        elif indices:
            mine.setdefault(indices[0], []).append(row)
        elif is_uid(row.image):
            on_slices.setdefault(row.image, []).append(row)
        else:
            lost.setdefault(row.image, []).append(row.where)
    for where, image in found.without:
        if not is_uid(image) and not images.find(image):
            lost.setdefault(image, []).append(where)
    if on_slices and mine:
        wheres = next(iter(mine.values()))[0].where, next(iter(on_slices.values()))[0].where
        problems[f"{wheres[0]} lies in an image, {wheres[1]} on a slice of a scan; use one file of boxes for each"] = (
            None
        )
    for uid in _place_slices(on_slices, images.items, mine):
        lost.setdefault(uid, []).extend(row.where for row in on_slices[uid])
    for image, places in lost.items():
        near = did_you_mean(image, images.exact)
        problems[f"{_places(places)}: no image of the source is named {image}{near}"] = None
    return 3 if on_slices else found.dims, mine, list(problems)


def _place_slices(
    on_slices: Mapping[str, Sequence[BoxRow]], items: Sequence[Item], mine: dict[int, list[BoxRow]]
) -> list[str]:
    """Add the boxes on slices to those of their scans; returns slices of scans that are not there.

    Files of one folder are those of one patient: if some of them are of series that are not in the source, they are
    counted in the log.
    """
    missing = dict.fromkeys(on_slices)
    for index in track(range(len(items)), "finding slices", disable=not on_slices) if on_slices else ():
        series = _series(items[index]["image"])
        if series is None:
            continue
        uids = [uid for uid in slice_uids(series) if uid in on_slices]
        if uids:
            mine[index] = join_slices(series, [row for uid in uids for row in on_slices[uid]])
        for uid in uids:
            missing.pop(uid, None)
    known = {_folder(on_slices[uid][0]) for uid in on_slices if uid not in missing}
    others = [uid for uid in missing if _folder(on_slices[uid][0]) in known]
    if others:
        logger.warning("boxes on slices of series that are not in the source are left out: %d", len(others))
    return [uid for uid in missing if uid not in set(others)]


def _folder(row: BoxRow) -> str:
    return str(PurePosixPath(row.where).parent)


def _places(places: Sequence[str]) -> str:
    return f"{places[0]} and {len(places) - 1} more" if len(places) > 1 else places[0]


def _some(names: Iterable[str]) -> str:
    return " or ".join(list(names)[:3]) + "; name it as the table does"


def _class_problems(rows: Sequence[BoxRow], names: Sequence[str]) -> list[str]:
    """One for each class that is unknown."""
    unknown: dict[str, list[str]] = {}
    for row in rows:
        if row.name not in names:
            unknown.setdefault(row.name, []).append(row.where)
    return [
        f"{_places(places)}: unknown class {name!r}{did_you_mean(name, names)}, wanted one of {', '.join(names)}"
        for name, places in unknown.items()
    ]


def _outside(item: Item, rows: Sequence[BoxRow], dims: int, found: BoxTable) -> list[str]:
    """Problems of boxes that do not lie in their image; none where it cannot be read, which its chain reports."""
    problems: list[str] = []
    outside: Any
    boxes = np.array([row.box for row in rows])
    size = grid = None
    with suppress(ScanError), local(item["image"]) as path:
        size, grid = (image_size(path), None) if dims == 2 else (None, scan_grid(path))
    if dims == 2:
        if size is None:
            return []
        said = found.sizes.get(rows[0].image, size)
        if said != size:
            problems.append(f"{item['name']}: {_px(size)}, but boxes were drawn on {_px(said)}; use that image")
        outside = np.concatenate([-boxes[:, :2], boxes[:, 2:] - size], axis=1) > ROUNDING_PX
        extent = _px(size)
    else:
        if grid is None:
            return []
        affine, shape = grid
        voxels = nib.affines.apply_affine(np.linalg.inv(affine), (boxes[:, :3] + boxes[:, 3:]) / 2)
        middle = (np.array(shape) - 1) / 2
        outside = np.abs(voxels - middle) > middle + 0.5
        ends = nib.affines.apply_affine(affine, np.stack(np.meshgrid(*((0, n - 1) for n in shape)), -1).reshape(-1, 3))
        low, high = ends.min(axis=0), ends.max(axis=0)
        extent = "RAS mm " + ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
    hint = "LPS and RAS mixed up?" if dims == 3 else "drawn on another size?"
    return problems + [
        f"{row.where}: {item['name']}: box outside the image ({', '.join(f'{v:g}' for v in np.round(row.box, 1))}; the "
        f"image: {extent}); {hint}"
        for row, out in zip(rows, outside.any(axis=1), strict=True)
        if out
    ]


def _px(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"


def _boxes(rows: Sequence[BoxRow], names: Sequence[str], dims: int) -> Item:
    known = [row for row in rows if row.name in names]
    labels = [names.index(row.name) for row in known]
    counted = {label for label, row in zip(labels, known, strict=True) if not row.ignore}
    return {
        "label": [float(k in counted) for k in range(len(names))],
        "boxes": np.array([row.box for row in known], dtype=np.float64).reshape(-1, 2 * dims),
        "box_labels": np.array(labels, dtype=np.int64),
        "box_ignore": np.array([row.ignore for row in known], dtype=bool),
    }
