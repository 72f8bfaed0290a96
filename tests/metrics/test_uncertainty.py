from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from monai_pipelines.metrics import predicted_classes, referral_table, risk_coverage, uncertainty


def _two(*score: float) -> np.ndarray:
    return np.stack([1 - np.array(score), np.array(score)], 1)


# ---- single cases


def test_cases_nearest_to_the_threshold_are_least_certain() -> None:
    score = np.linspace(0.01, 0.99, 99)
    for threshold in (0.05, 0.3, 0.5, 0.9):
        unsure = uncertainty(_two(*score), threshold)
        distance = np.abs(np.log(score / (1 - score)) - math.log(threshold / (1 - threshold)))
        order = np.argsort(distance, kind="stable")
        assert (np.diff(unsure[order]) < 1e-12).all(), "decreases with the distance in logits"
        assert unsure == pytest.approx(1 / (1 + np.exp(distance)))
    assert uncertainty(_two(0.3), 0.3).tolist() == pytest.approx([0.5])


def test_without_a_threshold_it_is_one_minus_the_highest_probability() -> None:
    prob = np.random.default_rng(0).dirichlet(np.ones(4), 20)
    assert uncertainty(prob) == pytest.approx(1 - prob.max(axis=1))
    assert uncertainty(prob[:, :2] / prob[:, :2].sum(axis=1, keepdims=True), 0.5) == pytest.approx(
        uncertainty(prob[:, :2] / prob[:, :2].sum(axis=1, keepdims=True))
    )


def test_least_certain_label_counts() -> None:
    prob = [[0.9, 0.2, 0.01], [0.99, 0.02, 0.4]]
    assert uncertainty(prob, multilabel=True) == pytest.approx([0.2, 0.4])
    assert uncertainty(prob, 0.5, multilabel=True) == pytest.approx([0.2, 0.4])
    assert uncertainty(prob, [0.9, 0.5, 0.01], multilabel=True)[0] == pytest.approx(0.5)
    assert uncertainty(_two(0.8), multilabel=True) == pytest.approx([0.2])


def test_certain_probabilities_have_no_uncertainty() -> None:
    assert uncertainty(_two(0.0, 1.0), 0.3).tolist() == [0, 0]
    assert uncertainty([[0.0, 1.0]], multilabel=True).tolist() == [0]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_threshold_at_0_or_1_leaves_no_uncertainty(threshold: float) -> None:
    """Except for probabilities equal to it."""
    assert uncertainty(_two(1 - threshold, 0.5, threshold), threshold).tolist() == [0, 0, 0.5]
    assert uncertainty([[0.3, 0.4]], [threshold, 0.5], multilabel=True) == pytest.approx([0.4])
    assert uncertainty([[0.3, threshold]], threshold, multilabel=True).tolist() == [0.5]


@pytest.mark.parametrize(
    ("prob", "threshold", "multilabel"),
    [
        ([[0.2, 0.3, 0.5]], 0.5, False),
        (_two(0.5), [0.5, 0.5], False),
        (_two(0.5), -0.1, False),
        (_two(0.5), 1.1, False),
        ([[0.2, 0.3, 0.5]], [0.5, 0.5], True),
        ([[0.2, 0.3, 0.5]], [0.5, 0.5, 1.5], True),
    ],
)
def test_bad_thresholds_are_refused(prob: Any, threshold: Any, multilabel: bool) -> None:
    with pytest.raises(ValueError, match=r"threshold: wanted .*, got"):
        uncertainty(prob, threshold, multilabel)


# ---- risk and coverage


def _reference_risk(unsure: list[float], wrong: list[bool]) -> np.ndarray:
    """Mean over all orders by uncertainty."""
    orders = [
        o
        for o in itertools.permutations(range(len(unsure)))
        if all(unsure[a] <= unsure[b] for a, b in itertools.pairwise(o))
    ]
    curves = [[np.mean([wrong[k] for k in order[: n + 1]]) for n in range(len(order))] for order in orders]
    return np.mean(curves, axis=0)


def test_risk_equals_the_mean_over_orders_of_ties() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        num = int(rng.integers(1, 7))
        unsure, wrong = rng.integers(0, 4, num) / 10, rng.integers(0, 2, num).astype(bool)
        curve = risk_coverage(unsure, wrong)
        assert curve.risk.tolist() == pytest.approx(_reference_risk(unsure.tolist(), wrong.tolist()).tolist())
        assert curve.coverage.tolist() == pytest.approx([(k + 1) / num for k in range(num)])
        assert curve.area == pytest.approx(curve.risk.mean())


def test_area_of_good_and_bad_orders() -> None:
    wrong = np.arange(100) >= 80
    orders = np.arange(100), np.zeros(100), -np.arange(100)
    good, none, bad = (risk_coverage(unsure, wrong).area for unsure in orders)
    assert none == pytest.approx(0.2)
    assert good < 0.03 < 0.2 < bad


@pytest.mark.parametrize(("unsure", "wrong"), [([], []), ([0.1], [0, 1]), ([math.nan], [1]), ([[0.1]], [[1]])])
def test_bad_curves_are_refused(unsure: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match="risk_coverage: wanted finite uncertainty"):
        risk_coverage(unsure, wrong)


# ---- referral


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_table_equals_scikit_learn_on_remaining_cases(threshold: float | None) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 30)
    prob = _two(*(0.35 * label + 0.6 * rng.random(30)).clip(0, 1))
    unsure = uncertainty(prob, threshold)
    table = referral_table(unsure, prob, label, threshold=threshold)
    assert [row["referred"] for row in table] == [0, 0.05, 0.1, 0.2, 0.3, 0.5]
    assert [row["num_left"] for row in table] == [30, 28, 27, 24, 21, 15]  # shares are rounded up
    for row in table:
        left = np.argsort(unsure)[: row["num_left"]]
        truth, predicted = label[left], predicted_classes(prob[left], threshold)
        assert row["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
        assert row["recall"] == pytest.approx(recall_score(truth, predicted))
        assert row["specificity"] == pytest.approx(recall_score(truth, predicted, pos_label=0))
    assert table[-1]["accuracy"] > table[0]["accuracy"]


def test_only_two_classes_have_sensitivity() -> None:
    prob = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    names = {"referred", "num_left", "accuracy", "balanced_accuracy"}
    for label in ([0, 1, 2, 0, 1, 2, 0, 1], (prob > 0.4).astype(int)):
        table = referral_table(uncertainty(prob), prob, label, (0, 0.25, 0.99))
        assert [set(row) for row in table] == [names] * 3
        assert [row["num_left"] for row in table] == [8, 6, 1]  # one always remains


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted 2 uncertainties and fractions in \[0, 1\), got \(1,\)"):
        referral_table([0.1], _two(0.1, 0.2), [0, 1])
    with pytest.raises(ValueError, match=r"fractions in \[0, 1\)"):
        referral_table([0.1, 0.2], _two(0.1, 0.2), [0, 1], (0, 1))
