from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from monai_pipelines.metrics import Detections, Lesions, choose_operating_threshold, froc_curve, sensitivity_at
from tests.metrics.detection_studies import clustered_images, random_images

EMPTY = Detections([], [])
LESIONS = [Lesions([[0, 0, 10, 10]]), Lesions([])]


def _found(hits=(), misses=()):
    return Detections([[4, 4, 6, 6]] * len(hits) + [[40, 40, 42, 42]] * len(misses), [*hits, *misses])


@pytest.mark.parametrize("rate", [0, 0.2, 1, 1.5, 100])
def test_lowest_score_that_keeps_to_the_rate(rate):
    """On the validation set itself; the next lower score would exceed the rate."""
    for seed in range(60):
        images = random_images(seed, 1 + seed % 8, decimals=1 + seed % 2)
        (threshold,) = choose_operating_threshold(*images[:2], rate)
        curve = froc_curve(*images[:2])
        if threshold is None:
            assert not any(len(one.boxes) for one in images.detections)
            continue
        shown = curve.threshold >= threshold
        assert curve.false_positives_per_image[shown].max() <= rate
        assert (curve.false_positives_per_image[~shown] > rate).all()
        metrics = sensitivity_at(*images[:2], threshold, num_resamples=0)["metrics"]
        assert metrics["false_positives_per_image"] == pytest.approx(curve.false_positives_per_image[shown][-1])
        assert metrics["sensitivity"] == (None if math.isnan(curve.sensitivity[0]) else curve.sensitivity[shown][-1])


@pytest.mark.parametrize(
    ("hits", "misses", "rate", "threshold"),
    [
        ([0.9, 0.3], [0.5, 0.1], 0.5, 0.2),
        ([0.9, 0.3], [0.5, 0.1], 0.4, 0.7),
        ([0.9, 0.3], [0.5, 0.1], 1, 0.1),
        ([0.3], [0.5], 0, np.nextafter(0.5, 1)),
        ([0.5, 0.8], [0.5], 0, 0.65),
        ([0.5], [], 0, 0.5),
        ([], [-3, -4, -5], 0.5, -3.5),
        ([], [], 0.5, None),
    ],
)
def test_threshold_lies_midway_between_scores(hits, misses, rate, threshold):
    chosen = choose_operating_threshold([_found(hits, misses), EMPTY], LESIONS, rate)
    assert chosen == [threshold and pytest.approx(threshold, abs=1e-12)]


def test_neighboring_scores_are_told_apart():
    """Between two adjacent numbers there is nothing midway."""
    low = 0.5
    high = np.nextafter(low, 1)
    assert choose_operating_threshold([_found([high], [low]), EMPTY], LESIONS, 0) == [high]


def test_number_of_images_may_be_stated():
    found = [_found([0.9], [0.8, 0.6, 0.4]), EMPTY]
    assert choose_operating_threshold(found, LESIONS, 0.25) == [pytest.approx(0.85)]
    assert choose_operating_threshold(found, LESIONS, 0.25, num_images=8) == [pytest.approx(0.5)]
    metrics = sensitivity_at(found, LESIONS, 0.5, num_images=8, num_resamples=0)["metrics"]
    assert metrics == {"sensitivity": 1, "false_positives_per_image": 0.25}


def test_each_class_has_its_threshold():
    lesions = [Lesions([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 1])]
    found = [Detections([[4, 4, 6, 6], [40, 4, 42, 6]] * 2, [0.9, 0.7, 0.4, 0.2], [0, 0, 1, 1])]
    thresholds = choose_operating_threshold(found, lesions, 0, num_classes=3)
    assert thresholds == [pytest.approx(0.8), pytest.approx(0.3), None]
    result = sensitivity_at(found, lesions, thresholds, num_classes=3, num_resamples=0)
    assert [part["sensitivity"] for part in result["per_class"]] == [1, 1, None]
    assert [part["false_positives_per_image"] for part in result["per_class"]] == [0, 0, 0]
    assert result["metrics"] == {"sensitivity": 1, "false_positives_per_image": 0}
    one = sensitivity_at(found, lesions, 0.8, num_classes=3, num_resamples=0)
    assert [part["sensitivity"] for part in one["per_class"]] == [1, 0, None]


def test_hits_by_intersection_over_union():
    """A small box inside hits by its center only."""
    found = [_found([0.9]), EMPTY]
    assert choose_operating_threshold(found, LESIONS, 0) == [0.9]
    assert choose_operating_threshold(found, LESIONS, 0, iou=0.5) == [pytest.approx(0.9)]
    assert sensitivity_at(found, LESIONS, 0.9, iou=0.5, num_resamples=0)["metrics"] == {
        "sensitivity": 0,
        "false_positives_per_image": 0.5,
    }


def test_intervals_equal_the_formula():
    """Ratio of sums over patients, linearized, in place of the bootstrap."""
    images = clustered_images(3, 150)
    result = sensitivity_at(*images[:2], 0.5, images.patients, num_resamples=4000)
    patient, rows = np.array(images.patients), {}
    for name, (parts, wholes) in {
        "sensitivity": [_per_image(images, found=True), [len(one.boxes) for one in images.lesions]],
        "false_positives_per_image": [_per_image(images, found=False), np.ones(len(patient))],
    }.items():
        part, whole = np.bincount(patient, list(parts)), np.bincount(patient, wholes)
        value = part.sum() / whole.sum()
        std = np.sqrt(((part - value * whole) ** 2).sum()) / whole.sum()
        rows[name] = value, std, np.count_nonzero(whole)
    assert result["metrics"] == pytest.approx({name: value for name, (value, *_) in rows.items()})
    for name, (value, std, num) in rows.items():
        reach = std * stats.t(num - 1).ppf(0.975) * np.sqrt(num / (num - 1)) * np.array([-1, 1])
        if name == "sensitivity":
            wanted = 1 / (1 + np.exp(-(np.log(value / (1 - value)) + reach / value / (1 - value))))
        else:
            wanted = value * np.exp(reach / value)
        assert result["intervals"][name] == pytest.approx(wanted, abs=0.1 * std)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def _per_image(images, found):
    """Lesions found, or false positives, at 0.5; lesions and false positives lie far apart in these studies."""
    for marks, truth in zip(images.detections, images.lesions, strict=True):
        boxes = np.asarray(marks.boxes)[np.asarray(marks.scores) >= 0.5].reshape(-1, 4)
        centers, truth_centers = (
            (part[:, :2] + part[:, 2:]) / 2 for part in (boxes, np.asarray(truth.boxes).reshape(-1, 4))
        )
        near = np.linalg.norm(centers[:, None] - truth_centers, axis=2) < 20
        yield near.any(axis=0).sum() if found else (~near.any(axis=1)).sum()


def test_undefined_values():
    result = sensitivity_at([EMPTY] * 3, [Lesions([])] * 3, 0.5, num_resamples=20)
    assert result["metrics"] == {"sensitivity": None, "false_positives_per_image": 0}
    assert result["intervals"] == {}
    assert sensitivity_at([_found([0.9])] * 3, LESIONS[:1] * 3, [None], num_resamples=0)["metrics"]["sensitivity"] == 0


@pytest.mark.parametrize("threshold", [math.nan, [0.5, 0.5], []])
def test_bad_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match="wanted one threshold or 1, got"):
        sensitivity_at([EMPTY], [Lesions([])], threshold)


@pytest.mark.parametrize("rate", [-1, math.nan, math.inf])
def test_bad_rates_are_refused(rate):
    with pytest.raises(ValueError, match="a rate of 0 or more, got"):
        choose_operating_threshold([EMPTY], [Lesions([])], rate)
