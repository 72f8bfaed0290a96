"""All metrics of 1,000 random problems equal scikit-learn's, and a formula written out where it has none."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from sklearn import metrics as sk

from monai_pipelines.metrics import classification_metrics, per_class_metrics, predicted_classes


class _Problem(NamedTuple):
    prob: np.ndarray
    label: np.ndarray
    threshold: float | list[float] | None

    @property
    def multilabel(self) -> bool:
        return self.label.ndim == 2

    @property
    def truths(self) -> np.ndarray:
        return self.label if self.multilabel else np.eye(self.prob.shape[1], dtype=int)[self.label]


def _problem(seed: int) -> _Problem:
    """Two classes, more, or multi-label; ties, certain probabilities; absent classes, a single class, a single row."""
    rng = np.random.default_rng(seed)
    num, n = rng.integers(2, 6), rng.choice([1, 2, 5, 30, 100])
    if seed % 3 == 0:
        num = 2
    if seed % 3 == 2:
        label = (rng.random((n, num)) < rng.choice([0, 0.1, 0.5, 1], size=num)).astype(int)
        prob = rng.random((n, num)).round(rng.choice([1, 9]))
        return _Problem(prob, label, [None, 0.3, rng.random(num).round(1).tolist()][seed // 3 % 3])
    label = rng.choice(rng.choice(num, size=rng.integers(1, num + 1), replace=False), size=n)
    prob = rng.dirichlet(np.ones(num), size=n)
    if seed % 2:
        prob = np.array([rng.multinomial(10, row) for row in prob]) / 10
    return _Problem(prob, label, round(rng.random(), 1) if num == 2 and seed % 4 < 2 else None)


def _reference_class(truth, predicted, score):
    metrics = dict.fromkeys(
        ("precision", "recall", "specificity", "npv", "f1", "mcc", "roc_auc", "average_precision"), math.nan
    )
    metrics["brier"] = sk.brier_score_loss(truth, score, pos_label=1)
    if truth.any():
        metrics["precision"] = sk.precision_score(truth, predicted, zero_division=0)
        metrics["recall"] = sk.recall_score(truth, predicted)
        metrics["f1"] = sk.f1_score(truth, predicted)
        metrics["average_precision"] = sk.average_precision_score(truth, score)
    if not truth.all():
        metrics["specificity"] = sk.recall_score(truth, predicted, pos_label=0)
        metrics["npv"] = sk.precision_score(truth, predicted, pos_label=0, zero_division=0)
    if len(set(truth)) == 2:
        metrics["mcc"] = sk.matthews_corrcoef(truth, predicted)
        metrics["roc_auc"] = sk.roc_auc_score(truth, score)
    return metrics


def _reference_ece(score, right):
    """One bin after the other, as in Guo et al.: (0, 0.1], (0.1, 0.2], ..., and 0 in the first."""
    total, edges = 0.0, np.linspace(0, 1, 11)
    for k in range(10):
        inside = (score > edges[k]) & (score <= edges[k + 1]) | ((score == 0) & (k == 0))
        if inside.any():
            total += inside.mean() * abs(score[inside].mean() - right[inside].mean())
    return total


def _mean(values):
    defined = [value for value in values if not math.isnan(value)]
    return np.mean(defined) if defined else math.nan


def _reference(problem):
    prob, label, truths = problem.prob, problem.label, problem.truths
    num = prob.shape[1]
    predicted = predicted_classes(prob, problem.threshold, problem.multilabel)
    each = predicted if problem.multilabel else np.eye(num, dtype=int)[predicted]
    classes = [_reference_class(truths[:, k], each[:, k], prob[:, k]) for k in range(num)]
    if not problem.multilabel and num == 2:
        overall = dict(classes[1])
    else:
        overall = {name: _mean([metrics[name] for metrics in classes]) for name in classes[0]}
        defined = 0 < truths.mean() < 1
        overall["roc_auc_micro"] = sk.roc_auc_score(truths.ravel(), prob.ravel()) if defined else math.nan
        precision = sk.average_precision_score(truths, prob, average="micro") if truths.any() else math.nan
        overall["average_precision_micro"] = precision
    overall["accuracy"] = (each == truths).mean() if problem.multilabel else sk.accuracy_score(label, predicted)
    if problem.multilabel:
        overall["balanced_accuracy"] = _mean([(metrics["recall"] + metrics["specificity"]) / 2 for metrics in classes])
        kappas = [
            sk.cohen_kappa_score(truths[:, k], each[:, k]) if len(set(truths[:, k])) == 2 else math.nan
            for k in range(num)
        ]
        overall["kappa"] = _mean(kappas)
        overall["ece"] = np.mean([_reference_ece(prob[:, k], truths[:, k]) for k in range(num)])
        overall["log_loss"] = np.mean([sk.log_loss(truths[:, k], prob[:, k], labels=[0, 1]) for k in range(num)])
        return overall, classes
    overall["balanced_accuracy"] = sk.balanced_accuracy_score(label, predicted)
    one = len(set(label)) == 1
    overall["mcc"] = math.nan if one else sk.matthews_corrcoef(label, predicted)
    overall["kappa"] = math.nan if one else sk.cohen_kappa_score(label, predicted, labels=range(num))
    overall["log_loss"] = sk.log_loss(label, prob, labels=range(num))
    if num == 2:
        overall["ece"] = _reference_ece(prob[:, 1], label)
    else:
        quadratic = math.nan if one else sk.cohen_kappa_score(label, predicted, labels=range(num), weights="quadratic")
        overall["kappa_quadratic"] = quadratic
        overall["brier"] = sk.brier_score_loss(label, prob, labels=range(num))
        overall["ece"] = _reference_ece(prob.max(1), prob.argmax(1) == label)
    return overall, classes


def _check(seeds):
    for seed in seeds:
        problem = _problem(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, for undefined metrics
            overall, classes = _reference(problem)
        metrics = classification_metrics(problem.prob, problem.label, threshold=problem.threshold)
        assert metrics == pytest.approx(overall, rel=1e-9, abs=1e-9, nan_ok=True), seed
        per_class = per_class_metrics(problem.prob, problem.label, threshold=problem.threshold)
        for k, (got, wanted) in enumerate(zip(per_class, classes, strict=True)):
            assert got.pop("num_images") == problem.truths[:, k].sum()
            assert got == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), (seed, k)


@pytest.mark.parametrize("block", range(4))
def test_random_problems_equal_scikit_learn(block):
    _check(range(block * 25, block * 25 + 25))


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(1, 10))
def test_more_random_problems_equal_scikit_learn(block):
    _check(range(block * 100, block * 100 + 100))


def test_problems_cover_every_edge_case():
    problems = [_problem(seed) for seed in range(100)]
    single = [problem for problem in problems if not problem.multilabel]
    assert any(len(problem.prob) == 1 for problem in problems)
    assert any(len(set(problem.label)) == 1 < len(problem.label) for problem in single)
    assert any(1 < len(set(problem.label)) < problem.prob.shape[1] for problem in single)
    assert any((problem.prob == 0).any() for problem in single)
    assert {type(problem.threshold) for problem in problems} == {type(None), float, list}
    assert sum(len(set(problem.prob[:, 0])) < len(problem.prob) for problem in problems) > 20
