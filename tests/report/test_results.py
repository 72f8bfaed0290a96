from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from scipy.special import expit, softmax

from monai_pipelines.metrics import classification_metrics, metric_intervals
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
        "num_images": 6,
        "num_patients": 4,
        "classes": {"a": {"num_images": 4, "num_patients": 3}, "b": {"num_images": 2, "num_patients": 2}},
        "imbalance_factor": 2.0,
    }
    assert class_table(items, NAMES)["imbalance_factor"] is None
    multilabel = class_table([{"label": [1.0, 1.0]}, {"label": [1.0, 0.0]}, {"label": [0.0, 0.0]}], ["a", "b"])
    assert [count["num_images"] for count in multilabel["classes"].values()] == [2, 1]
    assert (multilabel["num_images"], multilabel["imbalance_factor"]) == (3, 2.0)


def test_without_any_patient_their_number_is_unknown():
    table = class_table([{"label": 0, "image": "x"}, {"label": 1, "patient": None}], ["a", "b"])
    assert table["num_patients"] is None
    assert table["classes"] == {name: {"num_images": 1, "num_patients": None} for name in ("a", "b")}


def _reference_mistakes(prob, label, num):
    wrong = [(-max(row), k, int(np.argmax(row))) for k, row in enumerate(prob) if np.argmax(row) != label[k]]
    return [(k, predicted) for _, k, predicted in sorted(wrong)[:num]]


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


def test_multilabel_mistakes():
    prob = [[0.9, 0.05, 0.7], [0.1, 0.2, 0.9], [0.4, 0.6, 0.1]]
    label = [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert confident_mistakes(prob, label, 5) == [(0, 1), (2, 0)]  # missed at 0.05, missed at 0.4


def _rows(prob, label, **more):
    return [{"image": "x", "prob": p, "label": y, **more} for p, y in zip(prob, label, strict=True)]


def test_strongest_shortcut_is_the_one_of_highest_roc_auc():
    rows = _rows(np.eye(2)[[0, 1, 0, 1]], [0, 1, 0, 1])
    cheap = {"even": [0.5] * 4, "good": [0.1, 0.2, 0.3, 0.4], "bad": [0.9, 0.1, 0.9, 0.1]}
    for k, row in enumerate(rows):
        row["shortcut_prob"] = {name: [1 - score[k], score[k]] for name, score in cheap.items()}
    results = evaluation_results(rows, ["a", "b"])
    assert results["shortcut_name"] == "good"
    assert [metrics["roc_auc"] for metrics in results["shortcuts"].values()] == [0.5, 0.75, 0.0]


def test_strongest_shortcut_of_a_single_class():
    rows = _rows([[0.6, 0.4]] * 2, [0, 0], shortcut_prob={"x": [0.5, 0.5], "y": [0.5, 0.5]})
    results = evaluation_results(rows, ["a", "b"])
    assert (results["shortcut_name"], results["shortcut"]["roc_auc"]) == ("x", None)


def _scored(num=60, num_classes=2, seed=0, per_patient=5):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, num)
    prob = 0.7 * rng.dirichlet(np.ones(num_classes), num) + 0.3 * np.eye(num_classes)[label]
    return [
        {"image": f"{k}", "prob": prob[k].tolist(), "label": int(label[k]), "patient": f"p{k // per_patient}"}
        for k in range(num)
    ]


def _arrays(rows):
    return np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])


def _lists(intervals):
    return {name: list(ends) for name, ends in intervals.items()}


def test_intervals_resample_whole_patients():
    rows = _scored()
    prob, label = _arrays(rows)
    results = evaluation_results(rows, ["a", "b"], threshold=0.4)
    wanted = metric_intervals(prob, label, [row["patient"] for row in rows], threshold=0.4)
    assert results["intervals"] == _lists(wanted.metrics)
    assert results["metrics"].keys() == results["intervals"].keys()
    assert results["per_class_intervals"] == {n: _lists(ends) for n, ends in zip("ab", wanted.per_class, strict=True)}
    for row in rows:
        del row["patient"]
    alone = evaluation_results(rows, ["a", "b"], threshold=0.4)["intervals"]
    assert alone == _lists(metric_intervals(prob, label, range(60), threshold=0.4).metrics)


def test_metrics_of_an_absent_class_are_none():
    rows = [{**row, "prob": [*row["prob"], 0.0]} for row in _scored()]
    results = evaluation_results(rows, NAMES)
    assert results["per_class"]["c"]["num_images"] == 0
    assert results["per_class"]["c"]["recall"] is results["per_class"]["c"]["roc_auc"] is None
    assert "recall" not in results["per_class_intervals"]["c"]
    assert results["metrics"]["roc_auc"] is not None
    json.dumps(results, allow_nan=False)


def test_at_half_beside_the_threshold():
    rows = _scored()
    prob, label = _arrays(rows)
    results = evaluation_results(rows, ["a", "b"], threshold=0.2, threshold_by="youden")
    assert results["metrics"] == pytest.approx(classification_metrics(prob, label, threshold=0.2))
    assert results["metrics_at_half"] == pytest.approx(classification_metrics(prob, label, threshold=0.5))
    assert (results["threshold"], results["threshold_by"]) == (0.2, "youden")
    assert evaluation_results(rows, ["a", "b"])["metrics_at_half"] is None
    assert evaluation_results(rows, ["a", "b"], threshold=0.5)["metrics_at_half"] is None


def test_a_threshold_for_each_label():
    rng = np.random.default_rng(1)
    prob, label = rng.random((40, 3)), rng.integers(0, 2, (40, 3))
    results = evaluation_results(_rows(prob.tolist(), label.tolist()), NAMES, threshold=[0.2, 0.5, 0.9])
    predicted = prob >= [0.2, 0.5, 0.9]
    assert results["metrics"]["accuracy"] == pytest.approx((predicted == label).mean())
    assert results["metrics_at_half"]["accuracy"] == pytest.approx(((prob >= 0.5) == label).mean())
    assert results["per_class"]["c"]["recall"] == pytest.approx(predicted[label[:, 2] == 1, 2].mean())
    assert results["num_wrong"] == (predicted != label).any(axis=1).sum()
    assert results["threshold"] == [0.2, 0.5, 0.9]
    assert results["decision_curve"] is None
    assert results["uncertainty"]["risk"][-1] == pytest.approx(1 - results["metrics"]["accuracy"])


def test_subgroups_are_scored_separately():
    rows = [
        {**row, "columns": {"scanner": ("B", "A ", "", None)[k % 4], "sex": "f"}} for k, row in enumerate(_scored())
    ]
    found = evaluation_results(rows, ["a", "b"], threshold=0.4, subgroups=["scanner", "sex"])["subgroups"]
    assert list(found) == ["scanner", "sex"]
    assert list(found["scanner"]) == ["", "A", "B"]
    assert [group["num_images"] for group in found["scanner"].values()] == [30, 15, 15]
    group = [row for row in rows if row["columns"]["scanner"] == "A "]
    alone = evaluation_results(group, ["a", "b"], threshold=0.4)
    assert found["scanner"]["A"] == {
        **{name: alone[name] for name in ("num_images", "num_patients", "metrics", "intervals")},
        "classes": {name: table["num_images"] for name, table in alone["classes"].items()},
    }
    assert evaluation_results(rows, ["a", "b"])["subgroups"] == {}


def test_a_subgroup_without_a_class_has_no_roc_auc():
    rows = [{**row, "columns": {"site": str(row["label"])}} for row in _scored()]
    found = evaluation_results(rows, ["a", "b"], subgroups=["site"])["subgroups"]["site"]["1"]
    assert found["metrics"]["roc_auc"] is None
    assert "roc_auc" not in found["intervals"]
    assert found["metrics"]["recall"] is not None


def test_bad_subgroup_columns_are_refused():
    rows = [{**row, "columns": {"age": str(k), "sex": "f"}} for k, row in enumerate(_scored(13))]
    with pytest.raises(ValueError, match="at most 12 values, got 13 in 'age'"):
        evaluation_results(rows, ["a", "b"], subgroups=["age"])
    assert len(evaluation_results(rows[:12], ["a", "b"], subgroups=["age"])["subgroups"]["age"]) == 12
    with pytest.raises(KeyError, match="no row has the column 'site'; there are age, sex"):
        evaluation_results(rows, ["a", "b"], subgroups=["site"])


@pytest.mark.parametrize("multilabel", [False, True])
def test_calibration_before_the_temperature_is_that_of_the_logits(multilabel):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 4, (80, 3))
    label = rng.integers(0, 2, (80, 3)) if multilabel else rng.integers(0, 3, 80)
    squash = expit if multilabel else partial(softmax, axis=1)
    results = evaluation_results(_rows(squash(logits / 2.5).tolist(), label.tolist()), NAMES, temperature=2.5)
    calibration = results["calibration"]
    untempered = classification_metrics(squash(logits), label)
    assert calibration["temperature"] == 2.5
    assert calibration["before"].keys() == {"ece", "brier", "log_loss", "reliability"}
    for name in ("ece", "brier", "log_loss"):
        assert calibration["before"][name] == pytest.approx(untempered[name], rel=1e-6)
        assert calibration["before"][name] > results["metrics"][name]
    assert sum(row["count"] for row in calibration["before"]["reliability"]) == (240 if multilabel else 80)
    assert calibration["reliability"] != calibration["before"]["reliability"]
    assert evaluation_results(_rows(squash(logits).tolist(), label.tolist()), NAMES)["calibration"]["before"] is None


def test_decision_curve_is_of_the_second_of_two_classes():
    rows = _scored()
    prob, label = _arrays(rows)
    curve = evaluation_results(rows, ["a", "b"])["decision_curve"]
    assert curve["thresholds"] == [k / 100 for k in range(1, 100)]
    called = prob[:, 1] >= 0.3
    benefit = ((called & (label == 1)).sum() - (called & (label == 0)).sum() * 3 / 7) / 60
    assert curve["model"][29] == pytest.approx(benefit)
    assert curve["all"][29] == pytest.approx((label == 1).mean() - (label == 0).mean() * 3 / 7)
    assert evaluation_results(_scored(num_classes=3), NAMES)["decision_curve"] is None


def test_uncertainty_by_probability_and_by_spread():
    rows = [{**row, "spread": k % 7 / 10} for k, row in enumerate(_scored(300))]
    results = evaluation_results(rows, ["a", "b"], threshold=0.4)
    for name, by in (("uncertainty", "probability"), ("uncertainty_by_spread", "spread")):
        found = results[name]
        assert found["by"] == by
        assert len(found["coverage"]) == len(found["risk"]) == 200
        assert (found["coverage"][0], found["coverage"][-1]) == (pytest.approx(1 / 300), 1)
        assert found["risk"][-1] == pytest.approx(1 - results["metrics"]["accuracy"])
        assert found["referral"][0]["accuracy"] == pytest.approx(results["metrics"]["accuracy"])
    assert results["uncertainty"]["area"] < results["uncertainty"]["risk"][-1]
    assert evaluation_results(_scored(), ["a", "b"])["uncertainty_by_spread"] is None


def test_multilabel_by_hand():
    results = evaluation_results(_rows([[0.9, 0.2], [0.6, 0.6], [0.1, 0.3]], [[1, 0], [0, 1], [0, 1]]), ["a", "b"])
    assert results["confusion_matrix"] == [[[1, 1], [0, 1]], [[1, 0], [1, 1]]]
    assert results["num_wrong"] == 2
    assert results["metrics"]["accuracy"] == pytest.approx(4 / 6)
    assert results["spread"] is None


def test_spread_without_wrong_predictions():
    results = evaluation_results(_rows([[0.9, 0.1]], [0], spread=0.25), ["a", "b"])
    assert results["spread"] == {"right": 0.25, "wrong": None}
