from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from monai_pipelines.metrics import classification_metrics, fit_temperature, reliability, temper
from monai_pipelines.probabilities import probabilities

KINDS = ["one logit", "two classes", "five classes", "multi-label"]


def _sample(kind: str, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with exactly their probabilities."""
    rng = np.random.default_rng(seed)
    columns = {"one logit": 1, "two classes": 2, "five classes": 5, "multi-label": 4}[kind]
    logits = rng.normal(0, 1.5, (num, columns))
    prob = probabilities(torch.from_numpy(logits), kind == "multi-label").numpy()
    if kind == "multi-label":
        return logits, (rng.random(prob.shape) < prob).astype(int)
    return logits, (rng.random((num, 1)) > prob.cumsum(axis=1)).sum(axis=1).clip(0, prob.shape[1] - 1)


def _reference_cost(logits: np.ndarray, label: np.ndarray, temperature: float) -> float:
    """Cross-entropy with smoothed targets, case by case."""
    total, num = 0.0, len(label)
    for row, truth in zip(logits.tolist(), label.tolist(), strict=True):
        if isinstance(truth, list):
            for z, y in zip(row, truth, strict=True):
                p = 1 / (1 + math.exp(-z / temperature))
                right = p if y else 1 - p
                total -= ((num + 1) * math.log(right) + math.log(1 - right)) / (num + 2)
            continue
        scaled = [math.exp(z / temperature) for z in ([0.0, *row] if len(row) == 1 else row)]
        for k, value in enumerate(scaled):
            weight = (num + 1) / (num + 2) if k == truth else 1 / (num + 2) / (len(scaled) - 1)
            total -= weight * math.log(value / sum(scaled))
    return total


# ---- temperature


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_temperature_has_the_lowest_cost(kind: str) -> None:
    for seed in range(4):
        logits, label = _sample(kind, 40, seed)
        temperature = fit_temperature(3 * logits, label)
        costs = [_reference_cost(3 * logits, label, temperature * factor) for factor in (0.98, 1, 1.02)]
        assert min(costs) == costs[1], seed
        assert costs[1] <= min(_reference_cost(3 * logits, label, t) for t in np.geomspace(0.5, 20, 40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_fit_recovers_the_factor_of_scaled_logits(kind: str, factor: float) -> None:
    logits, label = _sample(kind, 20_000, 7)
    assert fit_temperature(factor * logits, label) == pytest.approx(factor, rel=0.05)


def test_one_logit_equals_two_classes() -> None:
    logits, label = _sample("one logit", 50, 1)
    both = np.concatenate([np.zeros_like(logits), logits], axis=1)
    assert fit_temperature(5 * logits, label) == pytest.approx(fit_temperature(5 * both, label))
    assert fit_temperature(torch.from_numpy(5 * logits), torch.from_numpy(label)) == fit_temperature(5 * logits, label)


@pytest.mark.parametrize("num", [2, 10, 200])
def test_perfectly_separated_sets_do_not_become_certain(num: int) -> None:
    """All of `num` cases are right: the next one is with a probability of (num + 1) / (num + 2)."""
    label = np.repeat([0, 1], num // 2)
    logits = np.where(label == 1, 9.0, -9.0)[:, None]
    temperature = fit_temperature(logits, label)
    assert 1 / (1 + math.exp(-9 / temperature)) == pytest.approx((num + 1) / (num + 2), rel=1e-4)
    multilabel = np.concatenate([logits, -logits], axis=1)
    labels = np.stack([label, 1 - label], axis=1)
    assert fit_temperature(multilabel, labels) == pytest.approx(temperature, rel=1e-4)


def test_temperature_stays_within_its_bounds() -> None:
    label = np.repeat([0, 1], 1000)
    sure = np.where(label == 1, 0.01, -0.01)[:, None]
    assert fit_temperature(sure, label) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(-100 * sure, label) == pytest.approx(20, rel=1e-3)
    assert 0.05 <= fit_temperature([[1.0, 0.0, 0.0]], [0]) <= 20
    assert math.isfinite(fit_temperature(1e4 * sure, label))


@pytest.mark.parametrize(
    ("logits", "label", "message"),
    [
        (np.zeros((0, 2)), [], "wanted logits"),
        (np.zeros((3, 2)), [0, 1], r"got \(3, 2\) and \(2,\)"),
        (np.zeros((2, 3)), [[0, 1], [1, 0]], "wanted logits"),
        ([[0.0, math.inf], [0, 1]], [0, 1], "must be finite, got 1 rows"),
        (np.zeros((2, 1)), [0, 2], r"integers in 0\.\.1, got \[0 2\]"),
        (np.zeros((2, 3)), [0, 3], r"integers in 0\.\.2"),
        (np.zeros((1, 3)), [[0, 2, 1]], r"integers in 0\.\.1"),
    ],
)
def test_bad_logits_are_refused(logits: Any, label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, label)


# ---- tempered probabilities


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1, 3.7])
def test_tempered_probabilities_equal_those_of_tempered_logits(kind: str, temperature: float) -> None:
    logits, multilabel = torch.from_numpy(_sample(kind, 30, 2)[0]), kind == "multi-label"
    prob = probabilities(logits, multilabel)
    hot = temper(prob, temperature, multilabel)
    np.testing.assert_allclose(hot, probabilities(logits, multilabel, temperature), atol=1e-12)
    np.testing.assert_allclose(temper(hot, 1 / temperature, multilabel), prob, atol=1e-12)


def test_certain_probabilities_stay_certain() -> None:
    prob = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_array_equal(temper(prob, 4), prob)
    np.testing.assert_array_equal(temper(prob, 4, multilabel=True), prob)
    for temperature in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be above 0 and finite"):
            temper(prob, temperature)


# ---- reliability


def test_two_classes_equal_scikit_learn() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        score, label = rng.random(60).round(1 + seed % 2), rng.integers(0, 2, 60)
        bins = reliability(np.stack([1 - score, score], 1), label)
        observed, stated = calibration_curve(label, score, n_bins=10)
        assert [point["observed"] for point in bins] == pytest.approx(observed)
        assert [point["prob"] for point in bins] == pytest.approx(stated)
        assert sum(point["count"] for point in bins) == 60


@pytest.mark.parametrize("num_classes", [2, 4])
def test_gaps_of_the_bins_add_up_to_the_calibration_error(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.ones(num_classes), 200).round(1)
    prob[:, 0] += 1 - prob.sum(axis=1)
    prob, label = prob.clip(0, 1), rng.integers(0, num_classes, 200)
    gaps = [point["count"] * abs(point["prob"] - point["observed"]) for point in reliability(prob, label)]
    assert sum(gaps) / 200 == pytest.approx(classification_metrics(prob, label)["ece"])


@pytest.mark.parametrize("num_true", [0, 1, 7, 10])
def test_intervals_are_wilsons(num_true: int) -> None:
    """Roots of (p - observed)^2 = z^2 p (1 - p) / n."""
    label = np.repeat([1, 0], [num_true, 10 - num_true])
    (point,) = reliability(np.full((10, 2), 0.5), label)
    factor = 1.959963984540054**2 / 10
    roots = np.roots([1 + factor, -2 * num_true / 10 - factor, (num_true / 10) ** 2])
    assert (point["low"], point["high"]) == pytest.approx(sorted(roots), abs=1e-9)


def test_more_classes_use_confidence_and_multilabel_data_are_pooled() -> None:
    prob = np.array([[0.55, 0.25, 0.2], [0.1, 0.1, 0.8], [0.51, 0.09, 0.4], [1.0, 0.0, 0.0]])
    points = [(point["prob"], point["observed"], point["count"]) for point in reliability(prob, [0, 1, 2, 0])]
    assert points == [(pytest.approx(0.53), 0.5, 2), (pytest.approx(0.8), 0, 1), (1, 1, 1)]
    labels = [[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    pooled = reliability(prob, labels)
    assert [(point["count"], point["observed"]) for point in pooled] == [
        *((5, pytest.approx(1 / 5)), (1, 0), (1, 0), (1, 0), (2, 1), (1, 1), (1, 0))
    ]
