"""Free-response ROC: lesions found against false positives per image."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.metrics.boxes import (
    Array,
    Detections,
    Indices,
    Lesions,
    Study,
    centers_inside,
    checked_study,
    overlaps,
)
from monai_pipelines.metrics.class_summary import summary

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)


class FrocCurve(NamedTuple):
    """Result of :func:`froc_curve`: (K + 1,) each, from the highest score down."""

    threshold: Array
    """infinite, then each score that occurs"""
    false_positives_per_image: Array
    sensitivity: Array
    """NaN without lesions"""


class Tally(NamedTuple):
    """What a study's detections hit."""

    best: Array
    """(L,) highest score among the detections that hit each lesion, -inf if none does"""
    false_positive: NDArray[np.bool_]
    """(M,) detections that hit neither a lesion nor an ignored finding"""


def froc(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    groups: Sequence[Hashable] | None = None,
    *,
    iou: float | None = None,
    rates: Sequence[float] = RATES,
    num_classes: int = 1,
    num_images: int | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Sensitivity at given numbers of false positives per image, and their mean, with 95% intervals by patient.

    Hits follow LUNA16. A detection hits a lesion of its class if its center is nearer to the lesion's center than the
    radius; for boxes of unequal sides, if it lies inside the ellipsoid that fills the box. A lesion is found at the
    highest score of its hits; further hits count neither way. A detection that hits two lesions finds both. One that
    hits an ignored finding and no lesion counts neither way. All others are false positives. With ``iou``, a detection
    hits if the intersection over union is at least that; for an ignored finding, if at least that share of the
    detection lies in it.

    ``sensitivity(t) = lesions found with a score >= t / all lesions`` and ``rate(t) = false positives with a score >= t
    / all images``, those without lesions included, both pooled over the images. Between two scores the sensitivity is
    interpolated linearly, which matters only where a lesion and a false positive have the same score; where the rate is
    equal, the highest sensitivity counts; beyond the last false positive the sensitivity stays. Equal scores enter
    together, so the order of images and detections does not matter.

    Args:
        detections, lesions: one of each for every image.
        groups: patient of each image; None: one image per patient.
        iou: None for the rule by the center, or the lowest intersection over union of a hit, in (0, 1].
        rates: false positives per image (and class).
        num_classes: labels are 0..C-1.
        num_images: number of images if some without lesion and detection are not listed: each of these counts as an
            image of a further patient.
        num_resamples, seed: of the bootstrap; 0 resamples: no intervals.

    Returns:
        ``metrics``: ``sensitivity_at_0.125`` and so on for each rate, and their mean ``cpm``, averaged over the classes
        with lesions; None where undefined, without any lesion. ``intervals``: name -> [low, high], as those of recall
        in :func:`metric_intervals`, with one degree of freedom fewer than patients with lesions; a metric without an
        interval is left out. ``per_class`` and ``per_class_intervals``: a list of the same for each class.

    Raises:
        ValueError: no images, different lengths, boxes or scores that are not finite, boxes that end before they start,
            labels outside 0..C-1, or options outside their ranges.

    Example:
        >>> lesions = [Lesions([[0, 0, 8, 8], [20, 20, 28, 28]]), Lesions([])]
        >>> found = Detections([[1, 1, 9, 9], [0, 0, 8, 8], [40, 0, 48, 8], [21, 20, 29, 28]], [0.9, 0.8, 0.6, 0.4])
        >>> metrics = froc([found, Detections([], [])], lesions, num_resamples=0)["metrics"]
        >>> metrics["sensitivity_at_0.25"], metrics["sensitivity_at_0.5"], round(metrics["cpm"], 3)
        (0.5, 1.0, 0.857)

    Reference: Setio et al., Validation, comparison, and combination of algorithms for automatic detection of pulmonary
    nodules in computed tomography images: the LUNA16 challenge, Medical Image Analysis, 2017. Its script also keeps the
    100 highest scores of each scan only, and interpolates on a grid of 10,001 rates. MONAI's ``compute_froc_score``
    averages from 1/4 up by default, and its curve is made of detections that are matched already.
    """
    study = checked_study(detections, lesions, groups, num_classes, num_images)
    return summary(Froc(study, iou, rates), study.num_groups, num_resamples, seed)


def froc_curve(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    *,
    label: int = 0,
    iou: float | None = None,
    num_classes: int = 1,
    num_images: int | None = None,
) -> FrocCurve:
    """All points of the FROC of one class, for a figure.

    Args:
        label: the class.
        detections, lesions, iou, num_classes, num_images: as in :func:`froc`.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> curve = froc_curve([Detections([[1, 1, 9, 9], [40, 0, 48, 8]], [0.9, 0.6])], [Lesions([[0, 0, 8, 8]])])
        >>> curve.threshold.tolist(), curve.false_positives_per_image.tolist(), curve.sensitivity.tolist()
        ([inf, 0.9, 0.6], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    """
    study = checked_study(detections, lesions, None, num_classes, num_images)
    best, false_positive = tally(study, iou)
    counted, of_class = (study.lesion_label == label) & ~study.ignore, study.label == label
    threshold = np.append(np.inf, np.unique(study.score[of_class])[::-1])
    found, false = (
        len(scores) - np.searchsorted(np.sort(scores), threshold)
        for scores in (best[counted], study.score[of_class & false_positive])
    )
    sensitivity = found / counted.sum() if counted.any() else np.full(len(threshold), np.nan)
    return FrocCurve(threshold, false / len(study.group), sensitivity)


def tally(study: Study, iou: float | None) -> Tally:
    """Hits by LUNA16's rule, or by intersection over union.

    Example:
        >>> study = checked_study([Detections([[0, 0, 2, 2], [5, 5, 7, 7]], [0.5, 0.7])], [Lesions([[0, 0, 2, 3]])])
        >>> tally(study, iou=0.5)
        Tally(best=array([0.5]), false_positive=array([False,  True]))
    """
    detection, lesion = _hits(study, iou)
    best = np.full(len(study.ignore), -np.inf)
    np.maximum.at(best, lesion, study.score[detection])
    false_positive = np.ones(len(study.score), dtype=bool)
    false_positive[detection] = False
    return Tally(best, false_positive)


def detection_hits(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    *,
    iou: float | None = None,
    num_classes: int = 1,
) -> list[list[str]]:
    """What each detection hits: ``lesion``, ``ignored`` (an ignored finding and no lesion) or ``none``.

    Args:
        detections, lesions, iou, num_classes: as in :func:`froc`.

    Returns:
        for each image its detections, in order.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> found = Detections([[1, 1, 9, 9], [40, 0, 48, 8]], [0.9, 0.6])
        >>> detection_hits([found], [Lesions([[0, 0, 8, 8]])])
        [['lesion', 'none']]
    """
    study = checked_study(detections, lesions, None, num_classes)
    detection, lesion = _hits(study, iou)
    hit = np.full(len(study.score), "none", dtype=object)
    hit[detection] = "ignored"
    hit[detection[~study.ignore[lesion]]] = "lesion"
    return [hit[study.image == image].tolist() for image in range(len(detections))]


def _hits(study: Study, iou: float | None) -> tuple[Indices, Indices]:
    """Detection and lesion of each hit, ignored findings included."""
    if iou is not None and not 0 < iou <= 1:
        raise ValueError(f"froc: iou must lie above 0 and at most at 1, got {iou}")
    detection, lesion = study.pairs()
    hit = centers_inside(study, detection, lesion) if iou is None else overlaps(study, detection, lesion) >= iou
    return detection[hit], lesion[hit]


class Froc:
    """Sensitivities of each class at false-positive rates, as a function of the weights of patients."""

    def __init__(self, study: Study, iou: float | None, rates: Sequence[float]) -> None:
        self.rates = np.asarray(rates, dtype=np.float64)
        if self.rates.ndim != 1 or not self.rates.size or not ((self.rates > 0) & np.isfinite(self.rates)).all():
            raise ValueError(f"froc: wanted rates above 0, one or more, got {rates}")
        self.names = [f"sensitivity_at_{rate:g}" for rate in self.rates]
        num_lesions, num_images = study.num_lesions(), np.bincount(study.group)
        patients = (num_lesions > 0).sum(axis=1)
        self.num_patients: dict[str, Indices] = dict.fromkeys([*self.names, "cpm"], patients)
        best, false_positive = tally(study, iou)
        found = (best > -np.inf) & ~study.ignore
        self.curves = []
        for k in range(study.num_classes):
            lesion, false = found & (study.lesion_label == k), false_positive & (study.label == k)
            hits = _Scored(best[lesion], study.group[study.lesion_image[lesion]])
            misses = _Scored(study.score[false], study.group[study.image[false]])
            self.curves.append(_Curve(hits, misses, num_lesions[k], num_images))

    def __call__(self, weights: NDArray[Any]) -> dict[str, Array]:
        columns = np.ascontiguousarray(weights.T)
        values = np.array([[curve(column, self.rates) for column in columns] for curve in self.curves])  # (C, R, rates)
        return {
            **{name: values[..., k] for k, name in enumerate(self.names)},
            "cpm": values.mean(axis=2),
        }


class _Scored(NamedTuple):
    score: Array
    group: Indices


class _Curve:
    """One class. Its steps are the scores of false positives, from the highest down."""

    def __init__(self, hits: _Scored, misses: _Scored, num_lesions: Indices, num_images: Indices) -> None:
        hit_order, miss_order = np.argsort(-hits.score), np.argsort(-misses.score)
        self.hit, self.miss = hits.group[hit_order], misses.group[miss_order]
        self.num_lesions, self.num_images = num_lesions, num_images
        score = misses.score[miss_order]
        self.last = np.flatnonzero(np.diff(score, append=-np.inf))  # of each score
        steps = np.append(-score[self.last], np.inf)
        self.before, self.after = (np.searchsorted(-hits.score[hit_order], steps, side) for side in ("left", "right"))

    def __call__(self, weights: Array, rates: Array) -> Array:
        """Sensitivity at each rate, with patient g counted weights[g] times."""
        total = self.num_lesions @ weights
        if not total:
            return np.full(len(rates), np.nan)
        found = np.append(0, np.cumsum(weights[self.hit]))
        rate = np.cumsum(weights[self.miss])[self.last] / (self.num_images @ weights)
        step = np.searchsorted(rate, rates, side="right")  # the first that exceeds the rate
        low, high = np.append(0, rate)[step], np.append(rate, np.inf)[step]
        before, after = found[self.before[step]], found[self.after[step]]
        return (before + (rates - low) / (high - low) * (after - before)) / total
