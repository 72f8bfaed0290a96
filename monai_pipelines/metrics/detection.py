"""All metrics of a detector at once, and the ROC AUC of its images, with and without lesions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.metrics.average_precision import IOUS, MAX_DETECTIONS, AveragePrecision, Sizes
from monai_pipelines.metrics.boxes import Array, Detections, Indices, Lesions, Study, checked_study
from monai_pipelines.metrics.class_summary import ClassMetrics, summary
from monai_pipelines.metrics.froc import RATES, Froc
from monai_pipelines.metrics.roc_auc import Ranking, ranking_metrics

MAIN_METRICS = (*(f"sensitivity_at_{rate:g}" for rate in RATES), "cpm", "ap", "ap50", "ap75", "image_roc_auc")
"""Of those of `detection_metrics`, without the AP at every IoU and size."""


def detection_metrics(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    groups: Sequence[Hashable] | None = None,
    *,
    iou: float | None = None,
    sizes: Sizes | None = None,
    num_classes: int = 1,
    num_images: int | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the metrics of :func:`froc`, :func:`average_precision` and :func:`image_roc_auc`.

    Args:
        detections, lesions: one of each for every image.
        groups: patient of each image; None: one image per patient.
        iou, num_images: as in :func:`froc`.
        sizes: as in :func:`average_precision`.
        num_classes: labels are 0..C-1.
        num_resamples, seed: of the bootstrap; 0 resamples: no intervals.

    Returns:
        Plain data: ``num_images``; ``num_lesions``, without ignored findings; ``num_ignored``; ``metrics``,
        ``intervals``, ``per_class`` (with ``num_lesions``) and ``per_class_intervals`` as those of :func:`froc`.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> lesions = [Lesions([[0, 0, 8, 8]]), Lesions([])] * 5
        >>> found = [Detections([[1, 0, 9, 8]], [0.9]), Detections([[40, 0, 48, 8]], [0.3])] * 5
        >>> result = detection_metrics(found, lesions)
        >>> result["num_lesions"], result["metrics"]["cpm"], result["metrics"]["ap50"], result["intervals"]["ap50"][1]
        (5, 1.0, 1.0, 1.0)
    """
    study = checked_study(detections, lesions, groups, num_classes, num_images)
    parts = [summary(metrics, study.num_groups, num_resamples, seed) for metrics in metrics_of_study(study, iou, sizes)]
    of_class = study.num_lesions().sum(axis=1).tolist()
    return {
        "num_images": len(study.group),
        "num_lesions": sum(of_class),
        "num_ignored": int(study.ignore.sum()),
        "metrics": _merged([part["metrics"] for part in parts]),
        "intervals": _merged([part["intervals"] for part in parts]),
        "per_class": [
            {"num_lesions": num, **_merged([part["per_class"][k] for part in parts])} for k, num in enumerate(of_class)
        ],
        "per_class_intervals": [
            _merged([part["per_class_intervals"][k] for part in parts]) for k in range(num_classes)
        ],
    }


def metrics_of_study(study: Study, iou: float | None = None, sizes: Sizes | None = None) -> tuple[ClassMetrics, ...]:
    """All of `detection_metrics`, as functions of the weights of patients."""
    return Froc(study, iou, RATES), AveragePrecision(study, IOUS, sizes, MAX_DETECTIONS), _ImageRocAuc(study)


def image_roc_auc(
    detections: Sequence[Detections],
    lesions: Sequence[Lesions],
    groups: Sequence[Hashable] | None = None,
    *,
    num_classes: int = 1,
    num_images: int | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """ROC AUC of the highest score of an image, with 95% intervals by patient.

    For each class: how often an image with lesions of the class has a higher score than one without, wherever its
    detections lie; an image without detections is below all others, and a tie counts half. Images whose findings of the
    class are all ignored are left out.

    Args:
        detections, lesions, groups, num_classes, num_images, num_resamples, seed: as in :func:`froc`.

    Returns:
        ``metrics``: ``image_roc_auc``, the mean over the classes where it is defined; None if there are no images with
        lesions, or none without. ``intervals``, ``per_class``, ``per_class_intervals``: as those of :func:`froc`, on
        the fewer of the patients with images of either kind.

    Raises:
        ValueError: as :func:`froc`.

    Example:
        >>> lesions = [Lesions([[0, 0, 8, 8]]), Lesions([]), Lesions([])]
        >>> found = [Detections([[1, 0, 9, 8]], [0.6]), Detections([], []), Detections([[1, 0, 9, 8]] * 2, [0.2, 0.7])]
        >>> image_roc_auc(found, lesions, num_resamples=0)["metrics"]
        {'image_roc_auc': 0.5}
    """
    study = checked_study(detections, lesions, groups, num_classes, num_images)
    return summary(_ImageRocAuc(study), study.num_groups, num_resamples, seed)


class _ImageRocAuc:
    def __init__(self, study: Study) -> None:
        self.rankings: list[tuple[Indices, Ranking] | None] = []
        sides = []
        for k in range(study.num_classes):
            of_class = study.lesion_label == k
            positive, ignored = (
                np.isin(np.arange(len(study.group)), study.lesion_image[of_class & side])
                for side in (~study.ignore, study.ignore)
            )
            kept = positive | ~ignored
            best = np.full(len(study.group), -np.inf)
            np.maximum.at(best, study.image[study.label == k], study.score[study.label == k])
            rank = np.unique(best, return_inverse=True)[1].astype(np.float64)  # finite, also without a detection
            present, group = np.unique(study.group[kept], return_inverse=True)
            both = positive[kept].any() and not positive[kept].all()
            self.rankings.append((present, Ranking(rank[kept], positive[kept], group)) if both else None)
            sides.append(
                [np.bincount(study.group[side], minlength=study.num_groups) for side in (positive, kept & ~positive)]
            )
        self.positive, self.negative = np.moveaxis(np.array(sides), 1, 0)  # (C, G) images
        self.num_patients: dict[str, Indices] = {
            "image_roc_auc": np.minimum((self.positive > 0).sum(1), (self.negative > 0).sum(1))
        }

    def __call__(self, weights: NDArray[Any]) -> dict[str, Array]:
        values = np.full((len(self.rankings), weights.shape[1]), np.nan)
        for k, entry in enumerate(self.rankings):
            if entry is not None:
                present, ranking = entry
                counts = (side[[k]] @ weights for side in (self.positive, self.negative))
                values[k] = ranking_metrics([ranking], weights[present], *counts)["roc_auc"][0]
        return {"image_roc_auc": values}


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
