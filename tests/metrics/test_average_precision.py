from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from monai_pipelines.metrics import Detections, Lesions, average_precision
from monai_pipelines.metrics.average_precision import IOUS, SIZES_2D, AveragePrecision
from monai_pipelines.metrics.boxes import checked_study
from tests.metrics.detection_studies import Images, random_images

EMPTY = Detections([], [])


def _coco(num_images, num_classes, annotations):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": k + 1} for k in range(num_images)],
        "categories": [{"id": k + 1} for k in range(num_classes)],
        "annotations": [{"id": k + 1, **annotation} for k, annotation in enumerate(annotations)],
    }
    coco.createIndex()
    return coco


def _annotations(images):
    for k, (boxes, labels, *_) in enumerate(images):
        for (low_y, low_x, high_y, high_x), label in zip(boxes, labels, strict=True):
            height, width = high_y - low_y, high_x - low_x
            yield {
                "image_id": k + 1,
                "category_id": int(label) + 1,
                "bbox": [low_x, low_y, width, height],
                "area": width * height,
            }


def _reference_average_precision(images, num_classes, ious=IOUS, max_detections=100):
    """pycocotools: name -> value of each class, None for -1."""
    truth = list(_annotations(images.lesions))
    for annotation, ignored in zip(truth, np.concatenate([one.ignore for one in images.lesions]), strict=True):
        annotation["iscrowd"] = int(ignored)
    found = list(_annotations([(boxes, labels) for boxes, _, labels in images.detections]))
    for annotation, score in zip(found, np.concatenate([one.scores for one in images.detections]), strict=True):
        annotation["score"] = float(score)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            *(_coco(len(images.lesions), num_classes, part) for part in (truth, found)), iouType="bbox"
        )
        evaluation.params.iouThrs = np.array(ious)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]  # overlaps, recalls, classes, sizes
    result = []
    for k in range(num_classes):
        values = {"ap": precision[:, :, k, 0].mean()}
        values |= {f"ap{100 * iou:g}": precision[t, :, k, 0].mean() for t, iou in enumerate(ious)}
        values |= {f"ap_{name}": precision[:, :, k, 1 + a].mean() for a, name in enumerate(SIZES_2D)}
        result.append({name: None if value == -1 else value for name, value in values.items()})
    return result


@pytest.mark.parametrize("num_classes", [1, 3])
def test_equals_pycocotools(num_classes):
    undefined = 0
    for seed in range(200 if num_classes == 1 else 25):
        images = random_images(seed, 1 + seed % 7, num_classes, decimals=1 + seed % 3, step=(4, 8, 1.7)[seed % 3])
        limit = 3 if seed % 5 == 0 else 100
        got = average_precision(*images[:2], num_classes=num_classes, max_detections=limit, num_resamples=0)
        wanted = _reference_average_precision(images, num_classes, max_detections=limit)
        for name in wanted[0]:
            assert [part[name] for part in got["per_class"]] == pytest.approx(
                [part[name] for part in wanted], abs=1e-9
            ), (seed, name)
            defined = [part[name] for part in wanted if part[name] is not None]
            undefined += not defined
            assert got["metrics"][name] == (pytest.approx(np.mean(defined), abs=1e-9) if defined else None)
    assert undefined


@pytest.mark.parametrize("ious", [(0.1,), (0.25, 0.75), (1.0,)])
def test_other_overlaps_equal_pycocotools(ious):
    for seed in range(300, 310):
        images = random_images(seed)
        got = average_precision(*images[:2], ious=ious, num_resamples=0)["per_class"]
        wanted = _reference_average_precision(images, 1, ious)
        assert [*got[0]] == [*wanted[0]]
        assert got == [pytest.approx(wanted[0], abs=1e-9)]


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equal_overlaps_the_last_lesion_is_taken(reverse):
    """A detection midway between two lesions; the next one suits the lesion at 4 only."""
    truth = np.array([[0, 0, 10, 10], [4, 0, 14, 10]])[:: -1 if reverse else 1]
    lesions = [Lesions(truth, np.zeros(2, int), np.zeros(2, bool))]
    detections = [Detections(np.array([[2, 0, 12, 10], [5, 0, 15, 10]]), np.array([0.9, 0.8]), np.zeros(2, int))]
    value = average_precision(detections, lesions, num_resamples=0)["metrics"]["ap50"]
    assert value == pytest.approx(1 if reverse else 51 / 101)
    images = Images(detections, lesions, [0])
    assert value == pytest.approx(_reference_average_precision(images, 1)[0]["ap50"])


def test_worked_by_hand():
    """2 lesions; right, false, right: precision 1 up to a recall of 0.5, then 2/3."""
    lesions = [Lesions([[0, 0, 10, 10]]), Lesions([[0, 0, 10, 10]]), Lesions([])]
    detections = [
        Detections([[0, 0, 10, 10]], [0.9]),
        Detections([[0, 0, 10, 6]], [0.7]),
        Detections([[0, 0, 10, 10]], [0.8]),
    ]
    metrics = average_precision(detections, lesions, ious=(0.5, 0.75), num_resamples=0)["metrics"]
    assert metrics["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics["ap75"] == pytest.approx(51 / 101)
    assert metrics["ap"] == metrics["ap_small"] == pytest.approx((metrics["ap50"] + metrics["ap75"]) / 2)
    assert metrics["ap_medium"] is metrics["ap_large"] is None


def test_second_hit_is_a_false_positive_unless_the_finding_is_ignored():
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]
    found = Detections([boxes[0], boxes[0], boxes[1]], [0.9, 0.8, 0.7])
    first, second = (
        average_precision([found], [Lesions(boxes, ignore=[ignored, False])], num_resamples=0)["metrics"]["ap50"]
        for ignored in (False, True)
    )
    assert first == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert second == 1


def test_volumes_equal_slabs_of_areas():
    """Boxes of equal depth in 3D have the overlaps of their areas; sizes are edges of a cube."""
    for seed in range(5):
        images = random_images(seed)
        flat = average_precision(*images[:2], num_resamples=0, sizes={"small": (0, 30), "big": (50, 60.5)})
        deep = [
            [one._replace(boxes=[[*box[:2], 3, *box[2:], 7] for box in one.boxes]) for one in part]
            for part in images[:2]
        ]
        edges = {
            name: tuple((4 * edge**2) ** (1 / 3) for edge in ends)
            for name, ends in {"small": (0, 30), "big": (50, 60.5)}.items()
        }
        assert average_precision(*deep, num_resamples=0, sizes=edges) == flat
        assert [*average_precision(*deep, num_resamples=0)["metrics"]] == ["ap", *(f"ap{k}" for k in range(50, 100, 5))]


def test_sizes_include_their_ends():
    lesions = [Lesions([[0, 0, 0, 8, 8, 8]]), Lesions([[0, 0, 0, 4, 8, 16]])]
    detections = [Detections(lesions[0].boxes, [0.9]), EMPTY]
    sizes = {"below": (0, 7.99), "upper": (5, 8), "lower": (8, 9), "above": (8.01, math.inf)}
    metrics = average_precision(detections, lesions, sizes=sizes, num_resamples=0)["metrics"]
    assert [metrics[f"ap_{name}"] for name in sizes] == [None, *[pytest.approx(51 / 101)] * 2, None]


@pytest.mark.parametrize(
    ("lesions", "found", "wanted"),
    [
        (Lesions([]), EMPTY, None),
        (Lesions([]), Detections([[0, 0, 1, 1]], [0.5]), None),
        (Lesions([[0, 0, 4, 4]], ignore=[True]), Detections([[0, 0, 4, 4]], [0.5]), None),
        (Lesions([[0, 0, 4, 4]]), EMPTY, 0),
        (Lesions([[0, 0, 4, 4]]), Detections([[9, 9, 9, 12]], [0.5]), 0),
        (Lesions([[0, 0, 4, 4]]), Detections([[0, 0, 4, 4]], [-7]), 1),
    ],
)
def test_values_where_little_or_nothing_is_there(lesions, found, wanted):
    result = average_precision([found] * 3, [lesions] * 3, ious=[0.5], sizes={"all": (0, math.inf)}, num_resamples=50)
    assert result["metrics"] == result["per_class"][0] == dict.fromkeys(["ap", "ap50", "ap_all"], wanted)
    exact = {0: [0, 1 - 0.025 ** (1 / 3)], 1: [0.025 ** (1 / 3), 1]}
    assert result["intervals"] == (
        {} if wanted is None else {name: pytest.approx(exact[wanted]) for name in result["metrics"]}
    )


def test_weights_equal_repeated_images():
    images = random_images(11, 30, decimals=6)
    study = checked_study(*images)
    weights = np.random.default_rng(0).multinomial(
        study.num_groups, np.full(study.num_groups, 1 / study.num_groups), 20
    )
    values = AveragePrecision(study, IOUS, None, 100)(weights.T)
    index = {patient: k for k, patient in enumerate(dict.fromkeys(images.patients))}
    for r, often in enumerate(weights):
        rows = [k for k, patient in enumerate(images.patients) for _ in range(often[index[patient]])]
        again = average_precision(
            [images.detections[k] for k in rows], [images.lesions[k] for k in rows], num_resamples=0
        )
        got = {name: None if np.isnan(column[0, r]) else column[0, r] for name, column in values.items()}
        assert got == pytest.approx(again["metrics"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ious": []}, "ious above 0 and at most 1, one or more"),
        ({"ious": [0.5, 1.1]}, r"got \[0.5, 1.1\]"),
        ({"sizes": {"small": (32, 0)}}, "sizes must rise"),
        ({"max_detections": 0}, "max_detections of 1 or more, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        average_precision([EMPTY], [Lesions([])], **options)
