"""The threshold baseline: bright blocks of the right size, by contrast."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_pipelines.detection import ThresholdBaseline
from monai_pipelines.metrics import Lesions, froc
from tests.detection.blobs import blobs, make_target

COUNTS = [3, 0, 2, 4, 1, 0, 3, 2]


def _cpm(baseline: ThresholdBaseline, images: Any, targets: Any) -> float:
    found: Any = [baseline.find(image) for image in images]
    value: float = froc(found, targets, num_resamples=0)["metrics"]["cpm"]
    return value


@pytest.mark.parametrize(("dims", "side"), [(2, 64), (3, 40)])
def test_blobs_are_found(dims: int, side: int) -> None:
    images, targets = blobs(dims, side, COUNTS)
    baseline = ThresholdBaseline().fit(images, targets)
    assert baseline.cpm > 0.9
    assert 0.5 < baseline.threshold < 1.3
    new, truth = blobs(dims, side, COUNTS, seed=1)
    assert _cpm(baseline, new, truth) > 0.9
    found = baseline.find(new[0])
    assert found.boxes.shape[1] == 2 * dims
    assert bool((found.scores.diff() <= 0).all())
    assert len(baseline.find(torch.zeros(1, *[side] * dims)).boxes) == 0


def test_arrays_and_lesions_give_the_same() -> None:
    images, targets = blobs(2, 64, COUNTS)
    one = ThresholdBaseline().fit(images, targets)
    arrays = [image.numpy() for image in images]
    other = ThresholdBaseline().fit(arrays, [Lesions(*(part.numpy() for part in target)) for target in targets])
    other = pickle.loads(pickle.dumps(other))
    assert (one.threshold, one.sizes, one.cpm) == (other.threshold, other.sizes, other.cpm)
    for image, array in zip(images, arrays, strict=True):
        for a, b in zip(one.find(image), other.find(array), strict=True):
            assert torch.equal(a, b)


def test_candidates_by_hand() -> None:
    """Two squares of the right size, one too small, one too large, in uneven surroundings."""
    image = np.zeros((2, 40, 60), np.float32)
    image[:, :, 30:] = 0.2
    image[:, 5:11, 5:11] = 0.9
    image[:, 5:11, 40:46] = 1.0
    image[:, 20, 5] = 1.0
    image[:, 20:38, 35:55] = 1.0
    baseline = ThresholdBaseline().fit([image], [Lesions([[5, 5, 11, 11], [5, 40, 11, 46]])])
    assert baseline.sizes == (4, 9)
    found = baseline.find(image)
    assert found.boxes.tolist() == [[5, 5, 11, 11], [5, 40, 11, 46]]
    np.testing.assert_allclose(found.scores, [0.9, 0.8], atol=1e-6)
    assert (baseline.cpm, found.labels.tolist()) == (1, [0, 0])
    assert len(ThresholdBaseline(num_boxes=1).fit([image], [Lesions([[5, 5, 11, 11]])]).find(image).boxes) == 1


def _reference_scores(image: Any, threshold: float, margin: int) -> dict[tuple[int, ...], float]:
    """Every component on the whole image."""
    components, num = ndimage.label(image >= threshold)
    scores = {}
    for number in range(1, num + 1):
        inside = components == number
        at = np.argwhere(inside)
        shell = (ndimage.distance_transform_cdt(~inside, "taxicab") <= margin) & ~inside
        box = (*at.min(axis=0).tolist(), *(at.max(axis=0) + 1).tolist())
        scores[box] = image[inside].mean() - image[shell].mean()
    return scores


@pytest.mark.parametrize(("dims", "side"), [(2, 48), (3, 20)])
def test_scores_agree_with_a_direct_computation(dims: int, side: int) -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=[side] * dims), 1.5).astype(np.float32)
    baseline = ThresholdBaseline(room=1, margin=2, num_boxes=10**6)
    baseline.threshold = float(np.quantile(image, 0.9))
    found = baseline.find(image[None])
    wanted = _reference_scores(image, baseline.threshold, 2)
    assert {tuple(map(int, box)) for box in found.boxes.tolist()} == set(wanted)
    for box, score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True):
        assert score == pytest.approx(wanted[tuple(map(int, box))], abs=1e-5)


def test_the_most_frequent_class_and_ignored_findings() -> None:
    image = np.zeros((1, 64, 64), np.float32)
    boxes = [[8, 8, 16, 16], [8, 40, 16, 48], [40, 8, 48, 16], [40, 40, 60, 60]]
    for y0, x0, y1, x1 in boxes:
        image[0, y0:y1, x0:x1] = 0.8
    target = make_target(boxes, [0, 2, 2, 0], ignored=1)
    baseline = ThresholdBaseline().fit([image], [target])
    assert (baseline.label, baseline.cpm) == (2, 1)
    assert baseline.sizes[1] == 12, "the size of an ignored finding does not count"


def test_wrong_use() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    with pytest.raises(RuntimeError, match="call fit before find"):
        ThresholdBaseline().find(image)
    with pytest.raises(ValueError, match="a lesion or more"):
        ThresholdBaseline().fit([image], [Lesions([])])
    with pytest.raises(ValueError, match="wanted lesions of 1 images, got 0"):
        ThresholdBaseline().fit([image], [])
    with pytest.raises(ValueError, match="got shape"):
        ThresholdBaseline().fit([image[0]], [Lesions([[0, 0, 4, 4]])])
    for options in ({"num_thresholds": 0}, {"room": 0.5}, {"margin": 0}, {"num_boxes": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            ThresholdBaseline(**options)
