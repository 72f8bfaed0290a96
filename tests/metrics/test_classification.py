from __future__ import annotations

import math

import numpy as np
import pytest

from monai_pipelines.metrics import classification_metrics, per_class_metrics, predicted_classes


def test_binary_by_hand():
    prob_ill = np.array([0.1, 0.6, 0.5, 0.7, 0.9, 0.5])
    metrics = classification_metrics(np.stack([1 - prob_ill, prob_ill], axis=1), [0, 0, 0, 1, 1, 1])
    # 0.5 is a tie and goes to the first class: ill are images 1, 3, 4; TP 2, FP 1, FN 1, TN 2
    assert metrics == pytest.approx(
        {
            "accuracy": 4 / 6,
            "balanced_accuracy": 2 / 3,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "specificity": 2 / 3,
            "f1": 2 / 3,
            "roc_auc": 7.5 / 9,  # 3 + 3 + 1 pairs won, one tied
            "average_precision": 2 / 3 + 1 / 3 * 3 / 5,  # ranking: 1, 1, 0, then the tied pair
            "npv": 2 / 3,
            "mcc": (2 * 2 - 1 * 1) / 9,
            "kappa": (4 / 6 - 1 / 2) / (1 - 1 / 2),
            "brier": (0.01 + 0.36 + 0.25 + 0.09 + 0.01 + 0.25) / 6,
            "ece": (0.1 + 0.6 + 0.0 + 0.3 + 0.1) / 6,  # in (0.4, 0.5]: 1 ill, probabilities of 1.0 in all
            "log_loss": -np.log([0.9, 0.4, 0.5, 0.7, 0.9, 0.5]).mean(),
        }
    )


def test_class_1_is_the_positive_one():
    prob, label = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8]]), np.array([0, 0, 1, 1])
    metrics = classification_metrics(prob, label)
    assert (metrics["recall"], metrics["specificity"], metrics["precision"]) == (0.5, 1.0, 1.0)
    swapped = classification_metrics(prob[:, ::-1], 1 - label)
    assert (swapped["recall"], swapped["specificity"]) == (1.0, 0.5)


def test_averages_exclude_absent_classes_but_not_missed_ones():
    prob = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    metrics = classification_metrics(prob, [0, 0, 1])
    assert metrics["recall"] == 0.5  # 1 and 0; the third class has no image
    assert metrics["precision"] == pytest.approx((2 / 3 + 0) / 2)  # never predicted, but present: 0
    assert metrics["roc_auc"] == 1.0
    absent = per_class_metrics(prob, [0, 0, 1])[2]
    assert absent["num_images"] == 0
    assert {name for name, value in absent.items() if not math.isnan(value)} == {
        *("num_images", "specificity", "npv", "brier")
    }
    assert absent["specificity"] == absent["npv"] == 1.0


def test_average_over_no_class_is_nan():
    metrics = classification_metrics([[0.4, 0.6]], [0])
    assert {name: value for name, value in metrics.items() if not math.isnan(value)} == pytest.approx(
        {
            **dict.fromkeys(("accuracy", "balanced_accuracy", "specificity", "npv"), 0),
            **{"brier": 0.36, "ece": 0.6, "log_loss": -math.log(0.4)},
        }
    )


@pytest.mark.parametrize(
    ("prob", "label", "message"),
    [
        ([[0.5, 0.5], [math.nan, 0.5]], [0, 1], "finite, got .* in row 1"),
        ([[0.5, math.inf]], [0], "finite"),
        ([[-1.0, 3.0]], [1], "logits"),
        (
            [[0.5, 0.5], [0.9, 0.9]],
            [0, 1],
            r"add up to 1, got \[0\.9 0\.9\] in row 1 \(1 such rows\); .*--multilabel",
        ),
        ([[0.5, 0.5]], [2], r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [-1], r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [0.0], r"integers in 0\.\.1"),
        ([[0.5, 0.5]], [0, 1], "wanted prob"),
        ([[0.5, 0.5]], [[0, 1, 1]], "wanted prob"),
        ([[0.5, 0.5]], [[0, 2]], "multi-label data must be 0 or 1"),
        ([[1.0]], [0], "wanted prob"),
        ([0.5, 0.5], [0, 1], "wanted prob"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one row"),
    ],
)
def test_bad_input_is_refused(prob, label, message):
    for function in (classification_metrics, per_class_metrics):
        with pytest.raises(ValueError, match=message):
            function(prob, label)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rounded_probabilities_add_up(dtype):
    logits = np.random.default_rng(0).normal(0, 3, (200, 9))
    prob = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(dtype)
    assert 0 < classification_metrics(prob, np.arange(200) % 9)["roc_auc"] < 1


def test_predicted_classes_by_hand():
    prob = [[0.5, 0.5], [0.8, 0.2], [0.1, 0.9]]
    assert predicted_classes(prob).tolist() == [0, 0, 1]  # the first of equals
    assert predicted_classes(prob, 0.5).tolist() == [1, 0, 1]
    assert predicted_classes(prob, 0.2).tolist() == [1, 1, 1]
    assert predicted_classes(prob, multilabel=True).tolist() == [[1, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize("multilabel", [False, True])
def test_threshold_changes_predictions_only(multilabel):
    prob, label = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]), [0, 1, 1]
    if multilabel:
        label = np.eye(2, dtype=int)[label]
    before, after = (classification_metrics(prob, label, threshold=t) for t in (0.5, 0.3))
    assert (before["recall"], after["recall"]) == ((0.75, 1.0) if multilabel else (0.5, 1.0))
    for name in ("roc_auc", "average_precision", "brier", "ece", "log_loss"):
        assert before[name] == after[name]


def test_one_threshold_per_label():
    prob = [[0.7, 0.6, 0.1], [0.2, 0.65, 0.0]]
    assert predicted_classes(prob, [0.5, 0.65, 0.05], multilabel=True).tolist() == [[1, 0, 1], [0, 1, 0]]
    assert predicted_classes(prob, 0.2, multilabel=True).tolist() == [[1, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("prob", "threshold", "multilabel", "message"),
    [
        ([[0.2, 0.3, 0.5]], 0.5, False, "wanted one for two classes .* for 3 classes"),
        ([[0.5, 0.5]], [0.5, 0.5], False, "wanted one for two classes"),
        ([[0.5, 0.5]], 2, False, r"wanted probabilities in 0\.\.1, got 2"),
        ([[0.5, 0.5]], math.nan, False, r"wanted probabilities in 0\.\.1"),
        ([[0.5, 0.5]], [0.5, -0.1], True, r"wanted probabilities in 0\.\.1"),
        ([[0.5, 0.5]], [0.5, 0.5, 0.5], True, "one for all labels or one for each, got .* for 2 labels"),
    ],
)
def test_bad_threshold_is_refused(prob, threshold, multilabel, message):
    with pytest.raises(ValueError, match=message):
        predicted_classes(prob, threshold, multilabel)


def test_micro_average_ranks_all_classes_together():
    prob = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5]])
    metrics = classification_metrics(prob, [0, 1, 2])
    # right: 0.6, 0.4, 0.5; wrong: 0.5, 0.3, 0.3, 0.2, 0.1, 0.1; lost pairs: 0.4 < 0.5 and half of 0.5 = 0.5
    assert metrics["roc_auc_micro"] == pytest.approx((18 - 1 - 0.5) / 18)
    assert metrics["average_precision_micro"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_quadratic_kappa_penalizes_distant_mistakes_more():
    """Six grades right but one; chance disagreement by hand from the margins."""
    near, far = np.eye(3)[[0, 0, 1, 1, 2, 1]], np.eye(3)[[0, 0, 1, 1, 2, 0]]
    label = [0, 0, 1, 1, 2, 2]
    by_chance = lambda predicted: sum((a - b) ** 2 for a in label for b in predicted) / 36  # noqa: E731
    assert classification_metrics(near, label)["kappa_quadratic"] == pytest.approx(
        1 - (1 / 6) / by_chance([0, 0, 1, 1, 2, 1])
    )
    assert classification_metrics(far, label)["kappa_quadratic"] == pytest.approx(
        1 - (4 / 6) / by_chance([0, 0, 1, 1, 2, 0])
    )
    assert "kappa_quadratic" not in classification_metrics([[0.5, 0.5]], [0])
