from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from monai_pipelines.metrics.paired import delong_test

# 43 of the 49 patients of DeLong, DeLong and Clarke-Pearson (1988), those with all three tests: albumin, total protein,
# K-G score, and the outcome
TABLE = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
OVARIAN = np.array(TABLE.split(), dtype=float).reshape(-1, 4)


def _kernel(x, y):
    return 1.0 if x > y else 0.5 if x == y else 0.0


def _reference_delong(label, score_a, score_b, groups):
    """Obuchowski's covariance matrix by loops over all pairs and patients."""
    patients = sorted({*groups})
    rows = {c: [k for k, y in enumerate(label) if y == c] for c in (0, 1)}
    auc, v10, v01 = [], [], []
    for score in (score_a, score_b):
        share10 = {i: np.mean([_kernel(score[i], score[j]) for j in rows[0]]) for i in rows[1]}
        share01 = {j: np.mean([_kernel(score[i], score[j]) for i in rows[1]]) for j in rows[0]}
        auc.append(np.mean([*share10.values()]))
        v10.append([sum(share10[i] - auc[-1] for i in rows[1] if groups[i] == p) for p in patients])
        v01.append([sum(share01[j] - auc[-1] for j in rows[0] if groups[j] == p) for p in patients])
    m, n = len(rows[1]), len(rows[0])
    i10, i01 = (len({groups[k] for k in rows[c]}) for c in (1, 0))
    s10, s01, s11 = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            for p in range(len(patients)):
                s10[r, s] += v10[r][p] * v10[s][p] * i10 / ((i10 - 1) * m)
                s01[r, s] += v01[r][p] * v01[s][p] * i01 / ((i01 - 1) * n)
                s11[r, s] += v10[r][p] * v01[s][p] * len(patients) / (len(patients) - 1)
    covariance = s10 / m + s01 / n + (s11 + s11.T) / (m * n)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = auc[1] - auc[0]
    p = 2 * norm.cdf(-abs(difference) / error)
    return [*auc, difference, difference - 1.959964 * error, difference + 1.959964 * error, p]


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_equals_the_brute_force_reference(seed, ties, clustered):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(12, 60))
    label = rng.permutation(np.arange(num) % 3 == 0).astype(int)
    a, b = rng.normal(label, 1, (2, num))
    if ties:
        a, b = a.round(), b.round()
    groups = [f"p{k}" for k in rng.integers(0, num // 3, num)] if clustered else None
    got = delong_test(label, a, b, groups)
    assert got == pytest.approx(_reference_delong(label, a, b, groups or range(num)), abs=1e-6)
    assert got[:2] == pytest.approx([roc_auc_score(label, a), roc_auc_score(label, b)], abs=1e-12)


@pytest.mark.parametrize(
    ("column", "auc", "error", "chi_square", "p"),
    [(0, 0.7366, 0.0953, 0.0127, 0.9102), (1, 0.6478, 0.1046, 0.5554, 0.4561)],
)
def test_equals_published_values(column, auc, error, chi_square, p):
    """Albumin and total protein against the K-G score, from the SAS manual of PROC LOGISTIC."""
    got = delong_test(OVARIAN[:, 3], 10 - OVARIAN[:, 2], OVARIAN[:, column])
    assert (got.auc_a, got.auc_b, got.p) == pytest.approx((0.7258, auc, p), abs=5e-5)
    std = (got.high - got.low) / 2 / 1.959964
    assert (std, (got.difference / std) ** 2) == pytest.approx((error, chi_square), abs=5e-5)


def test_hand_worked():
    # A ranks perfectly; B puts one of two negatives above one of two positives. Shares of B: positives 1/2 and 1,
    # negatives 1/2 and 1: differences -1/2 and 0 twice, of variance 1/8 each: 1/8 / 2 + 1/8 / 2 = 1/8.
    got = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [1, 3, 2, 4])
    width = 1.959964 * math.sqrt(1 / 8)
    assert got[:5] == pytest.approx((1, 0.75, -0.25, -0.25 - width, -0.25 + width), abs=1e-6)


def test_order_of_models_and_rows_does_not_matter():
    rng = np.random.default_rng(3)
    label, groups = rng.integers(0, 2, 50), rng.integers(0, 20, 50)
    a, b = rng.normal(label, 1, (2, 50))
    one, other = delong_test(label, a, b, groups), delong_test(label, b, a, groups)
    assert one.p == pytest.approx(other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    order = rng.permutation(50)
    assert delong_test(label[order], a[order], b[order], groups[order]) == pytest.approx(one)
    assert delong_test(label, np.exp(a), 3 * b, groups) == one  # only ranks count


def _error_rates(simulate, num_studies=600):
    """Share of studies of two equally good models with p < 0.05: clustered by patient, and unclustered."""
    num_errors = np.zeros(2)
    for seed in range(num_studies):
        label, a, b, groups = simulate(np.random.default_rng(seed))
        num_errors += [delong_test(label, a, b, clusters).p < 0.05 for clusters in (groups, None)]
    return num_errors / num_studies


def _patients_of_one_class(rng):
    groups = np.repeat(np.arange(60), 5)
    label = groups % 2
    a, b = rng.normal(label, 0.7, (2, 300)) + rng.normal(0, 0.7, (2, 60))[:, groups]
    return label, a, b, groups


def _patients_of_both_classes(rng):
    groups, label = np.repeat(np.arange(60), 6), np.tile([0, 1], 180)
    a, b = rng.normal(label, 0.7, (2, 360)) + rng.normal(0, 1.4, (2, 60))[:, groups]
    return label, a, b, groups


def test_false_alarm_rate_is_right_by_patient_and_not_by_image():
    """Of 600 studies 5% +- 2.7% (three standard errors) may differ by chance."""
    by_patient, by_image = _error_rates(_patients_of_one_class)
    assert 0.023 < by_patient < 0.077
    assert by_image > 0.15


def test_unclustered_test_is_conservative_if_patients_have_images_of_both_classes():
    by_patient, by_image = _error_rates(_patients_of_both_classes)
    assert 0.023 < by_patient < 0.077
    assert by_image < 0.01  # a patient's level shifts both classes, and cancels


def test_equal_rankings_do_not_differ():
    label = np.array([0, 1] * 10)
    a = np.random.default_rng(0).random(20)
    assert delong_test(label, a, 2 * a)[2:] == (0, 0, 0, 1)


def test_no_interval_without_variance():
    """All right against all wrong."""
    got = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert got[:3] == (1, 0, -1)
    assert all(map(math.isnan, got[3:]))


def test_intervals_are_clipped_to_possible_values():
    one = delong_test([0, 0, 0, 1, 1, 1], [3, 4, 6, 1, 2, 5], [1, 2, 4, 3, 5, 6])
    other = delong_test([0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6], [3, 4, 6, 1, 2, 5])
    assert (one.difference, one.high) == (pytest.approx(2 / 3), 1)
    assert (other.low, other.high) == (-1, pytest.approx(-one.low))


def test_undefined_values_are_nan():
    assert all(map(math.isnan, delong_test([1, 1], [0, 1], [1, 0])))
    for label, groups in (([0, 0, 1], None), ([0, 0, 1, 1], "aabc")):
        got = delong_test(label, range(len(label)), range(len(label)), groups)
        assert got[:3] == (1, 1, 0)
        assert all(map(math.isnan, got[3:]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0, 1, 2], [0, 1, 2]), r"one length, got \(2,\), \(3,\) and \(2,\)"),
        (([0, 1], [0, 1], [0, 1], "a"), "one length"),
        (([0, 2], [0, 1], [0, 1]), "labels 0 or 1"),
        (([0, 1], [0, math.nan], [0, 1]), "finite"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        delong_test(*arguments)
