"""Average precision of detections, as COCO has it, in 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from monai_pipelines.metrics.boxes import (
    Array,
    Detections,
    Indices,
    Lesions,
    Study,
    checked_study,
    overlaps,
    volumes,
)
from monai_pipelines.metrics.class_summary import summary

IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
MAX_DETECTIONS = 100  # of each image and class
RECALLS = np.linspace(0, 1, 101)
SIZES_2D = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, math.inf)}

Sizes = Mapping[str, tuple[float, float]]


class PrecisionRecallCurve(NamedTuple):
    """Result of :func:`detection_precision_recall`: (K,) each, from the highest score down."""

    precision: Array
    """highest at this recall or a higher one"""
    recall: Array
    """rising, of each lesion found"""


def average_precision(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    groups: Sequence[Hashable] | None = None,
    *,
    ious: Sequence[float] = IOUS,
    sizes: Sizes | None = None,
    max_detections: int = MAX_DETECTIONS,
    num_classes: int = 1,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """COCO's average precision at one or several overlaps, with 95% intervals by patient.

    In each image and class, detections take turns from the highest score down; each takes the free lesion of the
    highest intersection over union, of at least the wanted one, and what takes none is a false positive. Detections of
    all images are then ranked together; with p(r), the highest precision at a recall of r or more (0 if never reached),
    ``AP = sum of p(r) for r = 0, 0.01, ..., 1 / 101``. Equal scores keep the order of images and of detections, as in
    pycocotools.

    An ignored lesion may be taken by any number of detections that find no other, each with at least the wanted share
    of its volume inside (COCO's "crowd"); these count neither way. Lesions outside a size range count as ignored there,
    but are taken once and by intersection over union; so do detections outside the range that take none. The size of a
    box is the edge of a square or cube of the same area or volume.

    Args:
        detections, lesions: one of each for every image.
        groups: patient of each image; None: one image per patient.
        ious: lowest intersections over union of a hit, in (0, 1].
        sizes: name -> (lowest, highest) size, both included, in the unit of the boxes. None: COCO's small, medium and
            large in 2D (up to 32, 96 and above, in pixels), none in 3D.
        max_detections: of each image and class, the highest scores.
        num_classes: labels are 0..C-1.
        num_resamples, seed: of the bootstrap; 0 resamples: no intervals.

    Returns:
        ``metrics``: ``ap50`` and so on for each of ``ious``, their mean ``ap``, and ``ap_small`` and so on, the mean
        for each of ``sizes``. All are means over the classes where they are defined, and None without any lesion (of
        that size), where COCO has -1. ``intervals``, ``per_class``, ``per_class_intervals``: as those of :func:`froc`.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> lesions = [Lesions([[0, 0, 8, 8], [20, 20, 28, 28]]), Lesions([])]
        >>> found = Detections([[0, 0, 8, 8], [40, 0, 48, 8], [21, 20, 29, 28]], [0.9, 0.6, 0.4])
        >>> metrics = average_precision([found, Detections([], [])], lesions, num_resamples=0)["metrics"]
        >>> round(metrics["ap50"], 3), round(metrics["ap90"], 3), metrics["ap_large"]
        (0.835, 0.505, None)

    Reference: Lin et al., Microsoft COCO: common objects in context, ECCV 2014; its evaluation, pycocotools.
    """
    study = checked_study(detections, lesions, groups, num_classes)
    return summary(AveragePrecision(study, ious, sizes, max_detections), study.num_groups, num_resamples, seed)


def detection_precision_recall(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    *,
    label: int = 0,
    iou: float = 0.5,
    max_detections: int = MAX_DETECTIONS,
    num_classes: int = 1,
) -> PrecisionRecallCurve:
    """The curve below which :func:`average_precision` of one class lies, for a figure.

    Args:
        label: the class.
        iou: lowest intersection over union of a hit, in (0, 1].
        detections, lesions, max_detections, num_classes: as in :func:`average_precision`.

    Returns:
        Empty if no lesion is found.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> lesions = [Lesions([[0, 0, 8, 8], [20, 20, 28, 28]])]
        >>> found = [Detections([[0, 0, 8, 8], [40, 0, 48, 8], [20, 20, 28, 28]], [0.9, 0.6, 0.4])]
        >>> curve = detection_precision_recall(found, lesions)
        >>> curve.precision.round(2).tolist(), curve.recall.tolist()
        ([1.0, 0.67], [0.5, 1.0])
    """
    study = checked_study(detections, lesions, None, num_classes)
    curve = AveragePrecision(study, [iou], {}, max_detections).curves[0][label][0]
    right = np.arange(1, len(curve.right) + 1, dtype=np.float64)
    seen = np.cumsum(np.asarray(curve.seen.sum(axis=1)).ravel())
    highest = np.maximum.accumulate((right / np.maximum(seen, 1))[::-1])[::-1]
    return PrecisionRecallCurve(highest, right / max(int(curve.num_lesions.sum()), 1))


class AveragePrecision:
    """Average precisions of each class, as a function of the weights of patients."""

    def __init__(self, study: Study, ious: Sequence[float], sizes: Sizes | None, max_detections: int) -> None:
        if sizes is None:
            sizes = SIZES_2D if study.lesion_boxes.shape[1] == 4 else {}
        _check_options(ious, sizes, max_detections)
        self.ious, self.sizes = np.asarray(ious, dtype=np.float64), sizes
        self.num_patients: dict[str, Indices] = {}
        self.curves: list[list[list[_Curve]]] = []  # of each size, class and overlap
        order, rank = _ranked(study, max_detections)
        matching = _Matching(study, rank, self.ious)
        for name, (low, high) in {"": (0.0, math.inf), **sizes}.items():
            inside, lesion_inside = (_of_size(boxes, low, high) for boxes in (study.boxes, study.lesion_boxes))
            ignored = study.ignore | ~lesion_inside
            num_lesions = study.count_by_group(study.lesion_label[~ignored], study.lesion_image[~ignored])
            names = [f"ap_{name}"] if name else ["ap", *self._names()]
            self.num_patients |= dict.fromkeys(names, (num_lesions > 0).sum(axis=1))
            taken = matching(ignored)[:, order]
            found = ~np.append(ignored, True)[taken]  # -1: none
            counted = found | ((taken < 0) & inside[order])
            group, label = study.group[study.image[order]], study.label[order]
            self.curves.append(
                [
                    [
                        _Curve(group[kept], right[kept], num_lesions[k])
                        for right, kept in zip(found, counted & (label == k), strict=True)
                    ]
                    for k in range(study.num_classes)
                ]
            )

    def __call__(self, weights: NDArray[Any]) -> dict[str, Array]:
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        every, *by_size = (
            np.array([[curve(weights) for curve in curves] for curves in classes]) for classes in self.curves
        )  # (C, overlaps, R) each
        return {
            "ap": every.mean(axis=1),
            **{name: every[:, k] for k, name in enumerate(self._names())},
            **{f"ap_{name}": values.mean(axis=1) for name, values in zip(self.sizes, by_size, strict=True)},
        }

    def _names(self) -> list[str]:
        return [f"ap{100 * iou:g}" for iou in self.ious]


class _Curve:
    """Detections of one class that count, from the highest score down, in steps that end with a right one."""

    def __init__(self, group: Indices, right: NDArray[np.bool_], num_lesions: Indices) -> None:
        step: Indices = np.cumsum(right) - right
        self.right, self.num_lesions = group[right], num_lesions
        ranked: NDArray[np.bool_] = step < len(self.right)
        self.seen = sparse.csr_matrix(
            (np.ones(int(ranked.sum())), (step[ranked], group[ranked])), shape=(len(self.right), len(num_lesions))
        )

    def __call__(self, weights: Array) -> Array:
        """Average precision (R,) with patient g counted weights[g, r] times."""
        total = self.num_lesions @ weights
        right, seen = np.cumsum(weights[self.right], axis=0), np.cumsum(self.seen @ weights, axis=0)
        precision = right / np.maximum(seen, 1)
        highest = np.vstack([np.maximum.accumulate(precision[::-1])[::-1], np.zeros(len(total))])
        steps = [np.searchsorted(recall, RECALLS) for recall in (right / np.maximum(total, 1)).T]
        values = np.take_along_axis(highest, np.stack(steps, axis=1), axis=0).mean(axis=0)
        return np.where(total > 0, values, np.nan)


class _Matching:
    """Which lesion each detection takes."""

    def __init__(self, study: Study, rank: Indices, ious: Array) -> None:
        detection, lesion = study.pairs()
        overlap = overlaps(study, detection, lesion)
        needed = np.minimum(ious, 1 - 1e-10)
        near = (overlap >= needed.min()) & (rank[detection] >= 0)
        detection, lesion, overlap = detection[near], lesion[near], overlap[near]
        turn = np.lexsort((lesion, detection, rank[detection]))
        self.detection, self.lesion, self.overlap = detection[turn], lesion[turn], overlap[turn]
        self.rounds = np.flatnonzero(np.diff(rank[self.detection], prepend=-1, append=np.iinfo(np.int64).max))
        self.reached = self.overlap >= needed[:, None]
        self.crowd, self.num_detections = study.ignore, len(study.score)

    def __call__(self, ignored: NDArray[np.bool_]) -> Indices:
        """(overlaps, M): index of the lesion that each detection takes, -1 for none.

        The n-th detections of all images and classes take their turn together. Of equal overlaps the last lesion is
        taken, as in pycocotools.
        """
        preference = np.lexsort((np.arange(len(self.overlap)), self.overlap, ~ignored[self.lesion]))
        place = np.empty(len(preference), dtype=np.int64)
        place[preference] = np.arange(1, len(preference) + 1)
        taken = np.full((len(self.reached), self.num_detections), -1)
        occupied = np.zeros((len(self.reached), len(ignored)), dtype=bool)
        for start, stop in zip(self.rounds[:-1], self.rounds[1:], strict=True):
            lesion, detection = self.lesion[start:stop], self.detection[start:stop]
            free = self.reached[:, start:stop] & (~occupied[:, lesion] | self.crowd[lesion])
            first = np.flatnonzero(np.diff(detection, prepend=-1))
            best = np.maximum.reduceat(np.where(free, place[start:stop], 0), first, axis=1)
            row, column = np.nonzero(best)
            chosen = self.lesion[preference[best[row, column] - 1]]
            taken[row, detection[first[column]]] = chosen
            occupied[row, chosen] = True
        return taken


def _of_size(boxes: Array, low: float, high: float) -> NDArray[np.bool_]:
    volume, num_dims = volumes(boxes), boxes.shape[1] // 2
    return (low**num_dims <= volume) & (volume <= high**num_dims)


def _ranked(study: Study, max_detections: int) -> tuple[Indices, Indices]:
    """Detections from the highest score down, without those that are too many, and (M,) rank in its image and class."""
    order = np.argsort(-study.score, kind="stable")
    by_key = order[np.argsort(study.key[order], kind="stable")]
    key = study.key[by_key]
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_key] = np.arange(len(order)) - np.searchsorted(key, key)
    rank[rank >= max_detections] = -1
    return order[rank[order] >= 0], rank


def _check_options(ious: Sequence[float], sizes: Sizes, max_detections: int) -> None:
    if not len(ious) or not all(0 < iou <= 1 for iou in ious):
        raise ValueError(f"average_precision: wanted ious above 0 and at most 1, one or more, got {ious}")
    if not all(0 <= low < high for low, high in sizes.values()):
        raise ValueError(f"average_precision: sizes must rise from 0 or more, got {dict(sizes)}")
    if max_detections < 1:
        raise ValueError(f"average_precision: wanted max_detections of 1 or more, got {max_detections}")
