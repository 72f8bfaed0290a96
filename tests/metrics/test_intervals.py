from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from monai_pipelines.metrics import (
    bootstrap_intervals,
    classification_metrics,
    metric_intervals,
    per_class_metrics,
    resampled_metrics,
)
from monai_pipelines.metrics.classification import weighted_figures


def _accuracy(prob, label):
    return {"accuracy": float((prob.argmax(1) == label).mean())}


def _study(seed, num_patients=40, num_classes=2, several=False):
    """Probabilities, labels and patients: 1 to 5 scans each, alike within a patient; ties."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 6, num_patients))
    label = rng.integers(num_classes, size=num_patients)[patient]
    logits = rng.normal(size=(num_patients, num_classes))[patient] + rng.normal(size=(len(patient), num_classes))
    logits += 1.5 * np.eye(num_classes)[label]
    if several:
        return (1 / (1 + np.exp(-logits))).round(2), (rng.random(logits.shape) < 0.3).astype(int), patient
    weight = np.exp(logits).round(1)
    return (weight + 0.1) / (weight + 0.1).sum(1, keepdims=True), label, patient


@pytest.mark.parametrize(
    ("num_classes", "several", "threshold"), [(2, False, None), (2, False, 0.3), (4, False, None), (3, True, 0.4)]
)
def test_weights_equal_rows_repeated_as_often(num_classes, several, threshold):
    """Of patients drawn with replacement, also so few that classes are absent, and of all but one (jackknife)."""
    prob, label, patient = _study(num_classes, 12, num_classes, several)
    rng = np.random.default_rng(0)
    weights = np.concatenate([rng.multinomial(k, np.full(12, 1 / 12), 15).T for k in (12, 2, 1)], axis=1)
    weights = np.c_[weights, 1 - np.eye(12)].astype(int)
    whole, per_class, gaps = weighted_figures(prob, label, None, threshold, patient)(weights)
    for k, often in enumerate(weights.T):
        rows = np.repeat(np.arange(len(patient)), often[patient])
        wanted = classification_metrics(prob[rows], label[rows], num_classes, threshold)
        assert {name: own[k] for name, own in whole.items()} == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True)
        assert np.abs(gaps[:, k]).sum() == pytest.approx(wanted["ece"])
        for c, one in enumerate(per_class_metrics(prob[rows], label[rows], num_classes, threshold)):
            got = {name: own[c, k] for name, own in per_class.items()}
            del one["num_scans"]
            assert got == pytest.approx(one, rel=1e-9, abs=1e-9, nan_ok=True)


def _reference_bootstrap(prob, label, patient, num_resamples):
    """One resample after the other, by scikit-learn; draws of its own."""
    rng = np.random.default_rng(99)
    rows = [np.flatnonzero(patient == k) for k in range(patient.max() + 1)]
    values = {"recall": [], "roc_auc": [], "mcc": [], "brier": []}
    for _ in range(num_resamples):
        drawn = np.concatenate([rows[k] for k in rng.integers(len(rows), size=len(rows))])
        p, y = prob[drawn], label[drawn]
        values["recall"].append(sk.recall_score(y, p.argmax(1)))
        values["roc_auc"].append(sk.roc_auc_score(y, p[:, 1]))
        values["mcc"].append(sk.matthews_corrcoef(y, p.argmax(1)))
        values["brier"].append(sk.brier_score_loss(y, p[:, 1]))
    return values


def test_resamples_are_those_of_a_loop_over_scikit_learn_up_to_chance():
    prob, label, patient = _study(1)
    drawn = resampled_metrics(prob, label, patient, num_resamples=4000)
    for name, wanted in _reference_bootstrap(prob, label, patient, 200).items():
        spread = np.std(wanted)
        assert drawn[name].mean() == pytest.approx(np.mean(wanted), abs=0.25 * spread), name
        assert drawn[name].std() == pytest.approx(spread, rel=0.2), name


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_equal_the_formula(level):
    prob, label, patient = _study(2, 60)
    found = metric_intervals(prob, label, patient, level=level).metrics
    drawn, point = resampled_metrics(prob, label, patient), classification_metrics(prob, label)
    with_class, with_rest = (len(set(patient[label == k])) for k in (1, 0))
    fewer, called = min(with_class, with_rest), prob.argmax(1)
    of_called = {"precision": len(set(patient[called == 1])), "npv": len(set(patient[called == 0]))}
    assert len({with_class, with_rest, *of_called.values()}) > 2
    for name, num in {"accuracy": 60, "recall": with_class, "roc_auc": fewer, **of_called}.items():
        spread = np.std(drawn[name]) * math.sqrt(num / (num - 1)) * stats.t(num - 1).ppf((1 + level) / 2)
        middle = math.log(point[name] / (1 - point[name]))
        ends = middle + np.array([-1, 1]) * spread / point[name] / (1 - point[name])
        assert found[name] == pytest.approx(1 / (1 + np.exp(-ends)), rel=1e-3), name
    reach = stats.t(59).ppf((1 + level) / 2) * math.sqrt(60 / 59)
    ends = point["brier"] * np.exp(np.array([-1, 1]) * reach * np.std(drawn["brier"]) / point["brier"])
    assert found["brier"] == pytest.approx(ends, rel=1e-3)
    reach = stats.t(fewer - 1).ppf((1 + level) / 2) * math.sqrt(fewer / (fewer - 1)) * np.std(drawn["mcc"])
    z = np.arctanh(point["mcc"]) + np.array([-1, 1]) * reach / (1 - point["mcc"] ** 2)
    assert found["mcc"] == pytest.approx(np.tanh(z), rel=1e-3)  # Fisher's z is the logit of (1 + MCC) / 2


@pytest.mark.parametrize(("num_classes", "several"), [(2, False), (4, False), (3, True)])
def test_intervals_hold_the_figures_and_stay_inside_what_is_possible(num_classes, several):
    prob, label, patient = _study(3, 60, num_classes, several)
    intervals = metric_intervals(prob, label, patient, num_resamples=300)
    parts = [(intervals.metrics, classification_metrics(prob, label))]
    parts += zip(intervals.per_class, per_class_metrics(prob, label), strict=True)
    for found, figures in parts:
        figures.pop("num_scans", None)
        assert list(found) == list(figures)
        for name, (low, high) in found.items():
            assert low < figures[name] < high
            assert low >= (-1 if name in ("mcc", "kappa", "kappa_quadratic") else 0)
            assert high <= {"log_loss": math.inf, "brier": 2}.get(name, 1)


def test_images_of_one_patient_make_the_interval_wider():
    label = np.arange(400) // 10 % 2
    right = np.repeat(np.arange(40) % 10 < 7, 10)  # ten images of a patient, all right or all wrong
    prob = np.eye(2)[np.where(right, label, 1 - label)]
    by_patient = metric_intervals(prob, label, np.repeat(np.arange(40), 10)).metrics
    by_image = metric_intervals(prob, label, range(400)).metrics
    for name in ("accuracy", "recall", "roc_auc", "mcc"):
        assert np.ptp(by_patient[name]) > 2.5 * np.ptp(by_image[name])  # about sqrt(10) times as wide


def test_draws_depend_on_seed_and_groups_alone():
    prob, label, patient = _study(4)
    names = [f"patient {k}" for k in patient]
    first = resampled_metrics(prob, label, patient, num_resamples=50)
    more = resampled_metrics(prob, label, names, num_resamples=100)
    other = resampled_metrics(prob, label, patient, num_resamples=50, seed=1)
    assert list(first) == list(classification_metrics(prob, label))
    for name in first:
        np.testing.assert_array_equal(first[name], more[name][:50])
    assert (first["brier"] != other["brier"]).all()
    assert metric_intervals(prob, label, patient) == metric_intervals(prob, label, names)


def test_two_models_are_paired_by_the_seed():
    """One is right where the other is wrong: in every resample their accuracies make 1."""
    prob, label, patient = _study(5)
    first, second = (resampled_metrics(own, label, patient)["accuracy"] for own in (prob, np.eye(2)[prob.argmin(1)]))
    assert first + second == pytest.approx(1)
    assert first.std() > 0.02


def test_all_right_is_no_certainty():
    """Of 30 healthy and 20 ill patients all scans are right: exact intervals of 50, 30 and 20 of as many."""
    label = np.repeat([0, 1], [60, 40])
    found = metric_intervals(np.eye(2)[label] * 0.98 + 0.01, label, np.arange(100) // 2, num_resamples=100).metrics
    for name, num in {"accuracy": 50, "specificity": 30, "recall": 20, "roc_auc": 20, "average_precision": 20}.items():
        assert found[name] == pytest.approx(stats.binomtest(num, num).proportion_ci(0.95, "exact")), name
    low = stats.binomtest(20, 20).proportion_ci(0.95, "exact").low
    assert found["mcc"] == found["kappa"] == pytest.approx((2 * low - 1, 1))
    wrong = metric_intervals(np.eye(2)[1 - label], label, np.arange(100) // 2, num_resamples=100).metrics
    assert wrong["recall"] == pytest.approx(stats.binomtest(0, 20).proportion_ci(0.95, "exact"))


@pytest.mark.parametrize(("name", "side"), [("precision", 1), ("npv", 0)])
@pytest.mark.parametrize("num_called", [0, 1, 2, 5])
def test_few_calls_tell_little_however_many_are_ill(name, side, num_called):
    """Of 50 ill and 50 healthy patients a few are called, rightly."""
    label = np.repeat([side, 1 - side], 50)
    called = np.where(np.arange(100) < num_called, side, 1 - side)
    intervals = metric_intervals(np.eye(2)[called] * 0.8 + 0.1, label, np.arange(100), num_resamples=200)
    exact = stats.binomtest(num_called, num_called).proportion_ci(0.95, "exact") if num_called > 1 else None
    for found in (intervals.metrics, intervals.per_class[1]):
        assert found.get(name) == (exact and pytest.approx(exact))


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (0, {"accuracy", "specificity", "npv", "brier", "ece", "log_loss"}),
        (1, {"accuracy", "precision", "recall", "f1", "average_precision", "average_precision_micro"}),
    ],
)
def test_no_label_or_all_of_them_leave_the_figures_of_the_others(label, names):
    prob, _, patient = _study(6, 30, 3, several=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metric_intervals(prob, np.full(prob.shape, label), patient, num_resamples=100).metrics
    assert set(found) == names | {"accuracy", "brier", "ece", "log_loss"}
    assert np.isfinite([*found.values()]).all()


def test_averages_are_of_the_classes_that_have_the_figure():
    """Label 0 stands on all images: no specificity, which is the mean of the other two."""
    prob, label, patient = _study(7, 40, 3, several=True)
    label[:, 0] = 1
    one = metric_intervals(prob, label, patient).metrics["specificity"]
    other = metric_intervals(prob[:, 1:], label[:, 1:], patient).metrics["specificity"]
    assert one == pytest.approx(other)


@pytest.mark.slow
def test_precision_of_few_calls_covers_the_truth():
    """60 patients, of whom 12 are ill and 3 of these are called: 300 studies are sure to +-2.5%."""

    def study(seed, num):
        rng = np.random.default_rng(seed)
        label = (rng.random(num) < 0.2).astype(int)
        score = 1 / (1 + np.exp(1.9 - rng.normal(size=num) - 1.2 * label))
        return np.c_[1 - score, score], label

    truth = classification_metrics(*study(0, 200_000))
    assert truth["recall"] < 0.25
    for name in ("precision", "npv"):
        covered = []
        for seed in range(1, 301):
            found = metric_intervals(*study(seed, 60), range(60), num_resamples=200, seed=seed).metrics
            if name in found:
                covered.append(found[name][0] <= truth[name] <= found[name][1])
        assert len(covered) > 240
        assert np.mean(covered) > 0.92, name


def test_undefined_figures_are_left_out():
    prob = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]] * 5)
    intervals = metric_intervals(prob, [0] * 15, range(15), num_resamples=100)
    assert set(intervals.metrics) == {"accuracy", "specificity", "npv", "brier", "ece", "log_loss"}
    assert [set(own) for own in intervals.per_class] == [
        {"precision", "recall", "f1", "average_precision", "brier"},
        {"specificity", "npv", "brier"},
    ]


def test_one_patient_of_a_class_or_of_all_is_too_few():
    prob, label = np.random.default_rng(0).dirichlet([1, 1], 20), np.array([1] * 4 + [0] * 16)
    found = metric_intervals(prob, label, [0] * 4 + [*range(1, 17)], num_resamples=100).metrics
    assert {"accuracy", "specificity", "brier", "ece"} <= set(found)
    assert not {"recall", "f1", "roc_auc", "mcc"} & set(found)
    assert metric_intervals(prob, label, ["me"] * 20).metrics == {}


def test_two_patients_tell_next_to_nothing():
    prob, label = np.random.default_rng(1).dirichlet([1, 1], 20), np.array([0, 1] * 10)
    found = metric_intervals(prob, label, [0] * 10 + [1] * 10, num_resamples=100, level=0.999).metrics
    for name in ("accuracy", "roc_auc", "brier"):
        assert found[name] == pytest.approx((0, 1), abs=1e-6)


def test_what_does_not_vary_has_no_interval():
    """All called class 0: no correlation in any resample, which says nothing on how sure that is."""
    found = metric_intervals([[0.8, 0.2]] * 20, [0, 1] * 10, range(20)).metrics
    assert not {"mcc", "kappa", "balanced_accuracy", "roc_auc"} & set(found)
    assert found["recall"] == pytest.approx(stats.binomtest(0, 10).proportion_ci(0.95, "exact"))


def test_calibration_error_of_a_calibrated_model_may_be_0():
    rng = np.random.default_rng(5)
    score = rng.random(400)
    label = (rng.random(400) < score).astype(int)
    calibrated = metric_intervals(np.c_[1 - score, score], label, range(400)).metrics["ece"]
    assert calibrated[0] == 0
    sure = np.where(score > 0.5, 0.99, 0.01)
    low, high = metric_intervals(np.c_[1 - sure, sure], label, range(400)).metrics["ece"]
    assert 0.1 < low < 0.24 < high < 0.4  # the truth: 0.99 - 0.75


def _clustered_study(seed, num_patients=100):
    """A share of the evidence's noise that all 1 to 8 scans of a patient have in common."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 9, num_patients))
    label = (rng.random(num_patients) < 0.3).astype(int)[patient]
    noise = 0.8 * rng.normal(size=num_patients)[patient] + 0.6 * rng.normal(size=len(patient))
    score = 1 / (1 + np.exp(-(2 * (noise + 1.5 * label) - 2)))
    return np.c_[1 - score, score], label, patient


@pytest.mark.slow
def test_clustered_intervals_cover_the_truth_and_others_do_not():
    """In 300 studies; shares of 95% are sure to +-2.5%. `benchmarks/coverage.py` has 1,000."""
    names = ("accuracy", "recall", "specificity", "roc_auc", "average_precision", "brier", "mcc")
    prob, label, _ = _clustered_study(0, 100_000)
    truth = classification_metrics(prob, label)
    covered = {kind: dict.fromkeys(names, 0) for kind in ("clustered", "unclustered")}
    for study in range(1, 301):
        prob, label, patient = _clustered_study(study)
        for kind, groups in (("clustered", patient), ("unclustered", np.arange(len(label)))):
            found = metric_intervals(prob, label, groups, num_resamples=300, seed=study).metrics
            for name in names:
                covered[kind][name] += found[name][0] <= truth[name] <= found[name][1]
    for name in names:
        assert 0.91 <= covered["clustered"][name] / 300 <= 0.99, (name, covered)
        assert covered["unclustered"][name] / 300 < 0.85, (name, covered)


def _reference_cluster_interval(right, groups, num_resamples, tail):
    """Percentiles of the mean over drawn groups, from sums and sizes; draws of its own."""
    rng = np.random.default_rng(99)
    names = sorted(set(groups))
    sums = np.array([sum(r for r, g in zip(right, groups, strict=True) if g == name) for name in names])
    sizes = np.array([groups.count(name) for name in names])
    drawn = rng.integers(len(names), size=(num_resamples, len(names)))
    return np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [100 * tail, 100 * (1 - tail)])


def test_percentiles_of_ones_own_figure_equal_the_reference_up_to_chance():
    rng = np.random.default_rng(0)
    groups = [f"p{k}" for k in rng.integers(0, 40, 150)]
    label = rng.integers(0, 2, 150)
    right = rng.random(150) < 0.7
    prob = np.eye(2)[np.where(right, label, 1 - label)]
    got = bootstrap_intervals(_accuracy, prob, label, groups, level=0.9)["accuracy"]
    assert got == pytest.approx(_reference_cluster_interval(right.tolist(), groups, 20_000, 0.05), abs=0.012)
    assert bootstrap_intervals(_accuracy, np.eye(2), [0, 0], ["a", "a"], 10) == {"accuracy": (0.5, 0.5)}


def test_ones_own_figure_that_is_seldom_defined_is_left_out():
    """One positive of three is absent from 30% of the resamples."""
    prob = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])

    def figures(prob, label):
        return {"score": prob[label == 1, 1].mean() if (label == 1).any() else math.nan, "never": math.nan}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_intervals(figures, prob, [0, 1, 0], "abc", 50)
    assert found == {"score": (0.6, 0.6)}


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ("a", {}, "one length, got 2, 2 and 1"),
        ("ab", {"num_resamples": 1}, "2 resamples or more, got num_resamples 1"),
        ("ab", {"level": 1}, "a level"),
    ],
)
def test_bad_input_is_told(groups, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(_accuracy, np.eye(2), [0, 1], groups, **options)
    with pytest.raises(ValueError, match=message):
        metric_intervals(np.eye(2), [0, 1], groups, **options)
