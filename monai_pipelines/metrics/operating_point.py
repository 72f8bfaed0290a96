"""The score from which a detection is shown: chosen on validation data, applied to others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.metrics.boxes import Array, Detections, Indices, Lesions, Study, checked_study
from monai_pipelines.metrics.class_summary import summary
from monai_pipelines.metrics.confusion_counts import ratio
from monai_pipelines.metrics.froc import tally


def choose_operating_threshold(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    rate: float = 1.0,
    *,
    iou: float | None = None,
    num_classes: int = 1,
    num_images: int | None = None,
) -> list[float | None]:
    """Choose the lowest score that leaves at most so many false positives per image, for each class.

    Choose it on validation data, never on test data. Detections with this score or a higher one are shown. It lies
    midway between the highest score that must be left out and the next higher one (just above the former if there is
    none), so a slightly different score falls on the same side; if none must be left out, it is the lowest score.

    Args:
        detections, lesions, iou, num_classes, num_images: as in :func:`froc`.
        rate: highest number of false positives per image (and class), 0 or more.

    Returns:
        The threshold of each class, None for a class without any detection.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> lesions = [Lesions([[0, 0, 8, 8]]), Lesions([])]
        >>> found = [Detections([[1, 1, 9, 9], [40, 0, 48, 8]], [0.75, 0.5]), Detections([[1, 1, 9, 9]], [0.25])]
        >>> choose_operating_threshold(found, lesions, rate=0.5), choose_operating_threshold(found, lesions, rate=0)
        ([0.375], [0.625])
    """
    if not 0 <= rate < np.inf:
        raise ValueError(f"choose_operating_threshold: wanted a rate of 0 or more, got {rate}")
    study = checked_study(detections, lesions, None, num_classes, num_images)
    false_positive = tally(study, iou).false_positive
    return [
        _lowest_score(study.score[of_class], study.score[of_class & false_positive], rate, len(study.group))
        for of_class in (study.label == k for k in range(num_classes))
    ]


def sensitivity_at(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    threshold: float | Sequence[float | None],
    groups: Sequence[Hashable] | None = None,
    *,
    iou: float | None = None,
    num_classes: int = 1,
    num_images: int | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Sensitivity and false positives per image of the detections at or above a score, with 95% intervals by patient.

    Args:
        threshold: of :func:`choose_operating_threshold`; one for all classes or one for each; None shows
            nothing.
        detections, lesions, groups, iou, num_classes, num_images, num_resamples, seed: as in :func:`froc`.

    Returns:
        ``metrics``: ``sensitivity``, the share of lesions found (None without lesions), and
        ``false_positives_per_image``, both averaged over the classes where they are defined; ``intervals``,
        ``per_class``, ``per_class_intervals``: as those of :func:`froc`. The interval of the false positives is
        ``x exp(+-t s / x)``, as that of the Brier score in :func:`metric_intervals`; there is none without
        false positives.

    Raises:
        ValueError: as :func:`froc`, or a wrong number of thresholds.

    Example:
        >>> found = [Detections([[1, 1, 9, 9], [40, 0, 48, 8]], [0.8, 0.4]), Detections([[1, 1, 9, 9]], [0.2])]
        >>> sensitivity_at(found, [Lesions([[0, 0, 8, 8]]), Lesions([])], 0.3, num_resamples=0)["metrics"]
        {'sensitivity': 1.0, 'false_positives_per_image': 0.5}
    """
    study = checked_study(detections, lesions, groups, num_classes, num_images)
    given = threshold if isinstance(threshold, Sequence) else [threshold] * num_classes
    cut = np.array([np.inf if value is None else value for value in given], dtype=np.float64)
    if cut.shape != (num_classes,) or np.isnan(cut).any():
        raise ValueError(f"sensitivity_at: wanted one threshold or {num_classes}, got {threshold}")
    return summary(_AtThreshold(study, cut, iou), study.num_groups, num_resamples, seed)


class _AtThreshold:
    def __init__(self, study: Study, threshold: Array, iou: float | None) -> None:
        best, false_positive = tally(study, iou)
        found = (best >= threshold[study.lesion_label]) & ~study.ignore
        shown = false_positive & (study.score >= threshold[study.label])
        self.num_lesions, self.num_images = study.num_lesions(), np.bincount(study.group)
        self.num_found = study.count_by_group(study.lesion_label[found], study.lesion_image[found])
        self.num_false = study.count_by_group(study.label[shown], study.image[shown])
        self.num_patients: dict[str, Indices] = {
            "sensitivity": (self.num_lesions > 0).sum(axis=1),
            "false_positives_per_image": np.full(study.num_classes, study.num_groups),
        }

    def __call__(self, weights: NDArray[Any]) -> dict[str, Array]:
        num_lesions = self.num_lesions @ weights
        return {
            "sensitivity": ratio(self.num_found @ weights, num_lesions, num_lesions > 0),
            "false_positives_per_image": self.num_false @ weights / (self.num_images @ weights),
        }


def _lowest_score(scores: ArrayLike, false: Array, rate: float, num_images: int) -> float | None:
    distinct = np.unique(scores)
    if not distinct.size:
        return None
    num_false = len(false) - np.searchsorted(np.sort(false), distinct)  # at or above each score
    allowed = int(np.count_nonzero(num_false / num_images > rate))  # index of the lowest score that may be shown
    if not allowed:
        return float(distinct[0])
    highest_left_out = distinct[allowed - 1]
    above = np.nextafter(highest_left_out, np.inf)
    return float(above if allowed == len(distinct) else max(above, (highest_left_out + distinct[allowed]) / 2))
