"""What a model without eyes would have reached."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

__all__ = ["shortcut_baseline"]


def shortcut_baseline(
    train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike, num_classes: int | None = None
) -> NDArray[np.float64]:
    """Probabilities of a class-weighted logistic regression on cheap features, to hold a network against.

    The features are ones that need no look at the anatomy: mean and histogram of intensity, image size, scanner. A
    network that does not beat this on the same scans has learnt a shortcut, or nothing. Features are standardised by
    the training scans' mean and standard deviation; training classes weigh the same however many scans they have.

    Args:
        train_features: (N_train, F) finite numbers, any units.
        train_labels: (N_train,) integers in 0..C-1, at least two classes.
        test_features: (N_test, F), the same features.
        num_classes: C; None takes the highest training label + 1.

    Returns:
        (N_test, C) probabilities; 0 for a class that is not in the training labels.

    Raises:
        ValueError: fewer than two classes to learn from, features not finite or of differing number (scikit-learn).

    Example:
        >>> shortcut_baseline([[-800.0], [-790.0], [-600.0], [-610.0]], [0, 0, 1, 1], [[-805.0], [-590.0]]).argmax(1)
        array([0, 1])

    Reference: Geirhos et al., Shortcut learning in deep neural networks, Nature Machine Intelligence, 2020.
    """
    train_labels = np.asarray(train_labels)
    classes = np.unique(train_labels)
    if len(classes) < 2:
        raise ValueError(f"shortcut_baseline: wanted training labels of two classes or more, got {classes}")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=10_000))
    model.fit(np.asarray(train_features, dtype=np.float64), train_labels)
    prob = np.zeros((len(np.asarray(test_features)), num_classes or int(classes[-1]) + 1))
    prob[:, classes] = model.predict_proba(np.asarray(test_features, dtype=np.float64))
    return prob
