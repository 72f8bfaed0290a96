from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from monai_pipelines.metrics import bootstrap_intervals, classification_metrics
from monai_pipelines.report import results as module
from monai_pipelines.report.results import class_table, confident_mistakes, evaluation_results

NAMES = ["a", "b", "c"]


def test_class_table_by_hand():
    items = [
        {"label": 0, "patient": "p"},
        {"label": 0, "patient": "p"},
        {"label": 1, "patient": "p"},
        {"label": 0, "image": "x"},
        {"label": 1},
        {"label": 0},
    ]
    assert class_table(items, ["a", "b"]) == {
        "num_scans": 6,
        "num_patients": 4,
        "classes": {"a": {"num_scans": 4, "num_patients": 3}, "b": {"num_scans": 2, "num_patients": 2}},
        "imbalance_factor": 2.0,
    }
    assert class_table(items, NAMES)["imbalance_factor"] is None
    several = class_table([{"label": [1.0, 1.0]}, {"label": [1.0, 0.0]}, {"label": [0.0, 0.0]}], ["a", "b"])
    assert [own["num_scans"] for own in several["classes"].values()] == [2, 1]
    assert (several["num_scans"], several["imbalance_factor"]) == (3, 2.0)


def test_patients_that_no_item_names_are_unknown():
    table = class_table([{"label": 0, "image": "x"}, {"label": 1, "patient": None}], ["a", "b"])
    assert table["num_patients"] is None
    assert table["classes"] == {name: {"num_scans": 1, "num_patients": None} for name in ("a", "b")}


def _reference_mistakes(prob, label, num):
    wrong = [(-max(own), k, int(np.argmax(own))) for k, own in enumerate(prob) if np.argmax(own) != label[k]]
    return [(k, said) for _, k, said in sorted(wrong)[:num]]


def test_mistakes_are_sorted_by_certainty():
    rng = np.random.default_rng(0)
    prob, label = rng.dirichlet([1, 1, 1], 50).round(1), rng.integers(0, 3, 50)
    assert confident_mistakes(prob, label, 7) == _reference_mistakes(prob, label, 7)
    assert len(confident_mistakes(prob, label, 99)) == len(_reference_mistakes(prob, label, 99)) < 50
    assert confident_mistakes(np.eye(3), [0, 1, 2], 5) == []


def test_mistakes_at_a_threshold():
    prob = [[0.65, 0.35], [0.8, 0.2], [0.4, 0.6]]
    assert confident_mistakes(prob, [0, 1, 0], 5, threshold=0.3) == [(1, 0), (2, 1), (0, 1)]
    assert confident_mistakes(prob, [0, 1, 0], 5, threshold=0.5) == [(1, 0), (2, 1)]


def test_mistakes_of_several_labels():
    prob = [[0.9, 0.05, 0.7], [0.1, 0.2, 0.9], [0.4, 0.6, 0.1]]
    label = [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert confident_mistakes(prob, label, 5) == [(0, 1), (2, 0)]  # missed at 0.05, missed at 0.4


def _rows(prob, label, **more):
    return [{"image": "x", "prob": p, "label": own, **more} for p, own in zip(prob, label, strict=True)]


def test_strongest_shortcut_is_the_one_of_highest_roc_auc():
    rows = _rows(np.eye(2)[[0, 1, 0, 1]], [0, 1, 0, 1])
    cheap = {"even": [0.5] * 4, "good": [0.1, 0.2, 0.3, 0.4], "bad": [0.9, 0.1, 0.9, 0.1]}
    for k, row in enumerate(rows):
        row["shortcut_prob"] = {name: [1 - score[k], score[k]] for name, score in cheap.items()}
    results = evaluation_results(rows, ["a", "b"])
    assert results["shortcut_name"] == "good"
    assert [own["roc_auc"] for own in results["shortcuts"].values()] == [0.5, 0.75, 0.0]


def test_one_class_alone_still_has_a_strongest_shortcut():
    rows = _rows([[0.6, 0.4]] * 2, [0, 0], shortcut_prob={"x": [0.5, 0.5], "y": [0.5, 0.5]})
    results = evaluation_results(rows, ["a", "b"])
    assert (results["shortcut_name"], results["shortcut"]["roc_auc"]) == ("x", None)


def test_intervals_draw_whole_patients():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    score = (rng.random(60) + 0.5 * label) / 1.5
    patients = [f"p{k // 5}" for k in range(60)]
    rows = [
        {"image": f"{k}", "prob": [1 - p, p], "label": int(own), "patient": patient}
        for k, (p, own, patient) in enumerate(zip(score, label, patients, strict=True))
    ]
    results = evaluation_results(rows, ["a", "b"], threshold=0.4)
    figures = partial(classification_metrics, threshold=0.4)
    wanted = bootstrap_intervals(figures, [row["prob"] for row in rows], label, patients)
    assert {name: tuple(ends) for name, ends in results["intervals"].items()} == wanted
    assert {"roc_auc", "balanced_accuracy", "recall", "specificity"} <= wanted.keys()
    for row in rows:
        del row["patient"]
    alone = evaluation_results(rows, ["a", "b"], threshold=0.4)["intervals"]
    wanted = bootstrap_intervals(figures, np.c_[1 - score, score], label, range(60))
    assert {name: tuple(ends) for name, ends in alone.items()} == wanted


def test_many_images_have_no_intervals(monkeypatch):
    monkeypatch.setattr(module, "MAX_INTERVALS", 1)
    assert evaluation_results(_rows(np.eye(2), [0, 1]), ["a", "b"])["intervals"] == {}
    assert evaluation_results(_rows(np.eye(2)[:1], [0]), ["a", "b"])["intervals"]["accuracy"] == [1, 1]


def test_several_labels_by_hand():
    results = evaluation_results(_rows([[0.9, 0.2], [0.6, 0.6], [0.1, 0.3]], [[1, 0], [0, 1], [0, 1]]), ["a", "b"])
    assert results["confusion_matrix"] == [[[1, 1], [0, 1]], [[1, 0], [1, 1]]]
    assert results["num_wrong"] == 2
    assert results["metrics"]["accuracy"] == pytest.approx(4 / 6)
    assert results["spread"] is None


def test_spread_of_right_ones_alone():
    results = evaluation_results(_rows([[0.9, 0.1]], [0], spread=0.25), ["a", "b"])
    assert results["spread"] == {"right": 0.25, "wrong": None}
