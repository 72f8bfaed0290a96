from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monai_pipelines.metrics import net_benefit


def _reference_net_benefit(prob: list[float], label: list[int], threshold: float) -> float:
    """Vickers and Elkin 2006, counted."""
    right = sum(p >= threshold and y == 1 for p, y in zip(prob, label, strict=True))
    alarms = sum(p >= threshold and y == 0 for p, y in zip(prob, label, strict=True))
    return right / len(prob) - alarms / len(prob) * threshold / (1 - threshold)


def test_equals_counts() -> None:
    thresholds = [0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.99]
    for seed in range(50):
        rng = np.random.default_rng(seed)
        num = int(rng.integers(1, 40))
        prob, label = rng.random(num).round(2), rng.integers(0, 2, num)
        model, treat_all = net_benefit(prob, label, thresholds)
        wanted = [_reference_net_benefit(prob.tolist(), label.tolist(), t) for t in thresholds]
        of_all = [_reference_net_benefit([1.0] * num, label.tolist(), t) for t in thresholds]
        assert model.tolist() == pytest.approx(wanted)
        assert treat_all.tolist() == pytest.approx(of_all)


def test_ends_of_the_curve() -> None:
    prob, label = [0.2, 0.3, 0.9], [0, 1, 1]
    model, treat_all = net_benefit(prob, label, [0, 0.2, 0.95])
    assert model[0] == treat_all[0] == pytest.approx(2 / 3)  # false alarms cost nothing: the prevalence
    assert model[1] == treat_all[1]  # all are positive
    assert model[2] == 0  # nobody is positive


def test_probabilities_are_clipped() -> None:
    curves, exact = (net_benefit(prob, [0, 1], [0.0, 0.5]) for prob in ([-1e-7, 1 + 1e-7], [0, 1]))
    np.testing.assert_array_equal(curves, exact)


@pytest.mark.parametrize(
    ("prob", "label", "thresholds", "message"),
    [
        ([], [], [0.5], "wanted prob"),
        ([0.1], [0, 1], [0.5], r"got \(1,\), \(2,\) and \(1,\)"),
        ([0.1], [0], 0.5, "wanted prob"),
        ([0.1], [2], [0.5], "label must be 0 or 1"),
        ([1.1], [1], [0.5], r"prob in \[0, 1\]"),
        ([0.1], [1], [1.0], r"thresholds in \[0, 1\)"),
        ([np.nan], [1], [0.5], r"prob in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(prob: Any, label: Any, thresholds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net_benefit(prob, label, thresholds)
