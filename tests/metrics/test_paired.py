from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from monai_pipelines.metrics import (
    classification_metrics,
    compare_predictions,
    delong_test,
    paired,
    resampled_metrics,
)


def _two(label, strength, rng, patient=None):
    """(N, 2) probabilities; `patient`: added to the logits."""
    logit = strength * (2 * label - 1) + rng.normal(0, 1, len(label)) + (0 if patient is None else patient)
    ill = 1 / (1 + np.exp(-logit))
    return np.stack([1 - ill, ill], axis=1)


def _cohort(seed, num_patients=40, each=3, strengths=(0.5, 0.5)):
    """Two models with independent noise and levels per patient, whose images have one class."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_patients), each)
    label = groups % 2
    levels = rng.normal(0, 1, (2, num_patients))[:, groups]
    return (
        *(_two(label, strength, rng, level) for strength, level in zip(strengths, levels, strict=True)),
        label,
        groups,
    )


def _reference_differences(a, b, label, groups, metric, num_resamples):
    """Paired bootstrap by repeating rows, from another seed."""
    rng = np.random.default_rng(99)
    rows = {g: np.flatnonzero(groups == g) for g in np.unique(groups)}
    differences = []
    for _ in range(num_resamples):
        k = np.concatenate([rows[g] for g in rng.choice(list(rows), len(rows))])
        differences.append(metric(label[k], b[k, 1]) - metric(label[k], a[k, 1]))
    return np.array(differences)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("roc_auc", roc_auc_score),
        ("brier", brier_score_loss),
        ("balanced_accuracy", lambda label, ill: balanced_accuracy_score(label, ill > 0.5)),
    ],
)
def test_equals_a_paired_bootstrap_of_repeated_rows_up_to_chance(name, metric):
    a, b, label, groups = _cohort(1, strengths=(0.4, 0.8))
    got = compare_predictions(a, b, label, groups)["metrics"][name]
    assert (got["a"], got["b"]) == pytest.approx([metric(label, prob[:, 1]) for prob in (a, b)])
    assert got["difference"] == pytest.approx(got["b"] - got["a"])
    std = _reference_differences(a, b, label, groups, metric, 150).std()
    student = stats.t(39, got["difference"], std * np.sqrt(40 / 39))
    assert (got["low"], got["high"]) == pytest.approx(student.interval(0.95), abs=0.3 * std)
    assert got["p"] == pytest.approx(2 * min(student.cdf(0), student.sf(0)), abs=0.05)
    resamples = resampled_metrics(b, label, groups)[name] - resampled_metrics(a, label, groups)[name]
    student = stats.t(39, got["difference"], resamples.std() * np.sqrt(40 / 39))
    assert (got["low"], got["high"]) == pytest.approx(student.interval(0.95))
    assert got["p"] == pytest.approx(2 * min(student.cdf(0), student.sf(0)))


def test_pairing_narrows_the_interval():
    """Images that are hard for both models cancel: the same errors but for a few."""
    a, _, label, groups = _cohort(2)
    b = a.copy()
    b[:6] = b[:6, ::-1]
    paired = compare_predictions(a, b, label, groups)["metrics"]["accuracy"]
    shuffled = np.random.default_rng(0).permutation(20) * 2  # whole patients of class 0 change places: same accuracy
    order = np.concatenate([np.flatnonzero(groups == g) for k in range(20) for g in (shuffled[k], 2 * k + 1)])
    other = compare_predictions(a, b[order], label, groups)["metrics"]["accuracy"]
    assert other["difference"] == pytest.approx(paired["difference"])
    assert paired["high"] - paired["low"] < 0.7 * (other["high"] - other["low"])


def test_correlated_images_widen_the_interval():
    a, b, label, groups = _cohort(3, each=8)
    by_patient = compare_predictions(a, b, label, groups)["metrics"]["roc_auc"]
    by_image = compare_predictions(a, b, label, range(len(label)))["metrics"]["roc_auc"]
    assert by_patient["high"] - by_patient["low"] > 1.5 * (by_image["high"] - by_image["low"])


def test_a_model_does_not_differ_from_itself():
    a, _, label, groups = _cohort(4)
    result = compare_predictions(a, a.copy(), label, groups, num_resamples=50)
    for row in result["metrics"].values():
        assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
    assert result["delong"][0]["p"] == 1


def test_each_model_is_scored_at_its_threshold():
    a, b, label, groups = _cohort(5)
    result = compare_predictions(a, b, label, groups, 0.3, 0.7, num_resamples=50)["metrics"]
    for key, prob, threshold in (("a", a, 0.3), ("b", b, 0.7)):
        wanted = classification_metrics(prob, label, threshold=threshold)
        assert {name: row[key] for name, row in result.items()} == pytest.approx(wanted)


def test_swapping_the_models_changes_only_the_sign():
    a, b, label, groups = _cohort(6, strengths=(0.2, 1.0))
    one = compare_predictions(a, b, label, groups, num_resamples=200)
    other = compare_predictions(b, a, label, groups, num_resamples=200)
    for name, row in one["metrics"].items():
        swapped = other["metrics"][name]
        assert (row["low"], row["high"], row["p"]) == pytest.approx((-swapped["high"], -swapped["low"], swapped["p"]))


def test_delong_for_each_class():
    rng = np.random.default_rng(7)
    groups, label = np.arange(60) // 2, rng.integers(0, 3, 60)
    a, b = rng.dirichlet([1, 1, 1], (2, 60))
    tests = compare_predictions(a, b, label, groups, num_resamples=20)["delong"]
    assert tests == [delong_test(label == k, a[:, k], b[:, k], groups)._asdict() for k in range(3)]
    labels = rng.integers(0, 2, (60, 3))
    tests = compare_predictions(a, b, labels, groups, num_resamples=20)["delong"]
    assert tests == [delong_test(labels[:, k], a[:, k], b[:, k], groups)._asdict() for k in range(3)]
    two = [prob[:, :2] / prob[:, :2].sum(1, keepdims=True) for prob in (a, b)]
    tests = compare_predictions(*two, label % 2, groups, num_resamples=20)["delong"]
    assert tests == [delong_test(label % 2, two[0][:, 1], two[1][:, 1], groups)._asdict()]


def test_intervals_of_three_patients_stay_within_what_is_possible():
    label = np.array([0, 1, 0, 1, 0, 1])
    a = np.array([0.9, 0.2, 0.4, 0.6, 0.3, 0.9])
    b = np.array([0.1, 0.9, 0.8, 0.7, 0.6, 0.2])
    groups = [0, 0, 1, 1, 2, 2]
    metrics = compare_predictions(*(np.stack([1 - p, p], 1) for p in (a, b)), label, groups)["metrics"]
    limits = {name: 2 if name in ("mcc", "kappa") else 1 for name in metrics if name != "log_loss"}
    ends = {name: (metrics[name]["low"], metrics[name]["high"]) for name in limits}
    assert all(-limits[name] <= low <= high <= limits[name] for name, (low, high) in ends.items() if low == low)
    assert ends["roc_auc"][0] == -1
    assert metrics["log_loss"]["high"] - metrics["log_loss"]["low"] > 4


def test_undefined_metrics_are_nan():
    a, b, _, groups = _cohort(8)
    result = compare_predictions(a, b, np.zeros(120, int), groups, num_resamples=20)
    assert all(map(math.isnan, result["metrics"]["roc_auc"].values()))
    assert all(map(math.isnan, result["delong"][0].values()))
    assert math.isfinite(result["metrics"]["accuracy"]["p"])


@pytest.mark.parametrize(("num_defined", "has_interval"), [(9, False), (10, True)])
def test_metrics_defined_in_few_resamples_have_no_interval(monkeypatch, num_defined, has_interval):
    values = np.r_[np.linspace(0, 1, num_defined), [np.nan] * (20 - num_defined)]
    a, b, label, groups = _cohort(9)
    resamples = iter([dict.fromkeys(classification_metrics(a, label), column) for column in (values, 2 * values)])
    monkeypatch.setattr(paired, "resampled_metrics", lambda *_, **__: next(resamples))
    row = compare_predictions(a, b, label, groups, num_resamples=20)["metrics"]["accuracy"]
    assert math.isfinite(row["difference"])
    assert [math.isfinite(row[key]) for key in ("low", "high", "p")] == [has_interval] * 3


def test_models_of_different_classes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(2, 3\)"):
        compare_predictions(np.eye(2), np.full((2, 3), 1 / 3), [0, 1], "ab")


@pytest.mark.parametrize(("num_studies", "high"), [(20, 0.2), pytest.param(300, 0.088, marks=pytest.mark.nightly)])
def test_false_alarm_rate_is_right_with_30_patients(num_studies, high):
    """Of 300 studies 5% may differ by chance, and 8.8% within three standard errors; percentiles had 11% for Brier."""
    num_alarms = dict.fromkeys(("brier", "accuracy", "roc_auc"), 0)
    for seed in range(num_studies):
        a, b, label, groups = _cohort(seed, num_patients=30, each=1)
        metrics = compare_predictions(a, b, label, groups, num_resamples=300)["metrics"]
        for name in num_alarms:
            row = metrics[name]
            assert (row["p"] < 0.05) == (not row["low"] <= 0 <= row["high"])
            num_alarms[name] += row["p"] < 0.05
    assert num_alarms["brier"] / num_studies >= 0.02, num_alarms
    assert max(num_alarms.values()) / num_studies < high, num_alarms


def test_constant_differences_have_no_interval():
    """All right against all wrong, and a single patient."""
    label = np.arange(12) % 2
    right, wrong = np.eye(2)[label], np.eye(2)[1 - label]
    for groups in (range(12), [0] * 12):
        row = compare_predictions(right, wrong, label, groups, num_resamples=20)["metrics"]["accuracy"]
        assert row["difference"] == -1
        assert all(math.isnan(row[key]) for key in ("low", "high", "p"))


@pytest.mark.parametrize(("num_studies", "high"), [(15, 0.2), pytest.param(120, 0.11, marks=pytest.mark.nightly)])
def test_false_alarm_rate_is_right_by_patient_and_not_by_image(num_studies, high):
    """Of 120 studies of equally good models 5% may differ by chance, and 11% within three standard errors."""
    num_alarms = {name: np.zeros(2) for name in ("roc_auc", "accuracy", "brier")}
    for seed in range(num_studies):
        a, b, label, groups = _cohort(seed, num_patients=60, each=5)
        for k, clusters in enumerate((groups, range(len(label)))):
            metrics = compare_predictions(a, b, label, clusters, num_resamples=200)["metrics"]
            for name in num_alarms:
                num_alarms[name][k] += metrics[name]["p"] < 0.05
    for name, (by_patient, by_image) in num_alarms.items():
        assert by_patient / num_studies < high, name
        assert by_image / num_studies > 0.13, name
