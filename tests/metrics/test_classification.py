from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from monai_pipelines.metrics import classification_metrics, per_class_metrics, predicted_classes

NAMES = ("precision", "recall", "specificity", "f1", "roc_auc", "average_precision")


def _reference_one_vs_rest(positive, predicted, score):
    """Counting, pairs and a walk down the ranking; no scikit-learn."""
    tp, fp = (predicted & positive).sum(), (predicted & ~positive).sum()
    fn, tn = (~predicted & positive).sum(), (~predicted & ~positive).sum()
    figures = dict.fromkeys(NAMES, math.nan)
    if positive.any():
        figures["recall"] = tp / (tp + fn)
        figures["precision"] = tp / (tp + fp) if tp + fp else 0.0
        figures["f1"] = 2 * tp / (2 * tp + fp + fn)
        figures["average_precision"] = 0.0
        recall = 0.0
        for threshold in sorted(set(score), reverse=True):
            called = score >= threshold
            step = (called & positive).sum() / positive.sum() - recall
            figures["average_precision"] += step * (called & positive).sum() / called.sum()
            recall += step
    if not positive.all():
        figures["specificity"] = tn / (tn + fp)
    if positive.any() and not positive.all():
        pairs = score[positive][:, None] - score[~positive][None]
        figures["roc_auc"] = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    return figures


def _reference_metrics(prob, label):
    num = prob.shape[1]
    predicted = prob.argmax(1)
    classes = [_reference_one_vs_rest(label == k, predicted == k, prob[:, k]) for k in range(num)]

    def mean(name, of):
        values = [figures[name] for figures in of if not math.isnan(figures[name])]
        return np.mean(values) if values else math.nan

    headline = {name: mean(name, classes[1:] if num == 2 else classes) for name in NAMES}
    headline["accuracy"] = (predicted == label).mean()
    headline["balanced_accuracy"] = mean("recall", classes)
    return headline, classes


def _problem(seed):
    """Random problems with ties (rounded probabilities), absent classes, one class only and a single scan."""
    rng = np.random.default_rng(seed)
    num, n = rng.integers(2, 6), rng.choice([1, 2, 5, 40])
    label = rng.choice(rng.choice(num, size=rng.integers(1, num + 1), replace=False), size=n)
    prob = rng.dirichlet(np.ones(num), size=n)
    return (prob.round(1) if seed % 2 else prob), label


@pytest.mark.parametrize("block", range(4))
def test_equals_the_reference_on_random_problems(block):
    for seed in range(block * 50, block * 50 + 50):
        prob, label = _problem(seed)
        headline, classes = _reference_metrics(prob, label)
        assert classification_metrics(prob, label) == pytest.approx(headline, nan_ok=True), seed
        for got, wanted, k in zip(per_class_metrics(prob, label), classes, range(prob.shape[1]), strict=True):
            assert got == pytest.approx({"num_scans": (label == k).sum(), **wanted}, nan_ok=True), seed


def test_binary_by_hand():
    prob_ill = np.array([0.1, 0.6, 0.5, 0.7, 0.9, 0.5])
    figures = classification_metrics(np.stack([1 - prob_ill, prob_ill], axis=1), [0, 0, 0, 1, 1, 1])
    # 0.5 is a tie and goes to the first class: ill are scans 1, 3, 4; TP 2, FP 1, FN 1, TN 2
    assert figures == pytest.approx(
        {
            "accuracy": 4 / 6,
            "balanced_accuracy": 2 / 3,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "specificity": 2 / 3,
            "f1": 2 / 3,
            "roc_auc": 7.5 / 9,  # 3 + 3 + 1 pairs won, one tied
            "average_precision": 2 / 3 + 1 / 3 * 3 / 5,  # ranking: 1, 1, 0, then the tied pair
        }
    )


def test_class_1_is_the_positive_one():
    prob, label = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8]]), np.array([0, 0, 1, 1])
    figures = classification_metrics(prob, label)
    assert (figures["recall"], figures["specificity"], figures["precision"]) == (0.5, 1.0, 1.0)
    swapped = classification_metrics(prob[:, ::-1], 1 - label)
    assert (swapped["recall"], swapped["specificity"]) == (1.0, 0.5)


def test_macro_equals_scikit_learn_where_every_class_is_there():
    rng = np.random.default_rng(3)
    prob, label = rng.dirichlet(np.ones(4), size=80), np.arange(80) % 4
    figures, predicted = classification_metrics(prob, label), prob.argmax(1)
    assert figures["roc_auc"] == pytest.approx(sk.roc_auc_score(label, prob, multi_class="ovr", average="macro"))
    assert figures["average_precision"] == pytest.approx(sk.average_precision_score(label, prob, average="macro"))
    assert figures["f1"] == pytest.approx(sk.f1_score(label, predicted, average="macro"))
    assert figures["precision"] == pytest.approx(sk.precision_score(label, predicted, average="macro"))
    assert figures["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(label, predicted))


def test_absent_class_stays_out_of_the_averages_and_a_missed_one_does_not():
    prob = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    figures = classification_metrics(prob, [0, 0, 1])
    assert figures["recall"] == 0.5  # 1 and 0; the third class has no scan
    assert figures["precision"] == pytest.approx((2 / 3 + 0) / 2)  # never predicted, but there: 0
    assert figures["roc_auc"] == 1.0
    absent = per_class_metrics(prob, [0, 0, 1])[2]
    assert absent["num_scans"] == 0
    assert absent["specificity"] == 1.0
    assert all(math.isnan(absent[name]) for name in NAMES if name != "specificity")


def test_nothing_to_average_is_nan():
    figures = classification_metrics([[0.4, 0.6]], [0])
    assert figures["accuracy"] == figures["specificity"] == 0.0
    assert all(math.isnan(figures[name]) for name in NAMES if name != "specificity")


@pytest.mark.parametrize(
    ("prob", "label", "num_classes", "message"),
    [
        ([[0.5, 0.5], [math.nan, 0.5]], [0, 1], None, "finite, got .* in row 1"),
        ([[0.5, math.inf]], [0], None, "finite"),
        ([[-1.0, 3.0]], [1], None, "logits"),
        ([[0.5, 0.5]], [2], None, r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [-1], None, r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [0.0], None, r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [0, 1], None, "wanted prob"),
        ([[0.5, 0.5]], [[0, 1, 1]], None, "wanted prob"),
        ([[0.5, 0.5]], [[0, 2]], None, "several labels each must be 0 or 1"),
        ([[1.0]], [0], None, "wanted prob"),
        ([0.5, 0.5], [0, 1], None, "wanted prob"),
        (np.zeros((0, 2)), np.zeros(0, int), None, "at least one row"),
        ([[0.5, 0.5]], [0], 3, "wanted 3 classes, got prob with 2"),
    ],
)
def test_bad_input_is_told(prob, label, num_classes, message):
    for figures in (classification_metrics, per_class_metrics):
        with pytest.raises(ValueError, match=message):
            figures(prob, label, num_classes)


@pytest.mark.parametrize("seed", range(40))
def test_several_labels_each_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    num, n = rng.integers(2, 6), rng.choice([1, 3, 30])
    label = (rng.random((n, num)) < rng.random(num)).astype(int)
    prob = rng.random((n, num)).round(1 if seed % 2 else 6)
    classes = [_reference_one_vs_rest(label[:, k] == 1, prob[:, k] >= 0.5, prob[:, k]) for k in range(num)]
    figures = classification_metrics(prob, label.astype(np.float32) if seed % 3 else label)
    for got, wanted, k in zip(per_class_metrics(prob, label), classes, range(num), strict=True):
        assert got == pytest.approx({"num_scans": label[:, k].sum(), **wanted}, nan_ok=True)
    for name in NAMES:
        values = [own[name] for own in classes if not math.isnan(own[name])]
        assert figures[name] == pytest.approx(np.mean(values) if values else math.nan, nan_ok=True)
    assert figures["accuracy"] == pytest.approx(sum((prob >= 0.5).ravel() == label.ravel()) / label.size)
    both = [(own["recall"] + own["specificity"]) / 2 for own in classes]
    both = [value for value in both if not math.isnan(value)]
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(both) if both else math.nan, nan_ok=True)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.7, 1.0])
def test_threshold_moves_what_is_predicted_and_nothing_else(threshold):
    rng = np.random.default_rng(0)
    score, label = rng.random(50).round(1), rng.integers(0, 2, 50)
    prob = np.stack([1 - score, score], 1)
    wanted = _reference_one_vs_rest(label == 1, score >= threshold, score)
    figures = classification_metrics(prob, label, threshold=threshold)
    assert {name: figures[name] for name in NAMES} == pytest.approx(wanted)
    assert figures["accuracy"] == ((score >= threshold) == label).mean()
    healthy = _reference_one_vs_rest(label == 0, score < threshold, 1 - score)
    assert per_class_metrics(prob, label, threshold=threshold)[0] == pytest.approx(
        {"num_scans": (label == 0).sum(), **healthy}
    )


def test_predicted_classes_by_hand():
    prob = [[0.5, 0.5], [0.8, 0.2], [0.1, 0.9]]
    assert predicted_classes(prob).tolist() == [0, 0, 1]  # the first of equals
    assert predicted_classes(prob, 0.5).tolist() == [1, 0, 1]
    assert predicted_classes(prob, 0.2).tolist() == [1, 1, 1]
    assert predicted_classes(prob, multilabel=True).tolist() == [[1, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("prob", "threshold", "multilabel"),
    [([[0.2, 0.3, 0.5]], 0.5, False), ([[0.5, 0.5]], 0.5, True), ([[0.5, 0.5]], 2, False)],
)
def test_threshold_without_two_classes_is_told(prob, threshold, multilabel):
    with pytest.raises(ValueError, match=r"threshold: wanted one in 0\.\.1 for two classes"):
        predicted_classes(prob, threshold, multilabel)
