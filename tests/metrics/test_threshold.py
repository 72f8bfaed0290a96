from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from monai_pipelines.metrics import check_rule, choose_threshold, predicted_classes


def _rates(score, label, threshold):
    predicted = score >= threshold
    return predicted[label == 1].mean(), (~predicted[label == 0]).mean()


def _reference_best(score, label, rule):
    """Sensitivity and specificity of the best threshold, by trying one in every gap between scores."""
    edges = sorted({0.0, 1.0, *score.tolist()})
    gaps = [(low + high) / 2 for low, high in pairwise(edges)]
    rates = [_rates(score, label, cut) for cut in gaps]
    if rule == "youden":
        return max(rates, key=lambda rate: (round(sum(rate), 9), rate[0]))
    name, target = rule.split("=")
    if name == "cost":
        num_positive, num_negative = (label == 1).sum(), (label == 0).sum()
        return min(
            rates,
            key=lambda rate: (
                round(float(target) * (1 - rate[0]) * num_positive + (1 - rate[1]) * num_negative, 9),
                -rate[0],
            ),
        )
    first, second = (0, 1) if name == "sensitivity" else (1, 0)
    reached = [rate for rate in rates if rate[first] >= float(target)]
    if reached:
        return max(reached, key=lambda rate: (rate[second], rate[first]))
    return max(rates, key=lambda rate: (rate[first], rate[second]))


@pytest.mark.parametrize(
    "rule", ["youden", "sensitivity=0.95", "sensitivity=0.5", "specificity=0.9", "specificity=1", "cost=5", "cost=0.2"]
)
@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_equals_brute_force_under_ties(rule, decimals):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        label = np.concatenate([[0, 1], rng.integers(0, 2, rng.integers(0, 40))])
        score = (0.6 * rng.random(len(label)) + 0.4 * rng.random() * label).clip(0, 1).round(decimals)
        prob = np.stack([1 - score, score], 1)
        threshold = choose_threshold(prob, label, rule)
        assert _rates(score, label, threshold) == pytest.approx(_reference_best(score, label, rule)), seed
        assert 0 < threshold < 1
        assert threshold not in score
        order = rng.permutation(len(label))
        assert choose_threshold(prob[order], label[order], rule) == threshold


def _prob(*score):
    return np.stack([1 - np.array(score), np.array(score)], 1)


def test_lies_midway_between_neighbors():
    prob = _prob(0.1, 0.2, 0.6, 0.9)
    assert choose_threshold(prob, [0, 0, 1, 1]) == pytest.approx(0.4)
    assert choose_threshold(prob, [0, 1, 0, 1], "sensitivity=1") == pytest.approx(0.15)
    assert choose_threshold(prob, [0, 1, 0, 1], "specificity=1") == pytest.approx(0.75)
    assert choose_threshold(prob, [1, 1, 0, 0], "sensitivity=1") == pytest.approx(0.05)  # all, midway to 0
    assert choose_threshold(prob, [1, 1, 0, 0], "specificity=1") == pytest.approx(0.95)  # none, midway to 1


def test_youden_prefers_sensitivity_on_ties():
    assert choose_threshold(_prob(0.2, 0.4, 0.6, 0.8), [0, 1, 0, 1]) == pytest.approx(0.3)  # 1 + 0.5 as 0.5 + 1


@pytest.mark.parametrize(
    ("score", "wanted"),
    [((0.0, 0.0), 0.5), ((1.0, 1.0), 0.5), ((0.0, 1.0), 0.5), ((1.0, 0.0), 0.5), ((0.3, 0.3), 0.15)],
)
def test_scores_at_the_ends_and_ties(score, wanted):
    assert choose_threshold(_prob(*score), [0, 1]) == pytest.approx(wanted)


def test_a_positive_scored_zero_cannot_be_reached():
    threshold = choose_threshold(_prob(0.0, 0.5, 0.25), [1, 1, 0], "sensitivity=0.95")
    assert threshold == pytest.approx(0.375)


def test_adjacent_floats_are_separated():
    low = 0.5
    score = np.array([low, np.nextafter(low, 1)])
    prob = np.stack([1 - score, score], 1)
    assert predicted_classes(prob, choose_threshold(prob, [0, 1])).tolist() == [0, 1]


def test_reaches_a_target_rate_exactly():
    score = np.linspace(0.1, 0.9, 20)
    threshold = choose_threshold(_prob(*score, 0.05), [1] * 20 + [0], "sensitivity=0.55")
    assert (score >= threshold).sum() == 20  # all positives without a false alarm
    mixed = choose_threshold(_prob(*score, *score - 0.001), [1] * 20 + [0] * 20, "sensitivity=0.55")
    assert (score >= mixed).sum() == 11


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1]])
def test_absent_class_has_no_threshold(label):
    assert choose_threshold(_prob(0.1, 0.2, 0.3), label) is None


@pytest.mark.parametrize(
    "rule",
    [
        "Youden",
        "youden=1",
        "sensitivity",
        "sensitivity=",
        "sensitivity=0",
        "sensitivity=1.1",
        "cost",
        "cost=0",
        "cost=-1",
        "cost=inf",
        "cost=nan",
        "specificity=x",
        "",
    ],
)
def test_unknown_rule_is_refused(rule):
    wanted = r"wanted youden, sensitivity=0\.95, specificity=0\.9 \(above 0 to 1\) or cost=5 \(above 0\), got"
    with pytest.raises(ValueError, match=wanted):
        check_rule(rule)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="wanted two classes or multi-label data, got 3"):
        choose_threshold([[0.2, 0.3, 0.5]], [0])
    with pytest.raises(ValueError, match=r"wanted prob \(N, C >= 2\)"):
        choose_threshold([[0.2, 0.3]], [[0, 1, 1]])


@pytest.mark.parametrize("rule", ["youden", "sensitivity=0.9", "cost=3"])
def test_multilabel_data_have_one_threshold_per_label(rule):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (40, 4))
    prob = (0.5 * label + 0.5 * rng.random((40, 4))).clip(0, 1)
    label[:, 1], label[:, 3] = 0, 1  # of no image, of all
    wanted = [choose_threshold(_prob(*prob[:, k]), label[:, k], rule) for k in (0, 2)]
    assert choose_threshold(prob, label, rule) == [wanted[0], 0.5, wanted[1], 0.5]


def test_cost_of_a_miss():
    prob, label = _prob(0.2, 0.4, 0.6, 0.8), [1, 0, 0, 1]
    assert choose_threshold(prob, label, "cost=3") == pytest.approx(0.1)  # two false alarms, 2, for a miss, 3
    assert choose_threshold(prob, label, "cost=1.5") == pytest.approx(0.7)
    assert choose_threshold(prob, label, "cost=2") == pytest.approx(0.1)  # the more sensitive on ties
