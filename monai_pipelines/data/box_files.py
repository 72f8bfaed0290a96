"""Boxes in files: CSV tables, COCO JSON and Pascal VOC XML, brought to one form, with all their problems."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from monai_pipelines.data.rows import read_rows
from monai_pipelines.errors import CohortError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import Source, as_place, local
from monai_pipelines.walk import walk_files

LESION = "lesion"
SPACES = ("RAS", "LPS")
FORMS = {
    "corners": ("x_min", "y_min", "x_max", "y_max"),
    "size": ("x", "y", "width", "height"),
    "center_mm": ("x_mm", "y_mm", "z_mm", "diameter_mm"),
    "corners_mm": ("x_min_mm", "y_min_mm", "z_min_mm", "x_max_mm", "y_max_mm", "z_max_mm"),
}
LUNA16 = {"seriesuid": "image", "coordx": "x_mm", "coordy": "y_mm", "coordz": "z_mm"}  # LPS
KNOWN = ("image", "class", "ignore", "space", *(column for form in FORMS.values() for column in form))
MAX_XML_BYTES = 2**20
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no")
_UID = re.compile(r"\d+(\.\d+){4,}")


class BoxRow(NamedTuple):
    """A finding.

    Attributes:
        where: of it in the file, for messages.
        image: as the file names it.
        name: of its class.
        box: 2D: (y_min, x_min, y_max, x_max), edges of pixels; 3D: (x_min, ..., z_max), RAS mm.
        ignore: whether it counts neither as a lesion to be found nor as background.
    """

    where: str
    image: str
    name: str
    box: tuple[float, ...]
    ignore: bool = False


@dataclass
class BoxTable:
    """The content of a file of boxes.

    Attributes:
        source: the file or folder.
        dims: 2, or 3.
        rows: the boxes without a problem.
        without: where and name of each image that is listed without a box.
        classes: names, in the order of the file, or sorted.
        sizes: (height, width) of images, where the file has them.
        problems: one line each.
        seen: where a box of a class in an image was found first.
    """

    source: Path
    dims: Literal[2, 3]
    rows: list[BoxRow] = field(default_factory=list)
    without: list[tuple[str, str]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seen: dict[tuple[str, str, tuple[float, ...]], str] = field(default_factory=dict)

    def add(self, where: str, image: str, name: str, box: Sequence[float], ignore: bool = False) -> None:
        """A row, or the problems of its box."""
        if faults := _faults(box):
            self.problems += [f"{where}: {image}: {fault}" for fault in faults]
            return
        row = BoxRow(where, image, name, tuple(box), ignore)
        first = self.seen.setdefault(row[1:4], where)
        if first != where:
            self.problems.append(f"{where}: {image}: the same box as in {first}; remove one")
        else:
            self.rows.append(row)


def read_boxes(source: Source, space: str | None = None) -> BoxTable:
    """Read boxes from a file of any of the known forms.

    - CSV: ``image``, ``class`` (optional: all are "lesion"), ``ignore`` (optional: 1, true or yes) and either edges in
      pixels, ``x_min, y_min, x_max, y_max`` or ``x, y, width, height``, or world mm, ``x_mm, y_mm, z_mm, diameter_mm``
      or ``x_min_mm, y_min_mm, z_min_mm, x_max_mm, y_max_mm, z_max_mm``, with ``space`` (RAS or LPS). 0 is the outer
      edge of the first pixel. A row without numbers names an image without a lesion. Or as LUNA16 has them, in LPS:
      ``seriesuid, coordX, coordY, coordZ, diameter_mm``.
    - COCO JSON (``.json``): ``bbox`` is x, y, width, height; ``iscrowd`` means ignore.
    - Pascal VOC: an ``.xml``, or a folder of them, one for each image, or one for each slice of DICOM scans, named
      after its SOPInstanceUID. Its pixels count from 1 and ``xmax`` belongs to the box; ``difficult`` means ignore.

    Args:
        source: file or folder, or its URL.
        space: of a CSV in mm that has no column ``space``.

    Raises:
        CohortError: no such file, or none of the known forms. Other problems are in ``problems``.
        ValueError: another ``space`` than RAS or LPS.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "boxes.csv"
        >>> _ = file.write_text("image,class,x,y,width,height\\na.png,nodule,10,20,4,5\\n")
        >>> read_boxes(file).rows
        [BoxRow(where='boxes.csv line 2', image='a.png', name='nodule', box=(20.0, 10.0, 25.0, 14.0), ignore=False)]
    """
    place = as_place(source)
    if space not in (None, *SPACES):
        raise ValueError(f"read_boxes: space must be RAS or LPS, got {space!r}")
    if not place.exists():
        raise CohortError(place, ["no such file or folder; wanted boxes as CSV, COCO JSON or Pascal VOC XML"])
    with local(place) as path:
        return _read(path, space)


def _read(path: Path, space: str | None) -> BoxTable:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".xml":
        return _read_voc(path)
    if suffix == ".json":
        return _read_coco(path)
    if suffix == ".csv":
        return _read_csv(path, space)
    raise CohortError(path, ["wanted boxes as CSV, COCO JSON, or Pascal VOC XML (a file or a folder of them)"])


def is_uid(image: str) -> bool:
    """Whether an image is named by a DICOM UID."""
    return _UID.fullmatch(image) is not None


# ---- CSV


def _read_csv(path: Path, space: str | None) -> BoxTable:
    rows = read_rows(path, needed=(), known=(*KNOWN, *LUNA16))
    if "seriesuid" in rows[0]:
        rows, space = [{LUNA16.get(column, column): value for column, value in row.items()} for row in rows], "LPS"
    elif "image" not in rows[0]:
        read_rows(path, needed=("image",), known=KNOWN)  # raises, with the column that may be meant
    columns = rows[0].keys()
    forms = [name for name, form in FORMS.items() if columns >= set(form)]
    if len(forms) != 1:
        wanted = " or ".join(", ".join(form) for form in FORMS.values())
        got = f"more than one form of box ({', '.join(forms)}): drop one" if forms else "no box"
        raise CohortError(path, [f"wanted the columns {wanted}; got {got}; the columns are {', '.join(columns)}"])
    world = forms[0].endswith("_mm")
    if world and space is None and "space" not in columns:
        raise CohortError(
            path, ["boxes in mm without their space: add a column 'space' with RAS or LPS, or name it with space="]
        )
    table = BoxTable(path, 3 if world else 2)
    for row in rows:
        where, image = f"{path.name} line {row['line']}", row["image"].strip()
        texts = [row[column].strip() for column in FORMS[forms[0]]]
        faults = [] if image else ["no image"]
        ignore = row.get("ignore", "").strip().lower()
        if ignore not in (*_YES, *_NO):
            faults.append(f"ignore: wanted 1 or 0, got {ignore!r}")
        name = row.get("class", LESION).strip()
        if not any(texts) and not faults:
            table.without.append((where, image))
            continue
        if not name:
            faults.append("no class")
        numbers = [_number(text) for text in texts]
        for column, text, number in zip(FORMS[forms[0]], texts, numbers, strict=True):
            if number is None:
                faults.append(f"{column}: wanted a number, got {text!r}")
        lies_in = (row.get("space", "").strip().upper() or space) if world else "RAS"
        if lies_in not in SPACES:
            faults.append(f"space: wanted RAS or LPS, got {row.get('space', '').strip()!r}")
        if faults:
            table.problems += [f"{where}: {image}: {fault}" if image else f"{where}: {fault}" for fault in faults]
            continue
        box = _box(forms[0], [number for number in numbers if number is not None], lies_in == "LPS")
        table.add(where, image, name, box, ignore in _YES)
    table.classes = sorted({row.name for row in table.rows})
    return table


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _box(form: str, numbers: list[float], lps: bool) -> list[float]:
    """All minima, then all maxima, in the order of the axes, RAS."""
    if form == "corners":
        x_min, y_min, x_max, y_max = numbers
        return [y_min, x_min, y_max, x_max]
    if form == "size":
        x, y, width, height = numbers
        return [y, x, y + height, x + width]
    if form == "center_mm":
        *center, diameter = numbers
        numbers = [c + sign * diameter / 2 for sign in (-1, 1) for c in center]
    if lps:
        x_min, y_min, z_min, x_max, y_max, z_max = numbers
        return [-x_max, -y_max, z_min, -x_min, -y_min, z_max]
    return numbers


def _faults(box: Sequence[float]) -> list[str]:
    dims = len(box) // 2
    axes = "yx" if dims == 2 else "xyz"
    faults = []
    for axis, low, high in zip(axes, box[:dims], box[dims:], strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            faults.append(f"{axis} is not finite")
        elif high == low:
            faults.append(f"a box of size 0 in {axis} (at {low:g})")
        elif high < low:
            faults.append(f"inverted in {axis}: from {low:g} to {high:g}; swap them")
    return faults


# ---- COCO


def _read_coco(path: Path) -> BoxTable:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CohortError(path, [f"not JSON ({failure(error)}); export it again"]) from None
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise CohortError(path, [f"wanted COCO: an object with the lists {', '.join(parts)}"])
    table = BoxTable(path, 2)
    images = _by_id(table, "image", content["images"], "file_name")
    categories = _by_id(table, "category", content["categories"], "name")
    table.classes = list(dict.fromkeys(categories.values()))
    for entry in content["images"]:
        if isinstance(entry, dict) and all(isinstance(entry.get(side), int) for side in ("height", "width")):
            table.sizes[images.get(entry.get("id"), "")] = (entry["height"], entry["width"])
    boxed = set()
    for number, entry in enumerate(content["annotations"]):
        one = entry if isinstance(entry, dict) else {}
        where = f"{path.name} annotation {one.get('id', f'no. {number}')}"
        box, image, name = one.get("bbox"), images.get(one.get("image_id")), categories.get(one.get("category_id"))
        faults = []
        if image is None:
            faults.append(f"image_id {one.get('image_id')!r} is in no image")
        if name is None:
            faults.append(f"category_id {one.get('category_id')!r} is in no category")
        if not _are_numbers(box):
            faults.append("bbox: wanted four numbers x, y, width, height")
        if faults or image is None or name is None or not isinstance(box, list):
            table.problems += [f"{where}: {fault}" for fault in faults]
            continue
        boxed.add(image)
        table.add(where, image, name, _box("size", [float(value) for value in box], False), bool(one.get("iscrowd")))
    table.without = [(f"{path.name} images", image) for image in images.values() if image not in boxed]
    return table


def _by_id(table: BoxTable, kind: str, entries: Iterable[Any], key: str) -> dict[Any, str]:
    named: dict[Any, str] = {}
    for number, entry in enumerate(entries):
        identity = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(identity, int | str) or not isinstance(entry.get(key), str):
            table.problems.append(f"{kind} no. {number}: wanted an id and a {key}")
        elif identity in named:
            table.problems.append(f"{kind} {identity!r} is in it twice")
        else:
            named[identity] = entry[key]
    return named


def _are_numbers(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)


# ---- Pascal VOC


def _read_voc(path: Path) -> BoxTable:
    files = [file for file in walk_files(path) if file.suffix.lower() == ".xml"] if path.is_dir() else [path]
    if not files:
        raise CohortError(path, ["no .xml in the folder; wanted Pascal VOC, one file for each image"])
    table = BoxTable(path, 2)
    for file in files:
        where = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            _read_xml(table, file, where)
        except ValueError as error:
            table.problems.append(f"{where}: {error}")
    repeated = [name for name, count in Counter(file.stem for file in files).items() if count > 1]
    table.problems += [f"{name}.xml: there are several; keep one for each image" for name in repeated]
    table.classes = sorted({row.name for row in table.rows})
    return table


def _read_xml(table: BoxTable, file: Path, where: str) -> None:
    """Add a file's objects; ValueError if it cannot be used at all."""
    if file.stat().st_size > MAX_XML_BYTES:
        raise ValueError(f"more than {MAX_XML_BYTES // 2**20} MB: not one image's boxes")
    data = file.read_bytes()
    if b"<!" in data.replace(b"<!--", b""):  # entities may grow without bounds
        raise ValueError("declares a DOCTYPE or entities; export it without")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as error:
        line, column = error.position
        raise ValueError(f"not XML (line {line}, column {column}); export it again") from None
    if root.tag != "annotation":
        raise ValueError("wanted Pascal VOC with the root <annotation>")
    named = (root.findtext("filename") or "").strip()
    image = file.stem if is_uid(file.stem) or Path(named).stem.lower() in ("", "unknow", "unknown") else named
    size = [_number(root.findtext(f"size/{side}") or "") for side in ("height", "width")]
    if all(size):
        table.sizes[image] = (int(size[0] or 0), int(size[1] or 0))
    num_boxes = 0
    for number, found in enumerate(root.iter("object"), start=1):
        num_boxes += 1
        place = f"{where} object {number}"
        tags = {child.tag.lower(): child for child in found}
        name = (found.findtext("name") or "").strip()
        texts = [(found.findtext(f"bndbox/{tag}") or "").strip() for tag in ("xmin", "ymin", "xmax", "ymax")]
        numbers = [number for number in map(_number, texts) if number is not None]
        if not name:
            table.problems.append(f"{place}: no class (<name>)")
        if len(numbers) < 4:
            table.problems.append(f"{place}: wanted <bndbox> with the numbers xmin, ymin, xmax, ymax")
        if name and len(numbers) == 4:
            x_min, y_min, x_max, y_max = numbers
            ignore = "difficult" in tags and (tags["difficult"].text or "").strip().lower() in _YES
            table.add(place, image, name, [y_min - 1, x_min - 1, y_max, x_max], ignore)
    if not num_boxes:
        table.without.append((where, image))
