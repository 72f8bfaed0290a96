"""The metrics of a detector's evaluation, as ``metrics.json`` holds them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.metrics import Detections, Lesions, compare_detections, detection_metrics, sensitivity_at
from monai_pipelines.metrics.average_precision import Sizes
from monai_pipelines.metrics.boxes import checked_study, volumes
from monai_pipelines.metrics.froc import tally
from monai_pipelines.report.predictions import Row
from monai_pipelines.report.results import by_value, differences_of, plain_data

EDGES_MM = (6.0, 10.0, 20.0)
NUM_RESAMPLES = 2000
AT_THRESHOLD = ("sensitivity", "false_positives_per_image")
Thresholds = Sequence[float | None]


class Outcome(NamedTuple):
    """A lesion that was found or missed, or a false alarm."""

    kind: str
    """hit, miss or false_alarm"""
    image: int
    box: int
    """index, among the lesions or detections of its image"""
    label: int
    score: float | None
    """of the false alarm; of a lesion the highest of its hits, None without any"""
    size: float
    """edge of a square or cube of the same area or volume, in the unit of the boxes"""


def detection_results(
    rows: Sequence[Row],
    classes: Sequence[str],
    threshold: Thresholds | None = None,
    baseline: Mapping[str, Any] | None = None,
    subgroups: Sequence[str] = (),
) -> dict[str, Any]:
    """Compute all metrics of a detector, with 95% intervals by patient.

    Args:
        rows: of images, as `plain_row` makes them.
        classes: C class names.
        threshold: score of each class from which detections are shown; an entry of None shows none. None: there is no
            operating point.
        baseline: ``name`` and ``rows``, for each image what `plain_row` has as ``found``.
        subgroups: keys of ``columns`` by which to split the rows.

    Returns:
        ``num_images``, ``num_patients`` (None if unknown), ``num_lesions``, ``num_ignored``, ``num_with_lesions``,
        ``num_without_lesions`` (images); ``classes`` (class -> ``num_lesions``, ``num_images``);
        ``threshold``; ``metrics``, ``intervals``, ``per_class`` and ``per_class_intervals`` (class -> metric -> ...) of
        :func:`monai_pipelines.metrics.detection_metrics`, and of :func:`monai_pipelines.metrics.sensitivity_at` the
        ``sensitivity`` and ``false_positives_per_image``; ``outcomes`` (``hit``, ``miss``, ``false_alarm``: their
        number at the threshold, with all classes together; None without one);
        ``sizes``: band -> ``low`` and ``high`` (None: no end), ``unit``, ``num_lesions``, ``num_found``,
        ``sensitivity`` and its ``interval``, all classes together; ``baseline`` (``name``, ``metrics``, and
        ``differences`` of the model from it: metric -> ``difference`` and ``interval``);
        ``subgroups`` (column -> value -> ``num_images``, ``num_lesions``, ``metrics``, ``intervals``).
        Undefined values are None.

    Raises:
        ValueError: see :func:`monai_pipelines.metrics.froc`.

    Example:
        >>> rows = [plain_row({"image": "a", "found": Detections([], []), "lesions": Lesions([[0, 0, 8, 8]])})]
        >>> result = detection_results(rows, ["mass"], [0.5])
        >>> result["metrics"]["cpm"], result["outcomes"]
        (0.0, {'hit': 0, 'miss': 1, 'false_alarm': 0})
    """
    from monai_pipelines.data import patients_known  # imports torch, which rendering a page does not need

    found, lesions = found_in(rows), lesions_in(rows)
    study = checked_study(found, lesions, None, len(classes))
    counted, sizes = ~study.ignore, edges(study.lesion_boxes)
    bands = size_bands(sizes[counted], study.lesion_boxes.shape[1] // 2)
    computed = _metrics(rows, classes, threshold, bands)
    positive = {name: study.lesion_image[counted & (study.lesion_label == k)] for k, name in enumerate(classes)}
    with_lesions = len(np.unique(study.lesion_image[counted]))
    kinds = [outcome.kind for outcome in outcomes(rows, classes, threshold)] if threshold is not None else None
    known = patients_known(rows)
    plain: dict[str, Any] = plain_data(
        {
            "num_images": len(rows),
            "num_patients": len(set(_patients(rows))) if known else None,
            "num_lesions": computed["num_lesions"],
            "num_ignored": computed["num_ignored"],
            "num_with_lesions": with_lesions,
            "num_without_lesions": len(rows) - with_lesions,
            "classes": {
                name: {"num_lesions": len(images), "num_images": len(np.unique(images))}
                for name, images in positive.items()
            },
            "threshold": threshold,
            **{name: computed[name] for name in ("metrics", "intervals", "per_class", "per_class_intervals")},
            "outcomes": kinds and {kind: kinds.count(kind) for kind in ("hit", "miss", "false_alarm")},
            "sizes": _by_size(rows, threshold, bands, len(classes)),
            "baseline": baseline and _baseline(baseline, rows, bands, len(classes)),
            "subgroups": {
                column: by_value(rows, column, partial(_group, classes=classes, threshold=threshold))
                for column in subgroups
            },
        }
    )
    return plain


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its ``found`` (`Detections`) and ``lesions`` (`Lesions`) as lists.

    Example:
        >>> plain_row({"image": "a", "found": Detections([], []), "lesions": Lesions([[0, 0, 8, 8]])})["lesions"]
        {'boxes': [[0.0, 0.0, 8.0, 8.0]], 'labels': [0], 'ignore': [False]}
    """
    lesions = row["lesions"]
    boxes = np.asarray(lesions.boxes, dtype=np.float64)
    labels, ignore = (np.zeros(len(boxes)) if part is None else np.asarray(part) for part in lesions[1:])
    truth = {"boxes": boxes.tolist(), "labels": labels.astype(int).tolist(), "ignore": ignore.astype(bool).tolist()}
    return {**row, "found": plain_found(row["found"]), "lesions": truth}


def plain_found(found: Detections) -> dict[str, Any]:
    """Detections as lists: ``boxes``, ``scores`` and ``labels``."""
    boxes, scores = (np.asarray(part, dtype=np.float64) for part in found[:2])
    labels = np.zeros(len(boxes)) if found.labels is None else np.asarray(found.labels)
    return {"boxes": boxes.tolist(), "scores": scores.tolist(), "labels": labels.astype(int).tolist()}


def found_in(rows: Sequence[Row]) -> list[Detections]:
    """Detections of each row."""
    return [Detections(**row["found"]) for row in rows]


def lesions_in(rows: Sequence[Row]) -> list[Lesions]:
    """Lesions of each row."""
    return [Lesions(**row["lesions"]) for row in rows]


def edges(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Size of boxes (N, 2 d): the edge of a square or cube of the same area or volume.

    For a lesion given by its center and diameter this is the diameter.
    """
    root = np.sqrt if boxes.shape[1] == 4 else np.cbrt
    # rounded, as a box of center and diameter has noise in the last digits
    size: NDArray[np.float64] = root(volumes(boxes)).round(6)
    return size


def size_bands(sizes: NDArray[np.float64], dims: int) -> dict[str, tuple[float, float]]:
    """Bands of lesion size: in 3D those of `EDGES_MM`, in 2D thirds of the lesions, in whole pixels.

    Returns:
        name -> (lowest, highest), as :func:`monai_pipelines.metrics.average_precision` takes them; none in 2D without
        lesions.

    Example:
        >>> list(size_bands(np.array([5.0]), 3))
        ['under_6_mm', '6_to_10_mm', '10_to_20_mm', '20_mm_or_more']
        >>> list(size_bands(np.arange(30.0), 2))
        ['under_10_px', '10_to_19_px', '19_px_or_more']
    """
    unit, cuts = "mm", list(EDGES_MM)
    if dims == 2:
        if not len(sizes):
            return {}
        unit, thirds = "px", np.unique(np.round(np.quantile(sizes, [1 / 3, 2 / 3])))
        cuts = [cut for cut in thirds.tolist() if sizes.min() < cut <= sizes.max()]
    if not cuts:
        return {"all": (0.0, math.inf)}
    names = [
        f"under_{cuts[0]:g}_{unit}",
        *(f"{low:g}_to_{high:g}_{unit}" for low, high in pairwise(cuts)),
        f"{cuts[-1]:g}_{unit}_or_more",
    ]
    ends = [*(math.nextafter(cut, 0) for cut in cuts), math.inf]
    return dict(zip(names, zip([0.0, *cuts], ends, strict=True), strict=True))


def outcomes(rows: Sequence[Row], classes: Sequence[str], threshold: Thresholds) -> list[Outcome]:
    """Lesions found and missed, and false alarms, of the detections at or above the threshold; hits as in the FROC.

    Example:
        >>> found, lesions = Detections([[0, 0, 8, 8], [20, 0, 28, 8]], [0.9, 0.3]), Lesions([[1, 0, 9, 8]])
        >>> [o.kind for o in outcomes([plain_row({"image": "a", "found": found, "lesions": lesions})], ["mass"], [0.5])]
        ['hit']
    """
    study = checked_study(found_in(rows), lesions_in(rows), None, len(classes))
    best, false_positive = tally(study, None)
    cut = cuts_of(threshold)
    sizes, lesion_sizes = edges(study.boxes), edges(study.lesion_boxes)
    index, lesion_index = _index_in_image(study.image), _index_in_image(study.lesion_image)
    of_lesions = [
        Outcome(
            "hit" if best[k] >= cut[study.lesion_label[k]] else "miss",
            *(int(study.lesion_image[k]), int(lesion_index[k]), int(study.lesion_label[k])),
            *(float(best[k]) if best[k] > -math.inf else None, float(lesion_sizes[k])),
        )
        for k in np.flatnonzero(~study.ignore)
    ]
    return of_lesions + [
        Outcome(
            *("false_alarm", int(study.image[k]), int(index[k]), int(study.label[k])),
            *(float(study.score[k]), float(sizes[k])),
        )
        for k in np.flatnonzero(false_positive & (study.score >= cut[study.label]))
    ]


def cuts_of(threshold: Thresholds) -> NDArray[np.float64]:
    """Thresholds as numbers: infinite where nothing is shown."""
    return np.array([math.inf if value is None else value for value in threshold], dtype=np.float64)


def _index_in_image(image: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.arange(len(image)) - np.searchsorted(image, image)


def _metrics(rows: Sequence[Row], classes: Sequence[str], threshold: Thresholds | None, sizes: Sizes) -> dict[str, Any]:
    """Those of `detection_metrics` and of the operating point, with the classes by name."""
    study = found_in(rows), lesions_in(rows)
    groups, num = _patients(rows), len(classes)
    result = detection_metrics(*study, groups, sizes=sizes, num_classes=num, num_resamples=NUM_RESAMPLES)
    if threshold is None:
        for values in (result["metrics"], *result["per_class"]):
            values |= dict.fromkeys(AT_THRESHOLD)
    else:
        point = sensitivity_at(*study, list(threshold), groups, num_classes=num, num_resamples=NUM_RESAMPLES)
        for name in ("metrics", "intervals"):
            result[name] |= point[name]
        for name in ("per_class", "per_class_intervals"):
            result[name] = [{**mine, **other} for mine, other in zip(result[name], point[name], strict=True)]
    return result | {
        name: dict(zip(classes, result[name], strict=True)) for name in ("per_class", "per_class_intervals")
    }


def _group(rows: Sequence[Row], classes: Sequence[str], threshold: Thresholds | None) -> dict[str, Any]:
    computed = _metrics(rows, classes, threshold, {})
    return {"num_images": len(rows), **{name: computed[name] for name in ("num_lesions", "metrics", "intervals")}}


def _baseline(baseline: Mapping[str, Any], rows: Sequence[Row], bands: Sizes, num_classes: int) -> dict[str, Any]:
    found, lesions = [Detections(**row) for row in baseline["rows"]], lesions_in(rows)
    result = detection_metrics(found, lesions, sizes=bands, num_classes=num_classes, num_resamples=0)
    compared = compare_detections(
        *(found, found_in(rows), lesions, _patients(rows)), num_classes=num_classes, num_resamples=NUM_RESAMPLES
    )
    return {"name": baseline["name"], "metrics": result["metrics"], "differences": differences_of(compared)}


def _by_size(rows: Sequence[Row], threshold: Thresholds | None, bands: Sizes, num_classes: int) -> dict[str, Any]:
    """Sensitivity for each band; lesions of all classes weigh the same."""
    cut = [math.inf] * num_classes if threshold is None else cuts_of(threshold)
    shown, lesions, groups = [], [], []
    for row, patient in zip(rows, _patients(rows), strict=True):
        found, truth = (
            {name: np.asarray(values) for name, values in row[part].items()} for part in ("found", "lesions")
        )
        for k in range(num_classes):  # as images of one class, so that lesions are found by detections of their class
            kept, mine = (found["labels"] == k) & (found["scores"] >= cut[k]), truth["labels"] == k
            shown.append(Detections(found["boxes"][kept], found["scores"][kept]))
            lesions.append(Lesions(truth["boxes"][mine], ignore=truth["ignore"][mine].astype(bool)))
            groups.append(patient)
    table = {}
    for name, (low, high) in bands.items():
        banded = []
        for boxes, _, ignore in lesions:
            size = edges(np.asarray(boxes)) if len(np.asarray(boxes)) else np.zeros(0)
            banded.append(Lesions(boxes, ignore=np.asarray(ignore) | (size < low) | (size > high)))
        num = sum(int((~np.asarray(entry.ignore)).sum()) for entry in banded)
        point = sensitivity_at(shown, banded, -sys.float_info.max, groups, num_resamples=NUM_RESAMPLES)
        sensitivity = None if threshold is None else point["metrics"]["sensitivity"]
        table[name] = {
            **{"low": low, "high": None if high == math.inf else math.nextafter(high, math.inf), "num_lesions": num},
            "num_found": None if threshold is None else round((sensitivity or 0) * num),
            "sensitivity": sensitivity,
            "interval": None if threshold is None else point["intervals"].get("sensitivity"),
        }
    return table


def _patients(rows: Sequence[Row]) -> list[str]:
    return [str(row.get("patient") or row["image"]) for row in rows]
