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
    """(N, 2) probabilities; the patient's own level, where given, is added."""
    logit = strength * (2 * label - 1) + rng.normal(0, 1, len(label)) + (0 if patient is None else patient)
    ill = 1 / (1 + np.exp(-logit))
    return np.stack([1 - ill, ill], axis=1)


def _cohort(seed, num_patients=40, each=3, strengths=(0.5, 0.5)):
    """Two models of their own noise and their own level for each patient, whose images are of one class."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_patients), each)
    label = groups % 2
    levels = rng.normal(0, 1, (2, num_patients))[:, groups]
    return *(_two(label, own, rng, level) for own, level in zip(strengths, levels, strict=True)), label, groups


def _reference_differences(a, b, label, groups, figure, num_resamples):
    """Paired bootstrap by repeating rows; draws of its own."""
    rng = np.random.default_rng(99)
    rows = {g: np.flatnonzero(groups == g) for g in np.unique(groups)}
    found = []
    for _ in range(num_resamples):
        own = np.concatenate([rows[g] for g in rng.choice(list(rows), len(rows))])
        found.append(figure(label[own], b[own, 1]) - figure(label[own], a[own, 1]))
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("roc_auc", roc_auc_score),
        ("brier", brier_score_loss),
        ("balanced_accuracy", lambda label, ill: balanced_accuracy_score(label, ill > 0.5)),
    ],
)
def test_equals_a_paired_bootstrap_of_repeated_rows_up_to_chance(name, figure):
    a, b, label, groups = _cohort(1, strengths=(0.4, 0.8))
    got = compare_predictions(a, b, label, groups)["metrics"][name]
    assert (got["a"], got["b"]) == pytest.approx([figure(label, own[:, 1]) for own in (a, b)])
    assert got["difference"] == pytest.approx(got["b"] - got["a"])
    drawn = _reference_differences(a, b, label, groups, figure, 500)
    spread = drawn.std()
    student = stats.t(39, got["difference"], spread * np.sqrt(40 / 39))
    assert (got["low"], got["high"]) == pytest.approx(student.interval(0.95), abs=0.3 * spread)
    assert got["p"] == pytest.approx(2 * min(student.cdf(0), student.sf(0)), abs=0.05)
    drawn = resampled_metrics(b, label, groups)[name] - resampled_metrics(a, label, groups)[name]
    student = stats.t(39, got["difference"], drawn.std() * np.sqrt(40 / 39))
    assert (got["low"], got["high"]) == pytest.approx(student.interval(0.95))
    assert got["p"] == pytest.approx(2 * min(student.cdf(0), student.sf(0)))


def test_pairing_makes_the_interval_narrow():
    """What is hard for both models cancels: the same errors but for a few."""
    a, _, label, groups = _cohort(2)
    b = a.copy()
    b[:6] = b[:6, ::-1]
    paired = compare_predictions(a, b, label, groups)["metrics"]["accuracy"]
    shuffled = np.random.default_rng(0).permutation(20) * 2  # whole patients of class 0 change places: same accuracy
    order = np.concatenate([np.flatnonzero(groups == g) for k in range(20) for g in (shuffled[k], 2 * k + 1)])
    other = compare_predictions(a, b[order], label, groups)["metrics"]["accuracy"]
    assert other["difference"] == pytest.approx(paired["difference"])
    assert paired["high"] - paired["low"] < 0.7 * (other["high"] - other["low"])


def test_images_of_one_patient_make_the_interval_wider():
    a, b, label, groups = _cohort(3, each=8)
    by_patient = compare_predictions(a, b, label, groups)["metrics"]["roc_auc"]
    by_image = compare_predictions(a, b, label, range(len(label)))["metrics"]["roc_auc"]
    assert by_patient["high"] - by_patient["low"] > 1.5 * (by_image["high"] - by_image["low"])


def test_a_model_does_not_differ_from_itself():
    a, _, label, groups = _cohort(4)
    found = compare_predictions(a, a.copy(), label, groups, num_resamples=50)
    for own in found["metrics"].values():
        assert (own["difference"], own["low"], own["high"], own["p"]) == (0, 0, 0, 1)
    assert found["delong"][0]["p"] == 1


def test_both_are_scored_at_their_own_threshold():
    a, b, label, groups = _cohort(5)
    found = compare_predictions(a, b, label, groups, 0.3, 0.7, num_resamples=50)["metrics"]
    for key, prob, threshold in (("a", a, 0.3), ("b", b, 0.7)):
        want = classification_metrics(prob, label, threshold=threshold)
        assert {name: own[key] for name, own in found.items()} == pytest.approx(want)


def test_exchanging_the_models_changes_the_sign_only():
    a, b, label, groups = _cohort(6, strengths=(0.2, 1.0))
    one = compare_predictions(a, b, label, groups, num_resamples=200)
    other = compare_predictions(b, a, label, groups, num_resamples=200)
    for name, own in one["metrics"].items():
        turned = other["metrics"][name]
        assert (own["low"], own["high"], own["p"]) == pytest.approx((-turned["high"], -turned["low"], turned["p"]))


def test_delong_for_each_class():
    rng = np.random.default_rng(7)
    groups, label = np.arange(60) // 2, rng.integers(0, 3, 60)
    a, b = rng.dirichlet([1, 1, 1], (2, 60))
    found = compare_predictions(a, b, label, groups, num_resamples=20)["delong"]
    assert found == [delong_test(label == k, a[:, k], b[:, k], groups)._asdict() for k in range(3)]
    several = rng.integers(0, 2, (60, 3))
    found = compare_predictions(a, b, several, groups, num_resamples=20)["delong"]
    assert found == [delong_test(several[:, k], a[:, k], b[:, k], groups)._asdict() for k in range(3)]
    two = [own[:, :2] / own[:, :2].sum(1, keepdims=True) for own in (a, b)]
    found = compare_predictions(*two, label % 2, groups, num_resamples=20)["delong"]
    assert found == [delong_test(label % 2, two[0][:, 1], two[1][:, 1], groups)._asdict()]


def test_what_the_labels_leave_undefined_is_nan():
    a, b, _, groups = _cohort(8)
    found = compare_predictions(a, b, np.zeros(120, int), groups, num_resamples=20)
    assert all(map(math.isnan, found["metrics"]["roc_auc"].values()))
    assert all(map(math.isnan, found["delong"][0].values()))
    assert math.isfinite(found["metrics"]["accuracy"]["p"])


@pytest.mark.parametrize(("num_defined", "has_interval"), [(9, False), (10, True)])
def test_a_figure_defined_in_few_draws_has_no_interval(monkeypatch, num_defined, has_interval):
    values = np.r_[np.linspace(0, 1, num_defined), [np.nan] * (20 - num_defined)]
    a, b, label, groups = _cohort(9)
    each = iter([dict.fromkeys(classification_metrics(a, label), own) for own in (values, 2 * values)])
    monkeypatch.setattr(paired, "resampled_metrics", lambda *_, **__: next(each))
    own = compare_predictions(a, b, label, groups, num_resamples=20)["metrics"]["accuracy"]
    assert math.isfinite(own["difference"])
    assert [math.isfinite(own[key]) for key in ("low", "high", "p")] == [has_interval] * 3


def test_models_of_other_classes_are_told():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(2, 3\)"):
        compare_predictions(np.eye(2), np.full((2, 3), 1 / 3), [0, 1], "ab")


def _error_rates(num_studies, num_resamples=200):
    """Share of studies of two equally good models in which p < 0.05: figure -> clustered by patient, and by image."""
    names = ("roc_auc", "accuracy", "brier")
    found = {name: np.zeros(2) for name in names}
    for seed in range(num_studies):
        a, b, label, groups = _cohort(seed, num_patients=60, each=5)
        for k, given in enumerate((groups, range(len(label)))):
            own = compare_predictions(a, b, label, given, num_resamples=num_resamples)["metrics"]
            for name in names:
                found[name][k] += own[name]["p"] < 0.05
    return {name: rates / num_studies for name, rates in found.items()}


@pytest.mark.slow
def test_false_alarms_are_rare_enough_with_30_patients():
    """Of 300 studies 5% may differ by chance, and 8.8% within three standard errors; percentiles had 11% for Brier."""
    names = ("brier", "accuracy", "roc_auc")
    found = dict.fromkeys(names, 0)
    for seed in range(300):
        a, b, label, groups = _cohort(seed, num_patients=30, each=1)
        own = compare_predictions(a, b, label, groups, num_resamples=300)["metrics"]
        for name in names:
            assert (own[name]["p"] < 0.05) == (not own[name]["low"] <= 0 <= own[name]["high"])
            found[name] += own[name]["p"] < 0.05
    assert 0.02 < found["brier"] / 300 < 0.088, found
    assert max(found.values()) / 300 < 0.088, found


def test_what_differs_by_the_same_in_all_draws_has_no_interval():
    """All right against all wrong, and a single patient."""
    label = np.arange(12) % 2
    right, wrong = np.eye(2)[label], np.eye(2)[1 - label]
    for groups in (range(12), [0] * 12):
        own = compare_predictions(right, wrong, label, groups, num_resamples=20)["metrics"]["accuracy"]
        assert own["difference"] == -1
        assert all(math.isnan(own[key]) for key in ("low", "high", "p"))


@pytest.mark.slow
def test_false_alarms_are_rare_enough_by_patient_and_not_by_image():
    """Of 120 studies 5% may differ by chance, and 11% within three standard errors."""
    for name, (by_patient, by_image) in _error_rates(120).items():
        assert by_patient < 0.11, name
        assert by_image > 0.13, name
