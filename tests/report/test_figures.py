from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from monai_pipelines.report.embedding import embedding_figure
from monai_pipelines.report.figures import best_epoch, class_figure, confusion_figure, history_figure


def _texts(axes):
    return [text.get_text() for text in axes.texts]


def _problem(num_classes, num=60, seed=0):
    rng = np.random.default_rng(seed)
    return np.arange(num) % num_classes, rng.dirichlet(np.ones(num_classes), num)


def assert_no_label_overlaps_or_is_clipped(figure):
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    boxes = []
    for axes in figure.axes:
        shown = [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts]
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            # the bounding box of a slanted label overstates its overlap
            shown += [tick.label1 for tick in ticks if not tick.label1.get_rotation()]
        boxes += [text.get_window_extent(renderer) for text in shown if text.get_text() and text.get_visible()]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert not [pair for pair in combinations(boxes, 2) if pair[0].padded(-1).overlaps(pair[1].padded(-1))]


def test_confusion_by_hand():
    prob = np.eye(3)[[0, 0, 1, 1, 0, 0]]
    axes = confusion_figure([0, 0, 0, 1, 1, 1], prob, ["a", "b", "c"]).axes[0]
    counts, shares = _texts(axes)[::2], _texts(axes)[1::2]
    assert counts == ["2", "1", "0", "2", "1", "0", "0", "0", "0"]
    assert shares == ["67%", "33%", "0%", "67%", "33%", "0%", "none", "none", "none"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_confusion_names_a_class_alike_on_both_axes():
    names = ["colorectal adenocarcinoma epithelium", "stroma next to the tumor", "normal colon mucosa"]
    axes = confusion_figure(*_problem(3), names).axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text().replace("\n", " ") for label in labels] == names


def test_confusion_at_a_threshold():
    prob_ill = np.array([0.1, 0.3, 0.7, 0.9])
    prob, label = np.stack([1 - prob_ill, prob_ill], 1), [0, 1, 0, 1]
    assert _texts(confusion_figure(label, prob, ["healthy", "ill"], 0.3).axes[0])[::2] == ["1", "1", "0", "2"]
    assert _texts(confusion_figure(label, prob, ["healthy", "ill"]).axes[0])[::2] == ["1", "1", "1", "1"]


@pytest.mark.parametrize("num", [2, 7, 8, 20])
def test_classes_differ_by_color_and_marker(num):
    label, _ = _problem(num)
    points = np.random.default_rng(0).normal(size=(len(label), 2))
    groups = embedding_figure(points, label, [f"class {k}" for k in range(num)], "t").axes[0].collections
    styles = {(*group.get_facecolor()[0], len(group.get_paths()[0].vertices)) for group in groups}
    assert len(styles) == len(groups) == num


def test_class_bars_by_hand():
    figure = class_figure({"train": {"a": 1234, "b": 0}, "test": {"a": 5, "b": 7}})
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[1234, 0], [5, 7]]
    assert [axes.get_title() for axes in figure.axes] == ["Train", "Test"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert _texts(figure.axes[0]) == ["1,234", "0"]
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the first class is on top


def _history(num=4):
    return [
        {"epoch": k, "lr": 10.0**-k, "train": {"loss": 1 / k, "accuracy": 0.5}, "val": {"loss": 2 / k, "roc_auc": auc}}
        for k, auc in zip(range(1, num + 1), [0.6, 0.8, 0.8, float("nan")], strict=False)
    ]


def test_history_panels_hold_train_and_validation():
    figure = history_figure(_history())
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["Loss", "Accuracy", "ROC AUC", "Learning rate"]
    train, val, best = panels["Loss"].get_lines()
    assert train.get_ydata() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert val.get_ydata() == pytest.approx([2, 1, 2 / 3, 1 / 2])
    assert best.get_xdata() == [3, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Training", "Validation", "Best epoch: 3"]


@pytest.mark.parametrize(("first", "scale"), [(2.0, "linear"), (400.0, "log")])
def test_an_epoch_far_above_the_others_does_not_flatten_them(first, scale):
    history = [{"epoch": k, "train": {"loss": 1 / k}, "val": {"loss": first if k == 1 else 0.5}} for k in range(1, 9)]
    assert history_figure(history).axes[0].get_yscale() == scale


def test_history_of_another_key_metric_has_its_panel():
    history = [{"epoch": k, "train": {"loss": 1.0}, "val": {"mcc": -0.5, "brier": 0.1 * k}} for k in (1, 2)]
    panels = {axes.get_title(): axes for axes in history_figure(history, "mcc").axes}
    assert list(panels) == ["Loss", "MCC"]
    assert panels["MCC"].get_ylim()[0] < -0.5
    assert list(panels["Loss"].get_lines()[-1].get_xdata()) == [1, 1]
    assert "Brier score" in [axes.get_title() for axes in history_figure(history, "brier").axes]


def test_best_epoch_breaks_ties_by_loss_and_ignores_nan():
    assert best_epoch(_history()) == 3
    assert best_epoch(_history(), "loss") == 4
    assert best_epoch(_history(), "f1") is None
    assert [best_epoch([{"epoch": k, "val": {"brier": k}} for k in (1, 2)], "brier")] == [1]
    assert best_epoch([{"epoch": 5, "val": {"f1": float("inf")}}, {"epoch": 6, "val": {"f1": 0.0}}], "f1") == 6


def test_history_without_an_epoch_is_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        history_figure([])


@pytest.mark.parametrize(
    ("num_classes", "name"),
    [
        (2, "{}"),
        (2, "x" * 40 + "{}"),
        (3, "a rather long name of a class, number {}"),
        (6, "class $ number {}"),
        (9, "x" * 40 + "{}"),
        (20, "a rather long name of a class, number {}"),
    ],
)
def test_labels_do_not_overlap(num_classes, name):
    label, prob = _problem(num_classes)
    names = [name.format(k) for k in range(num_classes)]
    assert_no_label_overlaps_or_is_clipped(confusion_figure(label, prob, names))
    points = np.random.default_rng(0).normal(size=(len(label), 2))
    assert_no_label_overlaps_or_is_clipped(embedding_figure(points, label, names, name))
    counts = {split: dict.fromkeys(names, 10**k) for k, split in enumerate(("train", "validation", "test"), 4)}
    assert_no_label_overlaps_or_is_clipped(class_figure(counts))


@pytest.mark.parametrize("num", [1, 4])
def test_history_labels_do_not_overlap(num):
    assert_no_label_overlaps_or_is_clipped(history_figure(_history(num)))


def test_report_starts_without_pyplot_and_torch():
    code = "import sys, monai_pipelines.report; print(*{'matplotlib.pyplot', 'torch', 'monai'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("\n", 0), result.stderr
