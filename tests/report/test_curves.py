from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from monai_pipelines.report.curves import (
    decision_figure,
    pr_figure,
    reliability_figure,
    risk_coverage_figure,
    roc_figure,
    subgroup_figure,
)
from tests.report.test_figures import assert_no_label_overlaps_or_is_clipped

BINS = [
    {"prob": 0.1, "observed": 0.0, "count": 4, "low": 0.0, "high": 0.49},
    {"prob": 0.85, "observed": 1.0, "count": 3, "low": 0.44, "high": 1.0},
]


def _problem(num_classes, num=60, seed=0):
    rng = np.random.default_rng(seed)
    return np.arange(num) % num_classes, rng.dirichlet(np.ones(num_classes), num)


def _legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_roc_by_hand():
    prob_ill = np.array([0.1, 0.6, 0.7, 0.9])
    prob, shortcut = np.stack([1 - prob_ill, prob_ill], 1), np.full((4, 2), 0.5)
    figure = roc_figure([0, 1, 0, 1], prob, ["healthy", "ill"], shortcut)
    model, cheap, chance = figure.axes[0].get_lines()
    assert set(zip(*model.get_data(), strict=True)) >= {(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)}
    assert list(zip(*cheap.get_data(), strict=True)) == [(0, 0), (1, 1)]
    assert (model.get_linestyle(), cheap.get_linestyle(), chance.get_linestyle()) == ("-", "--", ":")
    assert _legend(figure) == ["ill: 0.750 / 0.500"]


def test_precision_recall_by_hand():
    prob_ill = np.array([0.1, 0.6, 0.7, 0.9])
    prob, label = np.stack([1 - prob_ill, prob_ill], 1), [0, 1, 0, 1]
    figure = pr_figure(label, prob, ["healthy", "ill"], threshold=0.6)
    model, point, guessing = figure.axes[0].get_lines()
    assert set(zip(*model.get_data(), strict=True)) == {(1, 0.5), (1, 2 / 3), (0.5, 0.5), (0.5, 1), (0, 1)}
    area = -np.sum(np.diff(model.get_xdata()) * model.get_ydata()[:-1])  # under the drawn steps
    assert model.get_drawstyle() == "steps-post"
    assert area == pytest.approx(average_precision_score(label, prob_ill))
    assert point.get_xydata().tolist() == [[1.0, pytest.approx(2 / 3)]]
    assert list(guessing.get_ydata()) == [0.5, 0.5]
    assert _legend(figure) == [f"ill: {area:.3f}", "guessing (prevalence): 0.500", "at the threshold 0.6"]


@pytest.mark.parametrize("drawn", [roc_figure, pr_figure])
def test_an_absent_class_has_no_curve(drawn):
    label, prob = _problem(2)
    prob = np.c_[prob * 0.9, np.full(len(prob), 0.1)]
    figure = drawn(label, prob, ["a", "b", "c"])
    assert len(figure.axes[0].get_lines()) == 2 + (drawn is roc_figure)  # the diagonal
    assert _legend(figure)[2] == "c: n/a (one class only)"


def test_precision_of_no_predictions_is_undefined():
    figure = pr_figure([0, 1], [[0.9, 0.1], [0.8, 0.2]], ["a", "b"], threshold=0.5)
    assert np.isnan(figure.axes[0].get_lines()[1].get_ydata()).all()


def test_threshold_is_marked_on_the_curve():
    prob_ill = np.array([0.1, 0.3, 0.7, 0.9])
    figure = roc_figure([0, 1, 0, 1], np.stack([1 - prob_ill, prob_ill], 1), ["healthy", "ill"], threshold=0.3)
    point = figure.axes[0].get_lines()[1]
    assert (point.get_marker(), point.get_xydata().tolist()) == ("o", [[0.5, 1.0]])
    assert _legend(figure)[1] == "at the threshold 0.3"


def test_each_label_has_a_curve_and_a_threshold():
    label = np.array([[0, 1], [1, 1], [1, 0], [0, 1]])
    prob = [[0.2, 0.9], [0.8, 0.8], [0.1, 0.3], [0.6, 0.1]]
    figure = roc_figure(label, prob, ["nodule", "effusion"], threshold=[0.1, 0.85])
    assert _legend(figure) == ["nodule: 0.500", "effusion: 0.667", "at the threshold of the class"]
    points = [line.get_xydata().tolist()[0] for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert points == [[1, 1], [0, pytest.approx(1 / 3)]]


@pytest.mark.parametrize("num", [2, 7, 8, 20])
def test_classes_differ_by_color_and_line(num):
    label, prob = _problem(num)
    names = [f"class {k}" for k in range(num)]
    lines = roc_figure(label, prob, names, prob[::-1]).legends[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == (1 if num == 2 else num)
    drawn = roc_figure(label, prob, names, prob[::-1]).axes[0].get_lines()
    assert len(drawn) == 1 + {2: 2, 7: 14}.get(num, num)  # and the shortcut's if there is room


def test_reliability_by_hand():
    axes, counts = reliability_figure(BINS, [{"prob": 0.5, "observed": 0.4, "count": 7}]).axes
    before = next(line for line in axes.get_lines() if line.get_label() == "before")
    assert before.get_xydata().tolist() == [[0.5, 0.4]]
    points, _, (bars,) = axes.containers[0]
    assert points.get_xydata().tolist() == [[0.1, 0.0], [0.85, 1.0]]
    np.testing.assert_allclose(bars.get_segments(), [[[0.1, 0], [0.1, 0.49]], [[0.85, 0.44], [0.85, 1]]])
    assert [(bar.get_center()[0], bar.get_height()) for bar in counts.patches] == [
        (pytest.approx(0.1), 4),
        (pytest.approx(0.85), 3),
    ]
    assert _legend(reliability_figure(BINS)) == ["perfect", "observed"]


def test_decision_curve_by_hand():
    figure = decision_figure([0.1, 0.5, 0.9], [0.3, 0.25, -2.0], [0.3, 0.0, -5.0], 0.4)
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["act on the model"].get_ydata()) == [0.3, 0.25, -2.0]
    assert list(lines["act on no one"].get_ydata()) == [0, 0]
    assert list(lines["threshold 0.4"].get_xdata()) == [0.4, 0.4]
    low, high = axes.get_ylim()
    assert -0.3 < low < 0 < 0.3 < high < 0.4


def test_risk_coverage_by_hand():
    curves = {
        "probability": {"coverage": [0.5, 1.0], "risk": [0.0, 0.25], "area": 0.125},
        "spread": {"coverage": [0.5, 1.0], "risk": [0.5, 0.25], "area": 0.375},
    }
    figure = risk_coverage_figure(curves)
    assert _legend(figure) == ["by probability: area 0.125", "by spread: area 0.375", "referred at random: 0.250"]
    assert figure.axes[0].get_ylim()[1] > 0.5
    for risk, top in (([0.0, 0.0], 0.02), ([1.0, 0.5], 1.0)):
        figure = risk_coverage_figure({"probability": {**curves["spread"], "risk": risk}})
        assert figure.axes[0].get_ylim()[1] == top


def test_each_subgroup_has_a_line_unless_undefined():
    overall = {"metrics": {"roc_auc": 0.8, "recall": 0.9, "specificity": None}}
    groups = {
        "": {"metrics": {"roc_auc": 0.7, "recall": None, "specificity": 1.0}, "intervals": {"roc_auc": [0.6, 0.8]}},
        "a $ scanner with quite a long name": {"metrics": dict.fromkeys(overall["metrics"]), "intervals": {}},
    }
    figure = subgroup_figure(groups, overall)
    drawn = [[line.get_xydata().tolist() for line in axes.get_lines()] for axes in figure.axes]
    assert drawn == [
        [[[0.8, 0], [0.8, 1]], [[0.7, 0]], [[0.6, 0], [0.8, 0]]],
        [[[0.9, 0], [0.9, 1]]],
        [[[1.0, 0]], []],
    ]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "not given"
    assert_no_label_overlaps_or_is_clipped(figure)


@pytest.mark.parametrize("num_classes", [2, 3, 9, 20])
@pytest.mark.parametrize("name", ["class $ number {}", "x" * 40 + "{}"])
@pytest.mark.parametrize("drawn", [roc_figure, pr_figure])
def test_labels_do_not_overlap(num_classes, name, drawn):
    label, prob = _problem(num_classes)
    threshold = 0.4 if num_classes == 2 else None
    figure = drawn(label, prob, [name.format(k) for k in range(num_classes)], prob[::-1], threshold)
    assert_no_label_overlaps_or_is_clipped(figure)


def test_labels_of_the_other_curves_do_not_overlap():
    thresholds = np.linspace(0.01, 0.99, 99)
    for figure in (
        reliability_figure(BINS, BINS),
        decision_figure(thresholds, 0.3 - thresholds / 3, 0.3 - thresholds, 0.123),
        risk_coverage_figure({name: {"coverage": [0.5, 1], "risk": [0, 0.1], "area": 0.05} for name in ("a", "b")}),
    ):
        assert_no_label_overlaps_or_is_clipped(figure)
