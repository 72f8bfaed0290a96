from __future__ import annotations

import math

import numpy as np
import pytest

from monai_pipelines.metrics import Detections, Lesions, froc, froc_curve
from monai_pipelines.metrics.boxes import checked_study
from monai_pipelines.metrics.froc import RATES, Froc
from tests.metrics.detection_studies import random_images

NAMES = [f"sensitivity_at_{rate:g}" for rate in RATES]
EMPTY = Detections([], [])


def _reference_hits(box, lesion, ignored, iou):
    """Axis by axis, from centers and diameters."""
    num = len(box) // 2
    if iou is None:
        distance = 0
        for k in range(num):
            radius = (lesion[num + k] - lesion[k]) / 2
            distance += ((box[k] + box[num + k] - lesion[k] - lesion[num + k]) / 2 / radius) ** 2
        return distance < 1 - 1e-12
    common = volume = other = 1.0
    for k in range(num):
        common *= max(0.0, min(box[num + k], lesion[num + k]) - max(box[k], lesion[k]))
        volume *= box[num + k] - box[k]
        other *= lesion[num + k] - lesion[k]
    return common / (volume if ignored else volume + other - common) >= iou


def _reference_froc(detections, lesions, rates, iou=None, label=0, num_images=None):
    """Count anew at every threshold; None without lesions."""
    thresholds = sorted({score for one in detections for score in one.scores}, reverse=True)
    points = [(0.0, 0)]
    total = sum(int(((one.labels == label) & ~one.ignore).sum()) for one in lesions)
    for threshold in thresholds:
        found = false = 0
        for marks, truth in zip(detections, lesions, strict=True):
            nodules = [j for j in range(len(truth.boxes)) if truth.labels[j] == label]
            hit = set()
            for box, score, of in zip(marks.boxes, marks.scores, marks.labels, strict=True):
                if of != label or score < threshold:
                    continue
                here = [j for j in nodules if _reference_hits(box, truth.boxes[j], truth.ignore[j], iou)]
                hit |= {j for j in here if not truth.ignore[j]}
                false += not here
            found += len(hit)
        points.append((false / (num_images or len(lesions)), found))
    if not total:
        return None
    sensitivities = []
    for wanted in rates:
        before = max(k for k, (rate, _) in enumerate(points) if rate <= wanted)
        (rate, found), (next_rate, next_found) = points[before], (points + [(math.inf, 0)])[before + 1]
        slope = 0 if next_rate == math.inf else (next_found - found) / (next_rate - rate)
        sensitivities.append((found + (wanted - rate) * slope) / total)
    return sensitivities


@pytest.mark.parametrize("iou", [None, 0.2, 0.5])
@pytest.mark.parametrize("num_dims", [2, 3])
def test_froc_equals_the_rule_counted_at_every_threshold(num_dims, iou):
    undefined = 0
    for seed in range(200 if iou is None else 50):
        images = random_images(seed, num_images=1 + seed % 8, num_classes=1 + seed % 2, num_dims=num_dims)
        got = froc(images.detections, images.lesions, iou=iou, num_classes=1 + seed % 2, num_resamples=0)
        for label, part in enumerate(got["per_class"]):
            wanted = _reference_froc(images.detections, images.lesions, RATES, iou, label)
            if wanted is None:
                undefined += 1
                assert set(part.values()) == {None}
            else:
                assert [part[name] for name in NAMES] == pytest.approx(wanted, abs=1e-9)
                assert part["cpm"] == pytest.approx(np.mean(wanted), abs=1e-9)
    assert undefined


def test_random_images_have_what_is_to_be_tested():
    """Nothing in an image, ties across images, double hits, detections in two lesions or in an ignored one only."""
    kinds = dict.fromkeys(["no lesion", "no detection", "tie", "double", "two lesions", "ignored only"], 0)
    for seed in range(50):
        images = random_images(seed)
        scores = [set(one.scores) for one in images.detections]
        kinds["tie"] += bool(scores[0] & scores[1])
        for marks, truth in zip(images.detections, images.lesions, strict=True):
            kinds["no lesion"] += not len(truth.boxes)
            kinds["no detection"] += not len(marks.boxes)
            hits = np.array([[_reference_hits(m, t, False, None) for t in truth.boxes] for m in marks.boxes])
            if hits.size:
                kinds["double"] += (hits[:, ~truth.ignore].sum(axis=0) > 1).any()
                kinds["two lesions"] += (hits[:, ~truth.ignore].sum(axis=1) > 1).any()
                kinds["ignored only"] += (hits.any(axis=1) & ~hits[:, ~truth.ignore].any(axis=1)).any()
    assert min(kinds.values()) > 5, kinds


def _at(center, diameter=2.0):
    return [*(value - diameter / 2 for value in center), *(value + diameter / 2 for value in center)]


def test_worked_by_hand():
    """4 images, 3 lesions; from the top: a hit, a false positive, a second hit of the same, two false ones, a hit."""
    lesions = [Lesions([_at((10, 10), 8), _at((40, 40), 8)]), Lesions([_at((5, 5), 4)]), Lesions([]), Lesions([])]
    detections = [
        Detections([_at((11, 11)), _at((12, 10)), _at((41, 41))], [0.9, 0.7, 0.4]),
        Detections([_at((20, 20))], [0.8]),
        Detections([_at((1, 1)), _at((9, 9))], [0.6, 0.5]),
        EMPTY,
    ]
    metrics = froc(detections, lesions, rates=(0.125, 0.25, 0.5, 0.74, 0.75, 3), num_resamples=0)["metrics"]
    wanted = [1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3]
    assert list(metrics.values()) == pytest.approx([*wanted, np.mean(wanted)])
    curve = froc_curve(detections, lesions)
    assert curve.threshold.tolist() == [math.inf, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert curve.false_positives_per_image.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.75, 0.75]
    assert curve.sensitivity == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3])


def test_hits_are_nearer_than_the_radius():
    """Distance 5 of radius 5 is no hit (3-4-5, and along an axis), as in LUNA16's script; less is one."""
    for num_dims in (2, 3):
        lesions = [Lesions([_at((50,) * num_dims, 10)])]
        for offset, hit in (((3, 4), False), ((5, 0), False), ((0, 4.99), True), ((3, 3.9), True)):
            box = _at([50 + value for value in (*offset, 0)[:num_dims]])
            value = froc([Detections([box], [0.5])], lesions, rates=[1e-6], num_resamples=0)["metrics"]["cpm"]
            assert value == hit, (num_dims, offset)


def test_unequal_sides_are_an_ellipse():
    lesions = [Lesions([[0, 0, 10, 40]])]
    for center, hit in (((5, 38), True), ((9.9, 20), True), ((10.1, 20), False), ((9, 36), False)):
        value = froc([Detections([_at(center)], [0.5])], lesions, rates=[1e-6], num_resamples=0)["metrics"]["cpm"]
        assert value == hit, center


def test_one_detection_finds_both_lesions_it_lies_in():
    lesions = [Lesions([[0, 0, 10, 10], [2, 0, 12, 10]])]
    metrics = froc([Detections([[5, 4, 7, 6]], [0.5])], lesions, num_resamples=0)["metrics"]
    assert set(metrics.values()) == {1}


def test_ignored_findings_count_neither_way():
    """Any number of hits; but a detection that lies in a lesion too has found that."""
    lesions = [Lesions([[0, 0, 10, 10], [4, 0, 14, 10], [50, 50, 60, 60]], ignore=[True, False, True])]
    only_ignored = Detections([[1, 4, 2, 6], [2, 4, 3, 6], [54, 54, 56, 56]], [0.9, 0.8, 0.7])
    curve = froc_curve([only_ignored], lesions)
    assert (curve.false_positives_per_image[-1], curve.sensitivity[-1]) == (0, 0)
    both = Detections([[6, 4, 8, 6]], [0.9])
    curve = froc_curve([both], lesions)
    assert (curve.false_positives_per_image[-1], curve.sensitivity[-1]) == (0, 1)


def test_equal_scores_enter_together_whatever_the_order():
    """A hit and a false positive of one score lie on a slope: half way at half the false positives."""
    lesions = [Lesions([[0, 0, 10, 10]]), Lesions([])]
    hit, miss = Detections([[4, 4, 6, 6]], [0.5]), Detections([[4, 4, 6, 6]], [0.5])
    for detections, truth in (([hit, miss], lesions), ([miss, hit], lesions[::-1])):
        values = froc(detections, truth, rates=(0.125, 0.25, 0.5, 1), num_resamples=0)["metrics"]
        assert list(values.values())[:4] == [0.25, 0.5, 1, 1]
    images = random_images(3, 20)
    order = np.random.default_rng(0).permutation(20)
    shuffled = [[part[k] for k in order] for part in images[:2]]
    assert froc(*shuffled, num_resamples=0) == froc(*images[:2], num_resamples=0)


def test_images_without_lesions_count_and_need_not_be_listed():
    images = random_images(5, 12)
    few = froc(images.detections, images.lesions, num_resamples=0)
    listed = [*images.detections, *[EMPTY] * 30], [*images.lesions, *[Lesions([])] * 30]
    stated = froc(images.detections, images.lesions, images.patients, num_images=42, num_resamples=100)
    assert stated == froc(*listed, [*images.patients, *range(100, 130)], num_resamples=100)
    assert stated["metrics"]["sensitivity_at_0.125"] > few["metrics"]["sensitivity_at_0.125"]
    wanted = _reference_froc(images.detections, images.lesions, RATES, num_images=42)
    assert [stated["metrics"][name] for name in NAMES] == pytest.approx(wanted)
    assert froc_curve(*images[:2], num_images=42).false_positives_per_image[-1] == pytest.approx(
        froc_curve(*images[:2]).false_positives_per_image[-1] * 12 / 42
    )


@pytest.mark.parametrize(
    ("lesions", "found", "wanted"),
    [
        (Lesions([]), EMPTY, None),
        (Lesions([]), Detections([[0, 0, 1, 1]], [0.5]), None),
        (Lesions([[0, 0, 4, 4]], ignore=[True]), Detections([[1, 1, 3, 3]], [0.5]), None),
        (Lesions([[0, 0, 4, 4]]), EMPTY, 0),
        (Lesions([[0, 0, 4, 4]]), Detections([[1, 1, 3, 3]], [-7]), 1),
        (Lesions([[0, 0, 0, 4, 4, 4]]), Detections([[1, 1, 1, 3, 3, 3]], [-7]), 1),
    ],
)
@pytest.mark.parametrize("iou", [None, 0.1])
def test_values_where_little_or_nothing_is_there(lesions, found, wanted, iou):
    result = froc([found] * 3, [lesions] * 3, iou=iou, num_resamples=50)
    assert result["metrics"] == result["per_class"][0] == dict.fromkeys([*NAMES, "cpm"], wanted)
    exact = {0: [0, 1 - 0.025 ** (1 / 3)], 1: [0.025 ** (1 / 3), 1]}
    assert result["intervals"] == (
        {} if wanted is None else {name: pytest.approx(exact[wanted]) for name in result["metrics"]}
    )


def test_average_is_over_classes_with_lesions():
    """Class 2 has a detection, but no lesion."""
    lesions = [Lesions([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])]
    detections = [Detections([[4, 4, 6, 6], [24, 24, 26, 26], [4, 4, 6, 6]], [0.9, 0.8, 0.7], [0, 2, 2])]
    result = froc(detections, lesions, num_classes=3, num_resamples=0)
    assert [part["cpm"] for part in result["per_class"]] == [1, 0, None]
    assert result["metrics"]["cpm"] == 0.5


def test_interval_of_an_average_rests_on_the_classes_with_lesions():
    images = random_images(12, 40, 2)
    two, three = (froc(*images, num_classes=num, num_resamples=200) for num in (2, 3))
    assert len(two["intervals"]) == 8
    assert three["intervals"] == two["intervals"]
    assert three["per_class_intervals"] == [*two["per_class_intervals"], {}]


def test_lesions_of_a_single_patient_have_no_interval():
    """Also where they occur in none of the resamples."""
    lesions = [Lesions([[0, 0, 10, 10], [20, 20, 30, 30]]), *[Lesions([])] * 5]
    detections = [Detections([[4, 4, 6, 6]], [0.9]), *[EMPTY] * 5]
    for seed in range(30):
        result = froc(detections, lesions, num_resamples=2, seed=seed)
        assert (result["metrics"]["cpm"], result["intervals"]) == (0.5, {})


def test_weights_equal_repeated_images():
    images = random_images(11, 30, decimals=6)
    study = checked_study(*images)
    weights = np.random.default_rng(0).multinomial(
        study.num_groups, np.full(study.num_groups, 1 / study.num_groups), 20
    )
    values = Froc(study, None, RATES)(weights.T)
    index = {patient: k for k, patient in enumerate(dict.fromkeys(images.patients))}
    for r, often in enumerate(weights):
        rows = [k for k, patient in enumerate(images.patients) for _ in range(often[index[patient]])]
        again = froc([images.detections[k] for k in rows], [images.lesions[k] for k in rows], num_resamples=0)
        assert {name: column[0, r] for name, column in values.items()} == pytest.approx(again["metrics"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou": 0}, "iou must lie above 0 and at most at 1, got 0"),
        ({"iou": 1.5}, "got 1.5"),
        ({"rates": []}, "rates above 0, one or more"),
        ({"rates": [0, 1]}, r"got \[0, 1\]"),
        ({"num_images": 1}, "num_images is 1, but 2 images are listed"),
        ({"num_resamples": 1}, "2 resamples or more"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        froc([EMPTY] * 2, [Lesions([])] * 2, **options)
