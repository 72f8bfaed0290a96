"""Studies of lesions and detections, drawn at random."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monai_pipelines.metrics import Detections, Lesions


class Images(NamedTuple):
    detections: list[Detections]
    lesions: list[Lesions]
    patients: list[int]


def random_images(seed, num_images=8, num_classes=1, num_dims=2, decimals=1, step=8) -> Images:
    """Boxes on a coarse grid and rounded scores: empty images, ties, double hits, ignored findings."""
    rng = np.random.default_rng(seed)
    detections, lesions = [], []
    for _ in range(num_images):
        num, extra = rng.poisson(1.5), rng.poisson(2)
        truth = _boxes(rng, num, num_dims, step)
        hits = truth[rng.integers(num, size=rng.poisson(2 * num))] if num else truth
        hits = hits + step * rng.integers(-1, 2, hits.shape) * (rng.random((len(hits), 1)) < 0.6)
        hits = hits[(hits[:, :num_dims] < hits[:, num_dims:]).all(axis=1)]
        boxes = np.concatenate([hits, _boxes(rng, extra, num_dims, step)])
        scores = rng.random(len(boxes)).round(decimals)
        lesions.append(Lesions(truth, rng.integers(num_classes, size=num), rng.random(num) < 0.2))
        detections.append(Detections(boxes, scores, rng.integers(num_classes, size=len(boxes))))
    return Images(detections, lesions, rng.integers(max(2, num_images // 2), size=num_images).tolist())


def _boxes(rng, num, num_dims, step):
    low = rng.integers(0, 20, (num, num_dims))
    return step * np.concatenate([low, low + rng.integers(1, 17, (num, num_dims))], axis=1).astype(float)


def clustered_images(seed, num_patients=100) -> Images:
    """1 to 3 images per patient: 0 to 3 lesions each, how visible they are and the false positives vary by patient."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    rate = rng.choice([0, 0.5, 1.5], num_patients)[patients]
    visible, noisy = rng.normal(1.2, 0.8, num_patients)[patients], rng.gamma(2, 1.0, num_patients)[patients]
    num_lesions = rng.poisson(rate).clip(max=3)
    num_false = rng.poisson(noisy)
    detections, lesions = [], []
    for k in range(len(patients)):
        corner = 100.0 * np.arange(num_lesions[k])[:, None] * [1, 0]
        lesions.append(Lesions(np.hstack([corner, corner + 40])))
        shown = corner[rng.random(num_lesions[k]) < 0.9]
        shift = rng.gamma(2, 4, (len(shown), 1)) * [1, 0]
        false = np.full((num_false[k], 2), 1000.0)
        boxes = np.concatenate([shown + shift, false])
        scores = rng.normal(size=len(boxes))
        scores[: len(shown)] += visible[k]
        detections.append(Detections(np.hstack([boxes, boxes + 40]), scores))
    return Images(detections, lesions, patients.tolist())
