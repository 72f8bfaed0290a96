from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from monai_pipelines.metrics import shortcut_baseline, shortcut_baselines


def _reference_shortcut(train, labels, test):
    """Balanced, L2-penalized logistic regression on standardized features, by a general minimizer."""
    mean, std = train.mean(0), train.std(0)
    x, z = (train - mean) / std, (test - mean) / std
    weight = np.where(labels == 1, len(labels) / (2 * (labels == 1).sum()), len(labels) / (2 * (labels == 0).sum()))
    sign = 2 * labels - 1

    def loss(w):
        return (weight * np.logaddexp(0, -sign * (x @ w[1:] + w[0]))).sum() + 0.5 * (w[1:] ** 2).sum()

    w = minimize(loss, np.zeros(x.shape[1] + 1), tol=1e-10).x
    return 1 / (1 + np.exp(-(z @ w[1:] + w[0])))


def test_equals_the_reference_whatever_the_units():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 20])
    train, test = rng.normal(size=(80, 3)) + labels[:, None] * [1.0, 0.5, 0.0], rng.normal(size=(10, 3))
    units = np.array([1000.0, 1e-3, 1.0])
    prob = shortcut_baseline(train * units - 800, labels, test * units - 800)
    np.testing.assert_allclose(prob[:, 1], _reference_shortcut(train, labels, test), atol=1e-3)
    np.testing.assert_allclose(prob.sum(axis=1), 1)


def test_absent_training_class_has_probability_zero():
    prob = shortcut_baseline([[0.0], [1.0], [2.0], [3.0]], [0, 0, 2, 2], [[0.0], [3.0]], num_classes=4)
    assert prob.shape == (2, 4)
    assert prob.argmax(axis=1).tolist() == [0, 2]
    assert (prob[:, [1, 3]] == 0).all()


def test_constant_feature_is_harmless():
    prob = shortcut_baseline([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]], [0, 1, 1], [[0.0, 7.0]])
    assert np.isfinite(prob).all()


@pytest.mark.parametrize(
    ("train", "labels", "message"), [([[0.0], [1.0]], [1, 1], "two classes"), ([[0.0], [np.nan]], [0, 1], "NaN")]
)
def test_bad_input_is_refused(train, labels, message):
    with pytest.raises(ValueError, match=message):
        shortcut_baseline(train, labels, [[0.0]])


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, 0, 1]])
def test_label_outside_the_classes_is_refused(labels):
    with pytest.raises(ValueError, match=r"wanted training labels in 0\.\.1, got \["):
        shortcut_baseline([[0.0], [1.0], [2.0]], labels, [[0.0]], num_classes=2)


def test_multilabel_data_have_one_regression_per_column():
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(60, 3)), rng.normal(size=(7, 3))
    labels = np.stack([train[:, 0] > 0, train[:, 1] + rng.normal(size=60) > 0.5, np.zeros(60), np.ones(60)], 1).astype(
        int
    )
    prob = shortcut_baseline(train, labels, test, num_classes=4)
    for k in (0, 1):
        np.testing.assert_allclose(prob[:, k], _reference_shortcut(train, labels[:, k], test), atol=1e-3)
    assert (prob[:, 2] == 0).all()
    assert (prob[:, 3] == 1).all()


def test_each_group_of_features_and_all_together():
    rng = np.random.default_rng(2)
    train = {"color": rng.normal(size=(40, 3)), "size": rng.normal(size=(40, 1))}
    test = {"size": rng.normal(size=(5, 1)), "color": rng.normal(size=(5, 3))}
    labels = rng.integers(0, 2, 40)
    baselines = shortcut_baselines(train, labels, test)
    assert list(baselines) == ["color", "size", "all of them"]
    for name in train:
        np.testing.assert_array_equal(baselines[name], shortcut_baseline(train[name], labels, test[name]))
    together = [np.c_[part["color"], part["size"]] for part in (train, test)]
    np.testing.assert_array_equal(baselines["all of them"], shortcut_baseline(together[0], labels, together[1]))
    assert list(shortcut_baselines({"size": train["size"]}, labels, {"size": test["size"]})) == ["size"]
    assert shortcut_baselines({}, labels, {}) == {}
    with pytest.raises(ValueError, match=r"train has \['color', 'size'\], test has \['size'\]"):
        shortcut_baselines(train, labels, {"size": test["size"]})
