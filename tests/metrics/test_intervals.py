from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from monai_pipelines.metrics import (
    classification_metrics,
    mean_interval,
    metric_intervals,
    per_class_metrics,
    resampled_metrics,
)
from monai_pipelines.metrics import intervals as intervals_
from monai_pipelines.metrics.classification import weighted_metrics


def _study(seed, num_patients=40, num_classes=2, multilabel=False):
    """Probabilities, labels and patients: 1 to 5 images each, correlated within a patient; ties."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 6, num_patients))
    label = rng.integers(num_classes, size=num_patients)[patient]
    logits = rng.normal(size=(num_patients, num_classes))[patient] + rng.normal(size=(len(patient), num_classes))
    logits += 1.5 * np.eye(num_classes)[label]
    if multilabel:
        return (1 / (1 + np.exp(-logits))).round(2), (rng.random(logits.shape) < 0.3).astype(int), patient
    weight = np.exp(logits).round(1)
    return (weight + 0.1) / (weight + 0.1).sum(1, keepdims=True), label, patient


@pytest.mark.parametrize(
    ("num_classes", "multilabel", "threshold"), [(2, False, None), (2, False, 0.3), (4, False, None), (3, True, 0.4)]
)
def test_weights_equal_repeated_rows(num_classes, multilabel, threshold):
    """Patients drawn with replacement, also so few that classes are absent, and all but one (jackknife)."""
    prob, label, patient = _study(num_classes, 12, num_classes, multilabel)
    rng = np.random.default_rng(0)
    weights = np.concatenate([rng.multinomial(k, np.full(12, 1 / 12), 15).T for k in (12, 2, 1)], axis=1)
    weights = np.c_[weights, 1 - np.eye(12)].astype(int)
    overall, per_class, gaps = weighted_metrics(prob, label, threshold, patient)(weights)
    for k, often in enumerate(weights.T):
        rows = np.repeat(np.arange(len(patient)), often[patient])
        wanted = classification_metrics(prob[rows], label[rows], threshold)
        got = {name: values[k] for name, values in overall.items()}
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True)
        assert np.abs(gaps[:, k]).sum() == pytest.approx(wanted["ece"])
        for c, one in enumerate(per_class_metrics(prob[rows], label[rows], threshold)):
            got = {name: values[c, k] for name, values in per_class.items()}
            del one["num_images"]
            assert got == pytest.approx(one, rel=1e-9, abs=1e-9, nan_ok=True)


def _reference_bootstrap(prob, label, patient, num_resamples):
    """One resample after the other, by scikit-learn, from another seed."""
    rng = np.random.default_rng(99)
    rows = [np.flatnonzero(patient == k) for k in range(patient.max() + 1)]
    values = {"recall": [], "roc_auc": [], "mcc": [], "brier": []}
    for _ in range(num_resamples):
        resample = np.concatenate([rows[k] for k in rng.integers(len(rows), size=len(rows))])
        p, y = prob[resample], label[resample]
        values["recall"].append(sk.recall_score(y, p.argmax(1)))
        values["roc_auc"].append(sk.roc_auc_score(y, p[:, 1]))
        values["mcc"].append(sk.matthews_corrcoef(y, p.argmax(1)))
        values["brier"].append(sk.brier_score_loss(y, p[:, 1]))
    return values


def test_resamples_equal_a_loop_over_scikit_learn_up_to_chance():
    prob, label, patient = _study(1)
    resamples = resampled_metrics(prob, label, patient, num_resamples=4000)
    for name, wanted in _reference_bootstrap(prob, label, patient, 200).items():
        std = np.std(wanted)
        assert resamples[name].mean() == pytest.approx(np.mean(wanted), abs=0.25 * std), name
        assert resamples[name].std() == pytest.approx(std, rel=0.2), name


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_equal_the_formula(level, monkeypatch):
    monkeypatch.setattr(intervals_, "LEVEL", level)
    prob, label, patient = _study(2, 60)
    intervals = metric_intervals(prob, label, patient).metrics
    resamples, metrics = resampled_metrics(prob, label, patient), classification_metrics(prob, label)
    with_class, with_rest = (len(set(patient[label == k])) for k in (1, 0))
    fewer, predicted = min(with_class, with_rest), prob.argmax(1)
    of_predicted = {"precision": len(set(patient[predicted == 1])), "npv": len(set(patient[predicted == 0]))}
    assert len({with_class, with_rest, *of_predicted.values()}) > 2
    for name, num in {"accuracy": 60, "recall": with_class, "roc_auc": fewer, **of_predicted}.items():
        reach = np.std(resamples[name]) * math.sqrt(num / (num - 1)) * stats.t(num - 1).ppf((1 + level) / 2)
        middle = math.log(metrics[name] / (1 - metrics[name]))
        ends = middle + np.array([-1, 1]) * reach / metrics[name] / (1 - metrics[name])
        assert intervals[name] == pytest.approx(1 / (1 + np.exp(-ends)), rel=1e-3), name
    reach = stats.t(59).ppf((1 + level) / 2) * math.sqrt(60 / 59)
    ends = metrics["brier"] * np.exp(np.array([-1, 1]) * reach * np.std(resamples["brier"]) / metrics["brier"])
    assert intervals["brier"] == pytest.approx(ends, rel=1e-3)
    reach = stats.t(fewer - 1).ppf((1 + level) / 2) * math.sqrt(fewer / (fewer - 1)) * np.std(resamples["mcc"])
    z = np.arctanh(metrics["mcc"]) + np.array([-1, 1]) * reach / (1 - metrics["mcc"] ** 2)
    assert intervals["mcc"] == pytest.approx(np.tanh(z), rel=1e-3)  # Fisher's z is the logit of (1 + MCC) / 2


@pytest.mark.parametrize(("num_classes", "multilabel"), [(2, False), (4, False), (3, True)])
def test_intervals_contain_the_metrics_and_stay_within_bounds(num_classes, multilabel):
    prob, label, patient = _study(3, 60, num_classes, multilabel)
    intervals = metric_intervals(prob, label, patient, num_resamples=300)
    parts = [(intervals.metrics, classification_metrics(prob, label))]
    parts += zip(intervals.per_class, per_class_metrics(prob, label), strict=True)
    for part, metrics in parts:
        metrics.pop("num_images", None)
        assert list(part) == list(metrics)
        for name, (low, high) in part.items():
            assert low < metrics[name] < high
            assert low >= (-1 if name in ("mcc", "kappa", "kappa_quadratic") else 0)
            assert high <= {"log_loss": math.inf, "brier": 2}.get(name, 1)


def test_correlated_images_widen_the_interval():
    label = np.arange(400) // 10 % 2
    right = np.repeat(np.arange(40) % 10 < 7, 10)  # ten images of a patient, all right or all wrong
    prob = np.eye(2)[np.where(right, label, 1 - label)]
    by_patient = metric_intervals(prob, label, np.repeat(np.arange(40), 10)).metrics
    by_image = metric_intervals(prob, label, range(400)).metrics
    for name in ("accuracy", "recall", "roc_auc", "mcc"):
        assert np.ptp(by_patient[name]) > 2.5 * np.ptp(by_image[name])  # about sqrt(10) times as wide


def test_resamples_depend_only_on_seed_and_groups():
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
    """One is right where the other is wrong: in every resample their accuracies add up to 1."""
    prob, label, patient = _study(5)
    models = prob, np.eye(2)[prob.argmin(1)]
    first, second = (resampled_metrics(model, label, patient)["accuracy"] for model in models)
    assert first + second == pytest.approx(1)
    assert first.std() > 0.02


def test_perfect_predictions_get_exact_intervals():
    """All images of 30 healthy and 20 ill patients are right."""
    label = np.repeat([0, 1], [60, 40])
    right = metric_intervals(np.eye(2)[label] * 0.98 + 0.01, label, np.arange(100) // 2, num_resamples=100).metrics
    for name, num in {"accuracy": 50, "specificity": 30, "recall": 20, "roc_auc": 20, "average_precision": 20}.items():
        assert right[name] == pytest.approx(stats.binomtest(num, num).proportion_ci(0.95, "exact")), name
    low = stats.binomtest(20, 20).proportion_ci(0.95, "exact").low
    assert right["mcc"] == right["kappa"] == pytest.approx((2 * low - 1, 1))
    wrong = metric_intervals(np.eye(2)[1 - label], label, np.arange(100) // 2, num_resamples=100).metrics
    assert wrong["recall"] == pytest.approx(stats.binomtest(0, 20).proportion_ci(0.95, "exact"))


@pytest.mark.parametrize(("name", "side"), [("precision", 1), ("npv", 0)])
@pytest.mark.parametrize("num_predicted", [0, 1, 2, 5])
def test_few_predictions_give_wide_intervals(name, side, num_predicted):
    """Of 50 ill and 50 healthy patients a few are predicted, correctly."""
    label = np.repeat([side, 1 - side], 50)
    predicted = np.where(np.arange(100) < num_predicted, side, 1 - side)
    intervals = metric_intervals(np.eye(2)[predicted] * 0.8 + 0.1, label, np.arange(100), num_resamples=200)
    exact = stats.binomtest(num_predicted, num_predicted).proportion_ci(0.95, "exact") if num_predicted > 1 else None
    for part in (intervals.metrics, intervals.per_class[1]):
        assert part.get(name) == (exact and pytest.approx(exact))


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (0, {"accuracy", "specificity", "npv", "brier", "ece", "log_loss"}),
        (1, {"accuracy", "precision", "recall", "f1", "average_precision", "average_precision_micro"}),
    ],
)
def test_constant_labels_leave_the_defined_metrics(label, names):
    prob, _, patient = _study(6, 30, 3, multilabel=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = metric_intervals(prob, np.full(prob.shape, label), patient, num_resamples=100).metrics
    assert set(intervals) == names | {"accuracy", "brier", "ece", "log_loss"}
    assert np.isfinite([*intervals.values()]).all()


def test_averages_exclude_classes_where_the_metric_is_undefined():
    """All images have label 0: the specificity is the mean of the other two."""
    prob, label, patient = _study(7, 40, 3, multilabel=True)
    label[:, 0] = 1
    one = metric_intervals(prob, label, patient).metrics["specificity"]
    other = metric_intervals(prob[:, 1:], label[:, 1:], patient).metrics["specificity"]
    assert one == pytest.approx(other)


@pytest.mark.parametrize(
    ("num_studies", "min_coverage"), [(20, 0.8), pytest.param(300, 0.92, marks=pytest.mark.nightly)]
)
def test_precision_of_few_predictions_covers_the_truth(num_studies, min_coverage):
    """Of 60 patients 12 are ill and 3 of these predicted; 300 studies are accurate to +-2.5%."""

    def study(seed, num):
        rng = np.random.default_rng(seed)
        label = (rng.random(num) < 0.2).astype(int)
        score = 1 / (1 + np.exp(1.9 - rng.normal(size=num) - 1.2 * label))
        return np.c_[1 - score, score], label

    truth = classification_metrics(*study(0, 200_000))
    assert truth["recall"] < 0.25
    for name in ("precision", "npv"):
        covered = []
        for seed in range(1, num_studies + 1):
            intervals = metric_intervals(*study(seed, 60), range(60), num_resamples=200, seed=seed).metrics
            if name in intervals:
                covered.append(intervals[name][0] <= truth[name] <= intervals[name][1])
        assert len(covered) > 0.8 * num_studies
        assert np.mean(covered) > min_coverage, name


def test_undefined_metrics_are_left_out():
    prob = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]] * 5)
    intervals = metric_intervals(prob, [0] * 15, range(15), num_resamples=100)
    assert set(intervals.metrics) == {"accuracy", "specificity", "npv", "brier", "ece", "log_loss"}
    assert [set(part) for part in intervals.per_class] == [
        {"precision", "recall", "f1", "average_precision", "brier"},
        {"specificity", "npv", "brier"},
    ]


def test_a_single_patient_gives_no_interval():
    """Of a class, and of all."""
    prob, label = np.random.default_rng(0).dirichlet([1, 1], 20), np.array([1] * 4 + [0] * 16)
    intervals = metric_intervals(prob, label, [0] * 4 + [*range(1, 17)], num_resamples=100).metrics
    assert {"accuracy", "specificity", "brier", "ece"} <= set(intervals)
    assert not {"recall", "f1", "roc_auc", "mcc"} & set(intervals)
    assert metric_intervals(prob, label, ["me"] * 20).metrics == {}


def test_two_patients_give_the_whole_range(monkeypatch):
    monkeypatch.setattr(intervals_, "LEVEL", 0.999)
    prob, label = np.random.default_rng(1).dirichlet([1, 1], 20), np.array([0, 1] * 10)
    intervals = metric_intervals(prob, label, [0] * 10 + [1] * 10, num_resamples=100).metrics
    for name in ("accuracy", "roc_auc", "brier"):
        assert intervals[name] == pytest.approx((0, 1), abs=1e-6)


def test_constant_metrics_have_no_interval():
    """All are predicted as class 0, so there is no correlation in any resample."""
    intervals = metric_intervals([[0.8, 0.2]] * 20, [0, 1] * 10, range(20)).metrics
    assert not {"mcc", "kappa", "balanced_accuracy", "roc_auc"} & set(intervals)
    assert intervals["recall"] == pytest.approx(stats.binomtest(0, 10).proportion_ci(0.95, "exact"))


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
    """1 to 8 images per patient, whose noise is partly shared."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 9, num_patients))
    label = (rng.random(num_patients) < 0.3).astype(int)[patient]
    noise = 0.8 * rng.normal(size=num_patients)[patient] + 0.6 * rng.normal(size=len(patient))
    score = 1 / (1 + np.exp(-(2 * (noise + 1.5 * label) - 2)))
    return np.c_[1 - score, score], label, patient


@pytest.mark.parametrize(
    ("num_studies", "low", "high"), [(20, 0.8, 1), pytest.param(300, 0.91, 0.99, marks=pytest.mark.nightly)]
)
def test_clustered_intervals_cover_the_truth_and_others_do_not(num_studies, low, high):
    """With 300 studies a coverage of 95% is accurate to +-2.5%; `benchmarks/interval_coverage.py` has 1,000."""
    names = ("accuracy", "recall", "specificity", "roc_auc", "average_precision", "brier", "mcc")
    prob, label, _ = _clustered_study(0, 100_000)
    truth = classification_metrics(prob, label)
    covered = {kind: dict.fromkeys(names, 0) for kind in ("clustered", "unclustered")}
    for study in range(1, num_studies + 1):
        prob, label, patient = _clustered_study(study)
        for kind, groups in (("clustered", patient), ("unclustered", np.arange(len(label)))):
            intervals = metric_intervals(prob, label, groups, num_resamples=300, seed=study).metrics
            for name in names:
                covered[kind][name] += intervals[name][0] <= truth[name] <= intervals[name][1]
    for name in names:
        assert low <= covered["clustered"][name] / num_studies <= high, (name, covered)
        assert covered["unclustered"][name] / num_studies < 0.85, (name, covered)


# ---- means


def test_interval_of_a_mean_equals_that_of_an_accuracy():
    """Up to chance: resamples in place of the formula."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 250)
    right = (rng.random(250) < 0.8).astype(int)
    wanted = metric_intervals(np.eye(2)[right], np.ones(250, int), groups, num_resamples=10_000).metrics["accuracy"]
    assert mean_interval(right, groups) == pytest.approx(wanted, abs=0.003)


def test_interval_of_a_mean_of_single_values_is_students():
    values = np.random.default_rng(1).beta(8, 2, 12)
    mean, reach = values.mean(), stats.sem(values) * stats.t(11).ppf(0.975)
    ends = np.log(mean / (1 - mean)) + np.array([-1, 1]) * reach / (mean * (1 - mean))
    assert mean_interval(values, range(12)) == pytest.approx(1 / (1 + np.exp(-ends)))


def test_interval_of_a_mean_at_its_bounds():
    assert mean_interval([1, 1, 1, 1, 1], "aabcd") == pytest.approx(stats.binomtest(4, 4).proportion_ci(0.95, "exact"))
    assert mean_interval([0, 0, 0], "abc") == pytest.approx(stats.binomtest(0, 3).proportion_ci(0.95, "exact"))
    assert mean_interval([0.5, 0.9], "aa") is None


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ("a", {}, "one length, got 2 and 2 and 1"),
        ("ab", {"num_resamples": 1}, "2 resamples or more, got num_resamples 1"),
    ],
)
def test_bad_input_is_refused(groups, options, message):
    with pytest.raises(ValueError, match=message):
        metric_intervals(np.eye(2), [0, 1], groups, **options)


def test_bad_means_are_refused():
    with pytest.raises(ValueError, match="one length, got 2 and 1"):
        mean_interval([0.1, 0.2], "a")
