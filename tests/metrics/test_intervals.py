from __future__ import annotations

import math

import numpy as np
import pytest

from monai_pipelines.metrics import bootstrap_intervals, classification_metrics


def _accuracy(prob, label):
    return {"accuracy": float((prob.argmax(1) == label).mean())}


def _reference_cluster_interval(right, groups, num_resamples, tail):
    """Mean over drawn groups, from sums and sizes; draws of its own."""
    rng = np.random.default_rng(99)
    names = sorted(set(groups))
    sums = np.array([sum(r for r, g in zip(right, groups, strict=True) if g == name) for name in names])
    sizes = np.array([groups.count(name) for name in names])
    drawn = rng.integers(len(names), size=(num_resamples, len(names)))
    return np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [100 * tail, 100 * (1 - tail)])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_equals_the_reference_up_to_chance(level):
    rng = np.random.default_rng(0)
    groups = [f"p{k}" for k in rng.integers(0, 40, 150)]
    label = rng.integers(0, 2, 150)
    right = rng.random(150) < 0.7
    prob = np.eye(2)[np.where(right, label, 1 - label)]
    got = bootstrap_intervals(_accuracy, prob, label, groups, level=level)["accuracy"]
    assert got == pytest.approx(_reference_cluster_interval(right.tolist(), groups, 20_000, (1 - level) / 2), abs=0.012)


def test_images_of_one_patient_make_the_interval_wider():
    label = np.zeros(200, int)
    right = np.repeat(np.arange(20) < 14, 10)  # ten images of a patient, all right or all wrong
    prob = np.eye(2)[np.where(right, 0, 1)]
    by_patient = bootstrap_intervals(_accuracy, prob, label, np.repeat(np.arange(20), 10).tolist(), 500)["accuracy"]
    by_image = bootstrap_intervals(_accuracy, prob, label, range(200), 500)["accuracy"]
    assert np.ptp(by_patient) > 2.5 * np.ptp(by_image)  # sqrt(10) times as wide


def test_draws_are_the_same_each_time():
    prob, label = np.random.default_rng(0).dirichlet([1, 1], 30), np.arange(30) % 2
    first, again = (bootstrap_intervals(classification_metrics, prob, label, range(30), 20) for _ in range(2))
    assert first == again
    assert set(first) == set(classification_metrics(prob, label))
    assert all(low <= high for low, high in first.values())


def test_undefined_figures_are_left_out():
    prob = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    alone = bootstrap_intervals(classification_metrics, prob, [0, 0, 0], "abc", 20)
    assert set(alone) == {"accuracy", "balanced_accuracy", "specificity"}
    # one positive of three: a third of the resamples lack it, and ROC AUC is 1 in all others
    assert bootstrap_intervals(classification_metrics, prob, [0, 1, 0], "abc", 50)["roc_auc"] == (1, 1)


def test_one_group_has_an_interval_of_no_width():
    assert bootstrap_intervals(_accuracy, np.eye(2), [0, 0], ["a", "a"], 10) == {"accuracy": (0.5, 0.5)}


def test_figure_undefined_in_every_resample_is_left_out():
    calls = iter(range(100))

    def figures(prob, label):
        return {"odd": math.nan if next(calls) else 1.0}

    assert bootstrap_intervals(figures, np.eye(2), [0, 1], "ab", 5) == {}


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ("a", {}, "one length, got 2, 2 and 1"),
        ("ab", {"num_resamples": 0}, "a resample"),
        ("ab", {"level": 1}, "level"),
    ],
)
def test_bad_input_is_told(groups, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(_accuracy, np.eye(2), [0, 1], groups, **options)
