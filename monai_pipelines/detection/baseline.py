"""A baseline for detectors: bright spots of the size of a lesion."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from monai_pipelines.detection.boxes import Found, Target
from monai_pipelines.metrics import Detections, Lesions, froc

Values = NDArray[np.float32]


class ThresholdBaseline:
    """How far brightness alone gets: connected spots above a threshold, each scored by its contrast.

    A candidate is a connected component (by faces) of the voxels above the threshold whose size, the geometric mean of
    its box's sides, lies between those of the smallest and the largest lesion in training, with some room. Its score is
    its mean brightness minus that of its surroundings, a shell of ``margin`` voxels. Fitting tries thresholds at evenly
    spaced quantiles of the brightness within lesions, and keeps the one with the highest CPM on the training images
    (see :func:`~monai_pipelines.metrics.froc`; of equal ones, the highest threshold). Nothing is random. All candidates
    get the most frequent class, so with several classes the others are missed.

    Compare a detector with it on the same images: a detector that is hardly better has learned brightness.

    Args:
        num_thresholds: that are tried.
        room: the smallest size is divided by it, the largest multiplied.
        margin: thickness of the surroundings, voxels.
        num_boxes: of an image, at most.

    Attributes:
        threshold: brightness.
        sizes: smallest and largest size of a candidate, voxels.
        label: the class of all candidates.
        cpm: on the training images, of all classes as one.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> image = np.full((1, 32, 32), 0.1, np.float32)
        >>> image[0, 8:14, 10:16] = 0.8
        >>> baseline = ThresholdBaseline().fit([image], [Lesions([[8, 10, 14, 16]])])
        >>> found = baseline.find(image)
        >>> found.boxes, round(baseline.cpm, 2), round(float(found.scores), 2)
        (tensor([[ 8., 10., 14., 16.]]), 1.0, 0.7)
    """

    def __init__(self, num_thresholds: int = 8, room: float = 1.5, margin: int = 3, num_boxes: int = 100) -> None:
        if num_thresholds < 1 or room < 1 or margin < 1 or num_boxes < 1:
            raise ValueError(
                "ThresholdBaseline: num_thresholds, room, margin and num_boxes must be 1 or more, "
                f"got {num_thresholds}, {room}, {margin} and {num_boxes}"
            )
        self.num_thresholds, self.room, self.margin, self.num_boxes = num_thresholds, room, margin, num_boxes
        self.threshold, self.cpm, self.label = np.nan, np.nan, 0
        self.sizes = (0.0, np.inf)

    def fit(self, images: Sequence[NdarrayOrTensor], lesions: Sequence[Lesions | Target]) -> ThresholdBaseline:
        """Choose sizes, threshold and class.

        Args:
            images: (C, *size) each, with 2 or 3 axes; the mean of the channels is taken. May be a data set that loads
                them: no image is kept. A CT of 100 million voxels takes most of a minute, so a few dozen scans do.
            lesions: of each image, in its pixels.

        Returns:
            the baseline itself.

        Raises:
            ValueError: another number of lesions than images, or no lesion that is not to be ignored.
        """
        if len(images) != len(lesions):
            raise ValueError(f"ThresholdBaseline: wanted lesions of {len(images)} images, got {len(lesions)}")
        truth = [_lesions(one) for one in lesions]
        sides, labels, bright = [], Counter[int](), []
        for number, (boxes, classes, ignore) in enumerate(truth):
            if ignore.all():
                continue
            values = _brightness(images[number])
            for box, label in zip(boxes[~ignore], classes[~ignore].tolist(), strict=True):
                low, high = np.floor(box[: values.ndim]), np.ceil(box[values.ndim :])
                inside = values[tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high, strict=True))]
                bright.append(inside.ravel())
                sides.append(float(np.prod(box[values.ndim :] - box[: values.ndim]) ** (1 / values.ndim)))
                labels[label] += 1
        if not sides or not sum(map(len, bright)):
            raise ValueError("ThresholdBaseline: wanted a lesion or more in the images to learn from, got none")
        self.sizes = (min(sides) / self.room, max(sides) * self.room)
        self.label = min(labels, key=lambda label: (-labels[label], label))
        quantiles = (np.arange(self.num_thresholds) + 0.5) / self.num_thresholds
        thresholds = np.unique(np.quantile(np.concatenate(bright), quantiles))
        found: list[list[Found]] = [[] for _ in thresholds]
        for number in range(len(images)):
            values = _brightness(images[number])
            for of_threshold, threshold in zip(found, thresholds, strict=True):
                of_threshold.append(self._find(values, float(threshold)))
        anyone = [Lesions(boxes, None, ignore) for boxes, _, ignore in truth]
        self.cpm = -1.0
        for of_threshold, threshold in zip(found, thresholds, strict=True):
            unlabeled = [Detections(one.boxes.numpy(), one.scores.numpy()) for one in of_threshold]
            cpm = froc(unlabeled, anyone, num_resamples=0)["metrics"]["cpm"]
            if cpm >= self.cpm:
                self.cpm, self.threshold = cpm, float(threshold)
        return self

    def find(self, image: NdarrayOrTensor) -> Found:
        """The candidates in an image (C, *size), highest score first, boxes in its pixels.

        Raises:
            RuntimeError: before `fit`.
        """
        if np.isnan(self.threshold):
            raise RuntimeError("ThresholdBaseline: call fit before find")
        return self._find(_brightness(image), self.threshold)

    def _find(self, values: Values, threshold: float) -> Found:
        components, _ = ndimage.label(values >= threshold)
        candidates = sorted(self._candidates(values, components), key=lambda candidate: -candidate[1])[: self.num_boxes]
        boxes = torch.tensor([box for box, _ in candidates], dtype=torch.float32).reshape(-1, 2 * values.ndim)
        scores = torch.tensor([score for _, score in candidates], dtype=torch.float32)
        return Found(boxes, scores, torch.full((len(candidates),), self.label))

    def _candidates(self, values: Values, components: NDArray[np.int32]) -> Iterator[tuple[list[int], float]]:
        """Box and score of each component of the right size."""
        smallest, largest = self.sizes
        for number, place in enumerate(ndimage.find_objects(components), start=1):
            size = math.prod([axis.stop - axis.start for axis in place]) ** (1 / values.ndim)
            if not smallest <= size <= largest:
                continue
            around = tuple(slice(max(0, axis.start - self.margin), axis.stop + self.margin) for axis in place)
            inside = components[around] == number
            shell = ndimage.binary_dilation(inside, iterations=self.margin) & ~inside
            near = values[around]
            contrast = float(near[inside].mean() - near[shell].mean()) if shell.any() else 0.0
            yield [*(axis.start for axis in place), *(axis.stop for axis in place)], contrast


def _brightness(image: NdarrayOrTensor) -> Values:
    """(*size): the mean of the channels."""
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if values.ndim not in (3, 4):
        raise ValueError(f"ThresholdBaseline: wanted images (C, H, W) or (C, X, Y, Z), got shape {values.shape}")
    return values.mean(axis=0, dtype=np.float32)


def _lesions(lesions: Lesions | Target) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    boxes = np.asarray(lesions.boxes, dtype=np.float64)
    num = len(boxes)
    labels = np.zeros(num) if lesions.labels is None else np.asarray(lesions.labels)
    ignore = np.zeros(num) if lesions.ignore is None else np.asarray(lesions.ignore)
    return boxes, labels.astype(np.int64), ignore.astype(bool)
