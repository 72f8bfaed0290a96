"""What a detector found, in files: a table of boxes, rectangles for QuPath, a label map on a scan's grid."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_pipelines.atomic import atomic_write
from monai_pipelines.errors import ScanError
from monai_pipelines.metrics import Detections, Lesions, detection_hits
from monai_pipelines.slides import rectangle, write_features

Row = Mapping[str, Any]
Thresholds = Sequence[float | None] | None

COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (0, 114, 178), (240, 228, 66))
MAX_NAME = 150  # characters of a file's name
_CENTER = ("center_x_mm", "center_y_mm", "center_z_mm", "diameter_mm")


def write_detections(
    path: str | PathLike[str],
    rows: Sequence[Row],
    classes: Sequence[str],
    threshold: Thresholds = None,
    unit: str | None = None,
) -> None:
    """Write the boxes of all images as CSV, one line per box, which `read_boxes` reads.

    An image without a box and a skipped one have a line each, without numbers. Columns: ``image``; ``patient`` and
    ``split`` if any row has them; ``class``; ``score``; in 2D ``x_min, y_min, x_max, y_max`` (edges in pixels); in 3D
    ``x_min_mm`` to ``z_max_mm``, ``space`` (LPS, that of DICOM's patient coordinates), the center and the longest side
    as ``diameter_mm``; ``threshold`` of the class and ``shown`` (1 or 0: whether the score reaches it) if there is one;
    ``hit`` (lesion, ignored or none, by the rule of LUNA16) if any row has lesions; ``unit``, if given; ``verdict`` if
    any row has it; ``skipped`` (the reason, else empty).

    Args:
        path: the file, written completely or not at all.
        rows: one for each image: ``image`` (name), ``found`` (`Detections`) or ``skipped`` (reason); optionally
            ``patient``, ``split``, ``lesions`` (`Lesions`) and ``verdict``. Boxes in the coordinates of the source:
            pixels (y_min, x_min, y_max, x_max) in 2D, RAS mm in 3D.
        classes: C class names.
        threshold: score from which a box is shown, for each class, None for one of which nothing is shown.
        unit: what an input is: image or scan.

    Raises:
        ValueError: class names that are not unique, a wrong number of thresholds, a row with neither detections nor a
            reason, 2D and 3D boxes together, or boxes that :func:`~monai_pipelines.metrics.froc` refuses.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "detections.csv"
        >>> rows = [{"image": "a.png", "found": Detections([[10, 20, 30, 50]], [0.75])}]
        >>> write_detections(file, rows, ["nodule"], [0.5])
        >>> print(*file.read_text().split())
        image,class,score,x_min,y_min,x_max,y_max,threshold,shown,skipped a.png,nodule,0.75,20.0,10.0,50.0,30.0,0.5,1,
    """
    _check("write_detections", rows, classes, threshold)
    dims, hits = _dims(rows), _hits(rows, len(classes))

    def present(*names: str) -> list[str]:
        return [name for name in names if any(row.get(name) is not None for row in rows)]

    from monai_pipelines.data.box_files import FORMS  # here, as the package of it imports torch

    box_columns = FORMS["corners"] if dims == 2 else (*FORMS["corners_mm"], "space", *_CENTER)
    columns = ["image", *present("patient", "split"), "class", "score", *box_columns]
    columns += ["threshold", "shown"] if threshold is not None else []
    columns += [*(["hit"] if hits else []), *(["unit"] if unit else []), *present("verdict")]
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "skipped"], lineterminator="\n")
        writer.writeheader()
        for number, row in enumerate(rows):
            common = {name: row.get(name) for name in ("image", *present("patient", "split", "verdict"), "skipped")}
            common |= {"unit": unit} if unit else {}
            boxes, scores, labels = _arrays(row, dims)
            if not len(boxes):
                writer.writerow(common)
            for k, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
                line = common | {"class": classes[label], "score": f"{score:.6g}"}
                line |= dict(zip(box_columns, _numbers(box), strict=True))
                if threshold is not None:
                    line |= {"threshold": threshold[label], "shown": int(_is_shown(score, label, threshold))}
                if number in hits:
                    line["hit"] = hits[number][k]
                writer.writerow(line)


def write_geojson(folder: str | PathLike[str], rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Path]:
    """Write the boxes of 2D images for QuPath: a GeoJSON file for each image, to be dropped on it.

    Each box is an annotation in pixels with its class, a color by class and the measurement ``score``. Skipped images
    have no file.

    Args:
        folder: made if missing.
        rows: as in :func:`write_detections`, 2D.
        classes: C class names.

    Returns:
        the file of each image. Its name is the image's with anything but letters, digits, ``.``, ``-`` and ``_``
        replaced, and a number where two would be the same.

    Raises:
        ValueError: as :func:`write_detections`, or boxes in 3D.

    Example:
        >>> from tempfile import mkdtemp
        >>> rows = [{"image": "a/b.png", "found": Detections([[10, 20, 30, 50]], [0.75])}]
        >>> write_geojson(mkdtemp(), rows, ["nodule"])["a/b.png"].name
        'a_b.png.geojson'
    """
    _check("write_geojson", rows, classes, None)
    if _dims(rows) != 2:
        raise ValueError("write_geojson: wanted boxes in 2D, got 3D; use write_label_map for scans")
    kept = [row for row in rows if not row.get("skipped")]
    files: dict[str, Path] = {}
    for row, name in zip(kept, file_names([str(row["image"]) for row in kept]), strict=True):
        features = []
        for (y_min, x_min, y_max, x_max), score, label in zip(*_arrays(row, 2), strict=True):
            box = [round(float(edge), 4) for edge in (x_min, y_min, x_max, y_max)]
            color = COLORS[label % len(COLORS)]
            features.append(rectangle("annotation", box, classes[label], {"score": score}, color))
        files[str(row["image"])] = Path(folder) / f"{name}.geojson"
        write_features(files[str(row["image"])], features)
    return files


def write_label_map(
    file: str | PathLike[str],
    found: Detections,
    classes: Sequence[str],
    scan: str | PathLike[str],
    threshold: Thresholds = None,
) -> NDArray[np.uint16]:
    """Write the boxes in a scan as NIfTI on the scan's grid, to be laid over it, and what is in it as JSON beside.

    A voxel has the number of the box in which its center lies, counted from 1 for the highest score, which also wins
    where boxes overlap; 0 is outside. A box between the centers of thick slices is moved to the nearest voxel, at most
    by half of one. The JSON (``.json`` for ``.nii.gz``) lists for each number its class, score and number of voxels.

    Args:
        file: ``.nii`` or ``.nii.gz``; written completely or not at all.
        found: boxes in RAS mm.
        classes: C class names.
        scan: file or folder of the scan: DICOM, NIfTI, NRRD or MHA.
        threshold: score from which a box is shown, for each class, None for one of which nothing is shown; without
            thresholds all are.

    Returns:
        the labels (X, Y, Z) on the axes of the file.

    Raises:
        ScanError: the scan's header cannot be read.
        ValueError: as :func:`write_detections`, boxes in 2D, or another suffix.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), folder / "ct.nii")
        >>> found = Detections([[1, 1, 1, 4, 4, 4]], [0.75])
        >>> int((write_label_map(folder / "found.nii.gz", found, ["nodule"], folder / "ct.nii") == 1).sum())
        27
    """
    target = Path(file)
    stem = target.name.removesuffix(".gz").removesuffix(".nii")
    if not target.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"write_label_map: wanted a file .nii or .nii.gz, got {target.name}")
    row = {"image": str(scan), "found": found}
    _check("write_label_map", [row], classes, threshold)
    if np.shape(found.boxes)[0] and _dims([row]) != 3:
        raise ValueError("write_label_map: wanted boxes in RAS mm (N, 6), got 2D; use write_geojson for images")
    from monai_pipelines.data.box_scans import scan_grid

    grid = scan_grid(Path(scan))
    if grid is None:
        raise ScanError(scan, "its header cannot be read; wanted a CT as DICOM, NIfTI, NRRD or MHA")
    affine, shape = grid
    boxes, scores, labels = _arrays(row, 3)
    shown = [
        k
        for k in np.argsort(-scores, kind="stable")
        if threshold is None or _is_shown(scores[k], int(labels[k]), threshold)
    ]
    values = np.zeros(shape, dtype=np.uint16)
    for number, k in reversed(list(enumerate(shown, start=1))):
        place, inside = _voxels(boxes[k], affine, shape)
        values[place][inside] = number
    counts = np.bincount(values.ravel(), minlength=len(shown) + 1)
    volume = nib.Nifti1Image(values if len(shown) > 255 else values.astype(np.uint8), affine)
    volume.set_sform(affine, code=1)  # scanner
    volume.set_qform(affine, code=1)
    volume.header.set_xyzt_units("mm")
    content = [
        {"label": n, "class": classes[labels[k]], "score": float(f"{scores[k]:.6g}"), "voxels": int(counts[n])}
        for n, k in enumerate(shown, start=1)
    ]
    with atomic_write(target) as part:
        packed = part.with_name(part.name + target.name.removeprefix(stem))  # nibabel goes by the suffix
        try:
            nib.save(volume, packed)
            packed.replace(part)
        finally:
            packed.unlink(missing_ok=True)
    with atomic_write(target.with_name(f"{stem}.json")) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return values


def _voxels(
    box: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """The part of a grid around a box in mm, and which of its voxels have their center in the box."""
    center, half = (box[:3] + box[3:]) / 2, (box[3:] - box[:3]) / 2
    to_voxel = np.linalg.inv(affine)
    nearest = np.rint(nib.affines.apply_affine(to_voxel, center))
    middle = nib.affines.apply_affine(affine, nearest)
    place, inside = _centers_in(center, half, affine, shape)
    if not inside.any() and ((nearest >= 0) & (nearest < shape)).all():
        place, inside = _centers_in(middle, half, affine, shape)
    return place, inside


def _centers_in(
    center: NDArray[np.float64], half: NDArray[np.float64], affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    to_voxel = np.linalg.inv(affine)
    reach = np.abs(to_voxel[:3, :3]) @ half
    at = nib.affines.apply_affine(to_voxel, center)
    low = np.clip(np.floor(at - reach), 0, shape).astype(int)
    high = np.clip(np.ceil(at + reach) + 1, 0, shape).astype(int)
    place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
    offset = nib.affines.apply_affine(affine, index) - center
    tolerance = 1e-4  # mm: float32 boxes
    return place, ((offset >= -half - tolerance) & (offset < half - tolerance)).all(axis=-1)


def _numbers(box: NDArray[np.float64]) -> list[Any]:
    """Of a box, in the order of the columns: 2D pixels, or LPS mm with its center and longest side."""
    if len(box) == 4:
        y_min, x_min, y_max, x_max = (round(float(edge), 4) for edge in box)
        return [x_min, y_min, x_max, y_max]
    x_min, y_min, z_min, x_max, y_max, z_max = box
    lps = np.array([-x_max, -y_max, z_min, -x_min, -y_min, z_max])
    numbers = [*lps, *(lps[:3] + lps[3:]) / 2, (lps[3:] - lps[:3]).max()]
    rounded = [round(float(number), 4) + 0.0 for number in numbers]  # + 0.0: no -0.0
    return [*rounded[:6], "LPS", *rounded[6:]]


def _check(name: str, rows: Sequence[Row], classes: Sequence[str], threshold: Thresholds) -> None:
    if len(set(classes)) < len(classes):
        raise ValueError(f"{name}: class names must differ, got {list(classes)}")
    if threshold is not None and len(threshold) != len(classes):
        raise ValueError(f"{name}: wanted {len(classes)} thresholds, one for each class, got {list(threshold)}")
    for row in rows:
        if row.get("found") is None and not row.get("skipped"):
            raise ValueError(f"{name}: {row['image']}: wanted detections or the reason it was skipped, got neither")
    filled = [{**row, "lesions": row.get("lesions") or Lesions([])} for row in rows]
    _hits(filled, len(classes))  # its checks of boxes, labels and scores


def _dims(rows: Sequence[Row]) -> int:
    found = [np.shape(row[key].boxes) for key in ("found", "lesions") for row in rows if row.get(key) is not None]
    known = sorted((shape for shape in found if shape[1:] in ((4,), (6,))), key=lambda shape: shape[0])
    return known[-1][1] // 2 if known else 2


def _hits(rows: Sequence[Row], num_classes: int) -> dict[int, list[str]]:
    """What the detections of each row with lesions hit."""
    those = [k for k, row in enumerate(rows) if row.get("lesions") is not None and not row.get("skipped")]
    if not those:
        return {}
    found, lesions = zip(*((rows[k]["found"], rows[k]["lesions"]) for k in those), strict=True)
    return dict(zip(those, detection_hits(found, lesions, num_classes=num_classes), strict=True))


def _arrays(row: Row, dims: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    boxes, scores, labels = ([], [], None) if row.get("skipped") else row["found"]
    return (
        np.asarray(boxes, dtype=np.float64).reshape(-1, 2 * dims),
        np.asarray(scores, dtype=np.float64),
        np.zeros(len(scores), np.int64) if labels is None else np.asarray(labels).astype(np.int64),
    )


def _is_shown(score: float, label: int, threshold: Sequence[float | None]) -> bool:
    lowest = threshold[label]
    return lowest is not None and score >= lowest


def file_names(names: Sequence[str]) -> list[str]:
    """Names for files, different also where upper and lower case are not."""
    taken: set[str] = set()
    safe = []
    for name in names:
        base = re.sub(r"[^\w.-]+", "_", name).strip("._")[-MAX_NAME:] or "image"
        free = (base if number == 1 else f"{base}-{number}" for number in count(1))
        chosen = next(one for one in free if one.lower() not in taken)
        taken.add(chosen.lower())
        safe.append(chosen)
    return safe
