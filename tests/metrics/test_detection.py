from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_pipelines.metrics import (
    Detections,
    Lesions,
    average_precision,
    detection_metrics,
    froc,
    image_roc_auc,
    sensitivity_at,
)
from tests.metrics.detection_studies import clustered_images, random_images

EMPTY = Detections([], [])
BOX = [0, 0, 4, 4]


def _reference_image_roc_auc(detections, lesions, label):
    scores, truth = [], []
    for marks, one in zip(detections, lesions, strict=True):
        of_class = one.labels == label
        if not of_class.any() or (of_class & ~one.ignore).any():
            truth.append(bool((of_class & ~one.ignore).any()))
            scores.append(max(marks.scores[marks.labels == label], default=-1))
    return float(roc_auc_score(truth, scores)) if len(set(truth)) == 2 else None


@pytest.mark.parametrize("num_classes", [1, 3])
def test_image_roc_auc_equals_scikit_learn(num_classes):
    undefined = 0
    for seed in range(60):
        images = random_images(seed, 1 + seed % 12, num_classes)
        got = image_roc_auc(*images[:2], num_classes=num_classes, num_resamples=0)
        for label, part in enumerate(got["per_class"]):
            wanted = _reference_image_roc_auc(*images[:2], label)
            undefined += wanted is None
            assert part["image_roc_auc"] == (wanted and pytest.approx(wanted))
    assert undefined


def test_images_with_ignored_findings_only_are_left_out():
    lesions = [Lesions([BOX]), Lesions([]), Lesions([BOX], ignore=[True])]
    detections = [Detections([BOX], [0.5]), Detections([BOX], [0.4]), Detections([BOX], [0.9])]
    assert image_roc_auc(detections, lesions, num_resamples=0)["metrics"]["image_roc_auc"] == 1


def test_image_roc_auc_of_repeated_patients():
    """Ten copies of an image are one patient; by image the interval would be far too narrow."""
    images = clustered_images(4, 40)
    copies = [part * 10 for part in images[:2]]
    once = image_roc_auc(*images[:2])["intervals"]["image_roc_auc"]
    by_patient = image_roc_auc(*copies, [*range(len(images.patients))] * 10)["intervals"]["image_roc_auc"]
    by_image = image_roc_auc(*copies)["intervals"]["image_roc_auc"]
    assert by_patient == pytest.approx(once)
    assert np.ptp(by_patient) > 2.5 * np.ptp(by_image)


@pytest.mark.parametrize("num_dims", [2, 3])
def test_all_metrics_are_those_of_each_function(num_dims):
    images = random_images(1, 20, 2, num_dims)
    options = {"num_classes": 2, "num_resamples": 40, "seed": 3}
    result = detection_metrics(*images, **options)
    parts = [function(*images, **options) for function in (froc, average_precision, image_roc_auc)]
    for key in ("metrics", "intervals"):
        assert result[key] == {name: value for part in parts for name, value in part[key].items()}
    for label in range(2):
        num = sum(int(((one.labels == label) & ~one.ignore).sum()) for one in images.lesions)
        assert result["per_class"][label].pop("num_lesions") == num
        for key in ("per_class", "per_class_intervals"):
            assert result[key][label] == {name: value for part in parts for name, value in part[key][label].items()}
    assert result["num_images"] == 20
    assert result["num_lesions"] + result["num_ignored"] == sum(len(one.boxes) for one in images.lesions)
    assert result["intervals"]["cpm"][0] < result["metrics"]["cpm"] < result["intervals"]["cpm"][1]


def test_results_are_plain_data_without_nan():
    for images in (random_images(2, 6, 3), ([EMPTY] * 2, [Lesions([])] * 2, "ab")):
        for iou in (None, 0.3):
            result = detection_metrics(*images, iou=iou, num_classes=3, num_images=9, num_resamples=20)
            assert json.loads(json.dumps(result, allow_nan=False)) == result
            assert result["num_images"] == 9
            assert -1 not in [value for part in [result["metrics"], *result["per_class"]] for value in part.values()]


def test_lists_arrays_and_float32_are_the_same():
    images = random_images(6, 10)
    lists = [[type(one)(*[column.tolist() for column in one]) for one in part] for part in images[:2]]
    floats = [[one._replace(boxes=one.boxes.astype(np.float32)) for one in part] for part in images[:2]]
    wanted = detection_metrics(*images[:2], num_resamples=0)
    assert detection_metrics(*lists, num_resamples=0) == detection_metrics(*floats, num_resamples=0) == wanted


def test_defaults_are_class_0_and_nothing_ignored():
    full = [Detections([BOX], [0.5], [0])], [Lesions([BOX], [0], [False])]
    short = [Detections([BOX], [0.5])], [Lesions([BOX])]
    assert detection_metrics(*full, num_resamples=0) == detection_metrics(*short, num_resamples=0)


def test_resamples_depend_on_the_seed_and_patients_only():
    images = clustered_images(5, 30)
    first = detection_metrics(*images, num_resamples=50)
    assert first == detection_metrics(*images[:2], [f"patient {k}" for k in images.patients], num_resamples=50)
    assert first["intervals"]["cpm"] != detection_metrics(*images, num_resamples=50, seed=1)["intervals"]["cpm"]


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (Detections([BOX], [math.nan]), Lesions([]), "detections of image 1: scores must be finite, got nan"),
        (Detections([BOX], [math.inf]), Lesions([]), "scores must be finite, got inf"),
        (Detections([[0, 0, math.nan, 4]], [0.5]), Lesions([]), r"detections of image 1: boxes must be finite, got \["),
        (EMPTY, Lesions([[0, 0, math.inf, 4]]), "lesions of image 1: boxes must be finite"),
        (Detections([[0, 4, 4, 0]], [0.5]), Lesions([]), "detections of image 1: no box may end before it starts"),
        (EMPTY, Lesions([[0, 4, 4, 0]]), "lesions of image 1: no box may end where it starts or before"),
        (EMPTY, Lesions([[0, 4, 4, 4]]), r"got \[0.0, 4.0, 4.0, 4.0\] \(wanted all minima, then all maxima\)"),
        (EMPTY, Lesions([BOX], [1]), r"image 1: labels must be 0..0 \(num_classes 1\), got 1"),
        (Detections([BOX], [0.5], [-1]), Lesions([]), "got -1"),
        (Detections([BOX], [0.5], [0.5]), Lesions([]), "got 0.5"),
        (EMPTY, Lesions([BOX], [math.nan]), "got nan"),
        (
            Detections([BOX], [0.5, 0.6]),
            Lesions([]),
            r"image 1: wanted boxes \(N, 4\) or \(N, 6\), .* got \(1, 4\), \(2,\)",
        ),
        (EMPTY, Lesions([[0, 0, 4, 4, 5]]), r"got \(1, 5\)"),
        (EMPTY, Lesions(BOX), r"got \(4,\)"),
        (EMPTY, Lesions([], ignore=[True]), r"got \(0,\), \(0,\), \(1,\)"),
        (Detections([[0, 0, 0, 1, 1, 1]], [0.5]), Lesions([BOX]), "boxes of detections have 6 columns, of lesions 4"),
    ],
)
@pytest.mark.parametrize(
    "function", [froc, average_precision, image_roc_auc, lambda *images: sensitivity_at(*images, threshold=0.5)]
)
def test_bad_images_are_refused(found, truth, message, function):
    with pytest.raises(ValueError, match=message):
        function([EMPTY, found], [Lesions([]), truth])


def test_2d_and_3d_do_not_mix():
    with pytest.raises(ValueError, match="lesions: boxes have 4 columns in some images, 6 in others"):
        froc([EMPTY] * 2, [Lesions([BOX]), Lesions([[0, 0, 0, 1, 1, 1]])])


@pytest.mark.parametrize(
    ("detections", "lesions", "groups", "got"),
    [(0, 0, None, "0, 0 and no patients"), (2, 1, None, "2, 1 and no patients"), (2, 2, "a", "2, 2 and 1")],
)
def test_wrong_numbers_of_images_are_refused(detections, lesions, groups, got):
    with pytest.raises(ValueError, match=f"of one length, 1 or more, got {got}"):
        froc([EMPTY] * detections, [Lesions([])] * lesions, groups)


@pytest.mark.slow
def test_a_thousand_images_take_seconds():
    """With 100 detections each; a quiet core needs 0.6 s without intervals and 4 s with 1,000 resamples."""
    rng = np.random.default_rng(0)
    detections, lesions = [], []
    for _ in range(1000):
        corners = rng.uniform(0, 500, (100, 2))
        boxes = np.hstack([corners, corners + rng.uniform(10, 80, (100, 2))])
        lesions.append(Lesions(boxes[: rng.poisson(2)]))
        detections.append(Detections(boxes + rng.normal(0, 2, (100, 1)), rng.random(100)))
    start = time.perf_counter()
    detection_metrics(detections, lesions, num_resamples=0)
    middle = time.perf_counter()
    detection_metrics(detections, lesions, num_resamples=200)
    assert middle - start < 5
    assert time.perf_counter() - middle < 20
