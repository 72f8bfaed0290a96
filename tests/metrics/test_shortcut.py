from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from monai_pipelines.metrics import shortcut_baseline


def _reference_shortcut(train, labels, test):
    """Balanced, L2-penalised logistic regression on standardised features, by a general minimiser."""
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


def test_missing_training_class_gets_no_probability():
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
def test_bad_input_is_told(train, labels, message):
    with pytest.raises(ValueError, match=message):
        shortcut_baseline(train, labels, [[0.0]])
