"""Shortcut baselines: what can be predicted from cheap features, without the anatomy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALL = "all of them"


def shortcut_baselines(
    train_features: Mapping[str, ArrayLike],
    train_labels: ArrayLike,
    test_features: Mapping[str, ArrayLike],
    num_classes: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """:func:`shortcut_baseline` of each group of features and, if there are several, of "all of them" together.

    Args:
        train_features: name -> (N_train, F) finite numbers.
        train_labels: as in :func:`shortcut_baseline`.
        test_features: the same names -> (N_test, F).
        num_classes: C.

    Returns:
        name -> (N_test, C) probabilities.

    Raises:
        ValueError: different names, or as :func:`shortcut_baseline`.

    Example:
        >>> train, test = {"mean": [[0.1], [0.9]], "size": [[3], [3]]}, {"mean": [[0.2]], "size": [[3]]}
        >>> {name: prob.argmax(1).item() for name, prob in shortcut_baselines(train, [0, 1], test).items()}
        {'mean': 0, 'size': 0, 'all of them': 0}
    """
    if {*train_features} != {*test_features}:
        raise ValueError(f"shortcut_baselines: train has {sorted(train_features)}, test has {sorted(test_features)}")
    train, test = dict(train_features), dict(test_features)
    if len(train) > 1:
        test[ALL] = np.concatenate([test[name] for name in train], axis=1)
        train[ALL] = np.concatenate(list(train.values()), axis=1)
    return {name: shortcut_baseline(train[name], train_labels, test[name], num_classes) for name in train}


def shortcut_baseline(
    train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike, num_classes: int | None = None
) -> NDArray[np.float64]:
    """Probabilities of a class-weighted logistic regression on cheap features, as a baseline for a network.

    The features need no look at the anatomy: mean and histogram of intensity, image size, scanner. A network that does
    not beat this on the same images has learned a shortcut, or nothing. Features are standardized by the training
    images' mean and standard deviation; training classes have equal total weight.

    Args:
        train_features: (N_train, F) finite numbers, any units.
        train_labels: (N_train,) integers in 0..C-1, at least two classes; or (N_train, C) of 0 and 1, with one
            regression per column.
        test_features: (N_test, F), the same features.
        num_classes: C; None takes the highest training label + 1, or the columns of the labels.

    Returns:
        (N_test, C) probabilities; 0 for a class absent from the training labels, and in multi-label data 1 for a label
        that all training images have.

    Raises:
        ValueError: fewer than two training classes, labels outside the C classes, features that are not finite or
            differ in number (scikit-learn).

    Example:
        >>> shortcut_baseline([[-800.0], [-790.0], [-600.0], [-610.0]], [0, 0, 1, 1], [[-805.0], [-590.0]]).argmax(1)
        array([0, 1])

    Reference: Geirhos et al., Shortcut learning in deep neural networks, Nature Machine Intelligence, 2020.
    """
    train, labels = np.asarray(train_features, dtype=np.float64), np.asarray(train_labels)
    test = np.asarray(test_features, dtype=np.float64)
    if labels.ndim == 2:
        return np.stack([_column(train, column, test) for column in labels.T], axis=1)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"shortcut_baseline: wanted training labels of two classes or more, got {classes}")
    num = num_classes or int(classes[-1]) + 1
    if classes[0] < 0 or classes[-1] >= num:
        raise ValueError(f"shortcut_baseline: wanted training labels in 0..{num - 1}, got {classes}")
    prob = np.zeros((len(test), num))
    prob[:, classes] = _fitted(train, labels, test)
    return prob


def _column(train: NDArray[np.float64], labels: NDArray, test: NDArray[np.float64]) -> NDArray[np.float64]:
    if labels.min() == labels.max():
        return np.full(len(test), float(labels[0]))
    return _fitted(train, labels, test)[:, 1]


def _fitted(train: NDArray[np.float64], labels: NDArray, test: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=10_000))
    return model.fit(train, labels).predict_proba(test)
