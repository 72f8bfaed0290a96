from __future__ import annotations

import math

import numpy as np
import pytest

from monai_pipelines.metrics import Detections, Lesions, detection_metrics, detection_precision_recall, sensitivity_at
from monai_pipelines.report import detection_results as results
from monai_pipelines.report.detection_curves import froc_figure, precision_recall_figure, size_figure
from tests.metrics.detection_studies import random_images

pytestmark = pytest.mark.usefixtures("few_resamples")

CLASSES = ["mass", "nodule"]


def make_rows(seed=0, num_images=24, num_classes=2, num_dims=3):
    """Rows as `report_detection` takes them."""
    images = random_images(seed, num_images, num_classes, num_dims, decimals=2)
    return [
        {"image": f"{k}.nii", "patient": f"p{patient}", "found": found, "lesions": lesions}
        for k, (found, lesions, patient) in enumerate(zip(*images, strict=True))
    ]


def plain_rows(*args, **options):
    return [results.plain_row(row) for row in make_rows(*args, **options)]


def _reference_hits(row, threshold):
    """For each counted lesion (label, size, found), and the number of false alarms, by loops."""
    found, lesions = row["found"], row["lesions"]
    shown = [k for k, (score, label) in enumerate(zip(*found[1:], strict=True)) if score >= threshold[int(label)]]
    centers = [(np.array(box[: len(box) // 2]) + box[len(box) // 2 :]) / 2 for box in found.boxes]
    table, at_something = [], set()
    for box, label, ignore in zip(*lesions, strict=True):
        low, high = np.split(np.array(box), 2)
        hits = {
            k
            for k in shown
            if found.labels[k] == label and (((centers[k] - (low + high) / 2) / ((high - low) / 2)) ** 2).sum() < 1
        }
        at_something |= hits
        if not ignore:
            table.append((int(label), float(np.prod(high - low) ** (1 / len(low))), bool(hits)))
    return table, len(set(shown) - at_something)


@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_results_are_those_of_the_metrics_and_of_loops(seed, num_dims):
    rows, threshold = make_rows(seed, num_dims=num_dims), [0.4, 0.6]
    got = results.detection_results([results.plain_row(row) for row in rows], CLASSES, threshold)
    found, lesions = ([row[name] for row in rows] for name in ("found", "lesions"))
    groups = [row["patient"] for row in rows]
    bands = {name: (band["low"], band["high"] or math.inf) for name, band in got["sizes"].items()}
    wanted = detection_metrics(found, lesions, groups, sizes={}, num_classes=2, num_resamples=50)
    point = sensitivity_at(found, lesions, threshold, groups, num_classes=2, num_resamples=50)
    for name in ("metrics", "intervals"):
        values = {**wanted[name], **point[name]}
        assert {metric: got[name][metric] for metric in values} == values
    assert [got["per_class"][name]["cpm"] for name in CLASSES] == [part["cpm"] for part in wanted["per_class"]]
    tables = [_reference_hits(row, threshold) for row in rows]
    every = [lesion for table, _ in tables for lesion in table]
    assert got["outcomes"] == {
        "hit": sum(hit for *_, hit in every),
        "miss": sum(not hit for *_, hit in every),
        "false_alarm": sum(num for _, num in tables),
    }
    assert got["num_lesions"] == len(every)
    assert got["num_with_lesions"] == sum(bool(table) for table, _ in tables)
    assert got["num_with_lesions"] + got["num_without_lesions"] == got["num_images"] == len(rows)
    assert [got["classes"][name]["num_lesions"] for name in CLASSES] == [
        sum(label == k for label, *_ in every) for k in (0, 1)
    ]
    assert sum(band["num_lesions"] for band in got["sizes"].values()) == len(every)
    for name, (low, high) in bands.items():
        inside = [hit for _, size, hit in every if low <= round(size, 6) < high]
        band = got["sizes"][name]
        assert (band["num_lesions"], band["num_found"]) == (len(inside), sum(inside))
        assert band["sensitivity"] == (pytest.approx(np.mean(inside)) if inside else None)


@pytest.mark.parametrize(
    ("sizes", "dims", "wanted"),
    [
        ([5.0, 6.0, 20.0], 3, {"under_6_mm": 1, "6_to_10_mm": 1, "10_to_20_mm": 0, "20_mm_or_more": 1}),
        ([], 3, {"under_6_mm": 0, "6_to_10_mm": 0, "10_to_20_mm": 0, "20_mm_or_more": 0}),
        ([10.0, 20, 30, 40, 50, 60], 2, {"under_27_px": 2, "27_to_43_px": 2, "43_px_or_more": 2}),
        ([10.0] * 5, 2, {"all": 5}),
        ([], 2, {}),
    ],
)
def test_bands_have_every_lesion_once(sizes, dims, wanted):
    bands = results.size_bands(np.array(sizes), dims)
    assert {name: sum(low <= size <= high for size in sizes) for name, (low, high) in bands.items()} == wanted


@pytest.mark.parametrize("diameter", [6.0, 10.0, 20.0])
def test_a_diameter_at_an_edge_is_in_the_upper_band(diameter):
    center = np.array([-49.26, 33.11, 75.2])
    boxes = [*(center - diameter / 2), *(center + diameter / 2)]
    row = results.plain_row({"image": "a", "found": Detections([boxes], [0.9]), "lesions": Lesions([boxes])})
    bands = results.detection_results([row], ["nodule"], [0.5])["sizes"]
    (band,) = [band for band in bands.values() if band["num_lesions"]]
    assert band["low"] == diameter
    assert (band["num_found"], band["sensitivity"], band["interval"]) == (1, 1.0, None)


def test_what_is_undefined_is_none():
    rows = [
        results.plain_row({"image": k, "found": Detections([[0, 0, 8, 8]], [0.9]), "lesions": Lesions([])})
        for k in "ab"
    ]
    got = results.detection_results(rows, ["mass"], [0.5])
    assert (got["num_patients"], got["num_lesions"], got["sizes"]) == (None, 0, {})
    assert got["outcomes"] == {"hit": 0, "miss": 0, "false_alarm": 2}
    assert {name: value for name, value in got["metrics"].items() if value is not None} == {
        "false_positives_per_image": 1.0
    }
    without = results.detection_results(plain_rows(), CLASSES)
    assert (
        without["outcomes"] is without["metrics"]["sensitivity"] is without["per_class"]["mass"]["sensitivity"] is None
    )
    assert {(band["num_found"], band["sensitivity"], band["interval"]) for band in without["sizes"].values()} == {
        (None, None, None)
    }
    nothing_shown = results.detection_results(plain_rows(), CLASSES, [None, None])
    assert nothing_shown["metrics"]["sensitivity"] == nothing_shown["outcomes"]["hit"] == 0


def test_subgroups_and_baseline():
    rows = [{**row, "columns": {"site": "ab"[k % 2]}} for k, row in enumerate(plain_rows())]
    found = [row["found"] for row in plain_rows(1)]
    got = results.detection_results(rows, CLASSES, [0.5, 0.5], {"name": "simple", "rows": found}, ["site"])
    alone = results.detection_results(rows[::2], CLASSES, [0.5, 0.5])
    part = got["subgroups"]["site"]["a"]
    assert (part["num_images"], part["num_lesions"]) == (alone["num_images"], alone["num_lesions"])
    assert {name: alone["metrics"][name] for name in part["metrics"]} == part["metrics"]
    truth = [row["lesions"] for row in make_rows()]
    wanted = detection_metrics([Detections(**row) for row in found], truth, num_classes=2, num_resamples=0)
    assert got["baseline"]["metrics"]["cpm"] == wanted["metrics"]["cpm"]


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_has_the_average_precision_below_it(seed):
    found, lesions, _ = random_images(seed, 20)
    curve = detection_precision_recall(found, lesions)
    points = [curve.precision[curve.recall >= r - 1e-12].max(initial=0) for r in np.linspace(0, 1, 101)]
    assert np.mean(points) == pytest.approx(detection_metrics(found, lesions, num_resamples=0)["metrics"]["ap50"])
    assert (np.diff(curve.recall) > 0).all()
    assert (np.diff(curve.precision) <= 0).all()


def test_curves_are_drawn_of_each_class_and_of_the_baseline():
    rows = plain_rows()
    found, lesions = results.found_in(rows), results.lesions_in(rows)
    baseline = {"name": "bright & large $", "rows": [row["found"] for row in plain_rows(1)]}
    got = results.detection_results(rows, [*CLASSES, "none"], [0.5, 0.5, None], baseline)
    other = [Detections(**row) for row in baseline["rows"]]
    for figure, metric in (
        (froc_figure(found, lesions, [*CLASSES, "none"], got, baseline=other), "cpm"),
        (precision_recall_figure(found, lesions, [*CLASSES, "none"], got, other), "ap50"),
    ):
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert [text[-5:] for text in texts[:2]] == [f"{got['per_class'][name][metric]:.3f}" for name in CLASSES]
        assert texts[2] == "none: no lesions"
        assert texts[-1].endswith(f"{got['baseline']['metrics'][metric]:.3f}")
    (point, *_) = [
        line for line in froc_figure(found, lesions, CLASSES, got).axes[0].lines if len(line.get_xdata()) == 1
    ]
    of_class = got["per_class"]["mass"]
    assert [point.get_xdata()[0], point.get_ydata()[0]] == [
        of_class["false_positives_per_image"],
        of_class["sensitivity"],
    ]


def test_the_froc_is_drawn_through_the_sensitivities_of_its_rates():
    rows = plain_rows(num_classes=1)
    got = results.detection_results(rows, ["mass"], [0.5])
    line = froc_figure(results.found_in(rows), results.lesions_in(rows), ["mass"], got).axes[0].lines[0]
    x, y = line.get_xdata(), line.get_ydata()
    assert (np.diff(x) >= 0).all()
    for rate in (0.125, 0.25, 0.5, 1, 2):
        assert y[x <= rate].max() == pytest.approx(got["metrics"][f"sensitivity_at_{rate:g}"], abs=0.12)


def test_bars_have_their_numbers():
    got = results.detection_results(plain_rows(), CLASSES, [0.5, 0.5])
    axes = size_figure(got["sizes"]).axes[0]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    for label, band in zip(labels, got["sizes"].values(), strict=True):
        assert label.splitlines()[1] == (
            f"{band['num_found']} of {band['num_lesions']}" if band["num_lesions"] else "no lesions"
        )
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [band["sensitivity"] for band in got["sizes"].values() if band["num_lesions"]]
