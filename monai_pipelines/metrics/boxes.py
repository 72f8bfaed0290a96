"""Lesions and detections of a study as flat arrays, and which detection lies on which lesion."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.weighted import group_indices

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Lesions(NamedTuple):
    """Ground truth of one image; an image without lesions has ``Lesions([])``.

    Boxes are in the order of the tensor's axes, all minima, then all maxima: ``(y_min, x_min, y_max, x_max)`` for
    (C, H, W), ``(x_min, y_min, z_min, x_max, y_max, z_max)`` for (C, X, Y, Z). Coordinates are those of edges: pixel k
    covers k to k + 1. They may be in pixels or mm, as long as the detections are in the same.

    Example:
        >>> Lesions([[10, 10, 20, 30], [40, 40, 50, 50]], ignore=[False, True]).ignore
        [False, True]
    """

    boxes: ArrayLike
    """(N, 4) or (N, 6)"""
    labels: ArrayLike | None = None
    """(N,) class indices from 0; None: all 0"""
    ignore: ArrayLike | None = None
    """(N,) True for a finding that need not be found and whose detections, of its class, are no false positives;
    None: none of them"""


class Detections(NamedTuple):
    """What a detector found in one image; nothing is ``Detections([], [])``. Boxes are as in :class:`Lesions`.

    Example:
        >>> Detections([[12, 9, 21, 30]], scores=[0.8]).scores
        [0.8]
    """

    boxes: ArrayLike
    """(M, 4) or (M, 6)"""
    scores: ArrayLike
    """(M,) on any scale, the higher the surer"""
    labels: ArrayLike | None = None
    """(M,) class indices from 0; None: all 0"""


class Study(NamedTuple):
    """Lesions and detections of all images, concatenated; see :func:`checked_study`."""

    num_classes: int
    num_groups: int
    group: Indices
    """(I,) index of each image's patient"""
    lesion_boxes: Array
    lesion_label: Indices
    lesion_image: Indices
    ignore: NDArray[np.bool_]
    boxes: Array
    label: Indices
    image: Indices
    score: Array

    @property
    def key(self) -> Indices:
        """(M,) index of each detection's image and class."""
        return self.image * self.num_classes + self.label

    def pairs(self) -> tuple[Indices, Indices]:
        """Detection and lesion of every pair of one class in one image, ordered by detection, then by lesion."""
        key = self.lesion_image * self.num_classes + self.lesion_label
        order = np.argsort(key, kind="stable")
        start, stop = (np.searchsorted(key[order], self.key, side) for side in ("left", "right"))
        count = stop - start
        detection = np.repeat(np.arange(len(count)), count)
        position = np.arange(len(detection)) + np.repeat(start - np.cumsum(count) + count, count)
        return detection, order[position]

    def count_by_group(self, label: Indices, image: Indices) -> Indices:
        """(C, G): how many of these lesions or detections each class and patient has."""
        cell = label * self.num_groups + self.group[image]
        return np.bincount(cell, minlength=self.num_classes * self.num_groups).reshape(self.num_classes, -1)

    def num_lesions(self) -> Indices:
        """(C, G): lesions that are not ignored."""
        return self.count_by_group(self.lesion_label[~self.ignore], self.lesion_image[~self.ignore])


def checked_study(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    groups: Sequence[Hashable] | None = None,
    num_classes: int = 1,
    num_images: int | None = None,
) -> Study:
    """Concatenate the lesions and detections of all images, or raise a ValueError that names the problem.

    Args:
        detections, lesions: one of each for every image.
        groups: patient of each image; None: one image per patient.
        num_classes: labels are 0..C-1.
        num_images: number of images including those that are not listed, without lesion or detection, each of a further
            patient; None: all are listed.

    Example:
        >>> study = checked_study([Detections([[0, 0, 2, 2]], [0.5]), Detections([], [])], [Lesions([])] * 2)
        >>> study.image.tolist(), study.lesion_boxes.shape
        ([0], (0, 4))
    """
    lengths = {len(detections), len(lesions), len(detections if groups is None else groups)}
    if len(lengths) > 1 or not len(lesions):
        raise ValueError(
            "detection metrics: wanted detections, lesions and patients of one length, 1 or more, got "
            f"{len(detections)}, {len(lesions)} and {'no patients' if groups is None else len(groups)}"
        )
    group = np.arange(len(lesions)) if groups is None else group_indices(groups)
    if num_images is not None:
        if num_images < len(lesions):
            raise ValueError(f"detection metrics: num_images is {num_images}, but {len(lesions)} images are listed")
        group = np.concatenate([group, group.max() + 1 + np.arange(num_images - len(lesions))])
    found = [(boxes, scores, _filled(labels, boxes)) for boxes, scores, labels in detections]
    truth = [(boxes, _filled(labels, boxes), _filled(ignore, boxes)) for boxes, labels, ignore in lesions]
    boxes, (score, label), image = _concatenated("detections", found)
    lesion_boxes, (lesion_label, ignore), lesion_image = _concatenated("lesions", truth)
    if not len(boxes):
        boxes = boxes.reshape(0, lesion_boxes.shape[1])
    elif not len(lesion_boxes):
        lesion_boxes = lesion_boxes.reshape(0, boxes.shape[1])
    if boxes.shape[1] != lesion_boxes.shape[1]:
        raise ValueError(
            f"detection metrics: boxes of detections have {boxes.shape[1]} columns, of lesions {lesion_boxes.shape[1]}"
        )
    _check_boxes("detections", boxes, image, "end before it starts", np.less)
    _check_boxes("lesions", lesion_boxes, lesion_image, "end where it starts or before", np.less_equal)
    for name, column, of in (("detections", label, image), ("lesions", lesion_label, lesion_image)):
        bad = np.flatnonzero((column < 0) | (column >= num_classes) | (column % 1 != 0))
        if bad.size:
            raise ValueError(
                f"{name} of image {of[bad[0]]}: labels must be 0..{num_classes - 1} (num_classes {num_classes}), "
                f"got {column[bad[0]]:g}"
            )
    bad = np.flatnonzero(~np.isfinite(score))
    if bad.size:
        raise ValueError(f"detections of image {image[bad[0]]}: scores must be finite, got {score[bad[0]]:g}")
    return Study(
        *(num_classes, int(group.max()) + 1, group, lesion_boxes, lesion_label.astype(np.int64), lesion_image),
        *(ignore.astype(bool), boxes, label.astype(np.int64), image, score),
    )


def centers_inside(study: Study, detection: Indices, lesion: Indices) -> NDArray[np.bool_]:
    """(P,): whether the detection's center lies inside the ellipsoid that fills the lesion's box.

    ``sum over the axes of ((center - center of lesion) / (side of lesion / 2))^2 < 1``. For equal sides, the box of a
    center and a diameter, this is LUNA16's rule: nearer than the radius.
    """
    half = np.diff(_corners(study.lesion_boxes), axis=1)[:, 0] / 2
    stretch = half.max(axis=1, keepdims=True, initial=0) / half  # exactly 1 for equal sides
    center, lesion_center = (_corners(boxes).mean(axis=1) for boxes in (study.boxes, study.lesion_boxes))
    offset = (center[detection] - lesion_center[lesion]) * stretch[lesion]
    return (offset**2).sum(axis=1) < half.max(axis=1, initial=0)[lesion] ** 2


def overlaps(study: Study, detection: Indices, lesion: Indices) -> Array:
    """(P,): intersection over union; with an ignored lesion, the share of the detection that lies in it, as in COCO."""
    (low, high), (lesion_low, lesion_high) = (
        np.moveaxis(_corners(boxes)[index], 1, 0)
        for boxes, index in ((study.boxes, detection), (study.lesion_boxes, lesion))
    )
    intersection = (np.minimum(high, lesion_high) - np.maximum(low, lesion_low)).clip(0).prod(axis=1)
    volume = (high - low).prod(axis=1)
    union = volume + (lesion_high - lesion_low).prod(axis=1) - intersection
    whole = np.where(study.ignore[lesion], volume, union)
    return np.divide(intersection, whole, out=np.zeros(len(whole)), where=whole > 0)


def volumes(boxes: Array) -> Array:
    """(N,): areas in 2D."""
    return np.diff(_corners(boxes), axis=1)[:, 0].prod(axis=1)


def _corners(boxes: Array) -> Array:
    """(N, 2, d): minima and maxima."""
    return boxes.reshape(len(boxes), 2, boxes.shape[1] // 2)


def _filled(column: ArrayLike | None, boxes: ArrayLike) -> ArrayLike:
    return np.zeros(np.shape(boxes)[0]) if column is None else column


def _concatenated(name: str, images: Iterable[tuple[ArrayLike, ...]]) -> tuple[Array, list[Any], Indices]:
    """Boxes, the other columns, and the image of each row."""
    boxes: list[Array] = []
    columns: list[list[Array]] = []
    for k, image in enumerate(images):
        box, *rest = (np.asarray(column, dtype=np.float64) for column in image)
        if any(column.shape != box.shape[:1] for column in rest) or (box.size and box.shape[1:] not in ((4,), (6,))):
            shapes = ", ".join(str(column.shape) for column in (box, *rest))
            raise ValueError(f"{name} of image {k}: wanted boxes (N, 4) or (N, 6), the rest (N,), got {shapes}")
        boxes.append(box)
        columns.append(rest)
    widths = sorted({box.shape[1] for box in boxes if len(box)})
    if len(widths) > 1:
        raise ValueError(f"{name}: boxes have {widths[0]} columns in some images, {widths[1]} in others")
    width = widths[0] if widths else 4
    rows = np.repeat(np.arange(len(boxes)), [len(box) for box in boxes])
    together = np.concatenate([box.reshape(-1, width) for box in boxes])
    return together, [np.concatenate(column) for column in zip(*columns, strict=True)], rows


def _check_boxes(name: str, boxes: Array, image: Indices, fault: str, wrong: np.ufunc) -> None:
    bad = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
    if bad.size:
        raise ValueError(f"{name} of image {image[bad[0]]}: boxes must be finite, got {boxes[bad[0]].tolist()}")
    low, high = np.moveaxis(_corners(boxes), 1, 0)
    bad = np.flatnonzero(wrong(high, low).any(axis=1))
    if bad.size:
        raise ValueError(
            f"{name} of image {image[bad[0]]}: no box may {fault} on any axis, got {boxes[bad[0]].tolist()} "
            "(wanted all minima, then all maxima)"
        )
