"""What cheap features alone reveal about the class: how public data sets leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from monai_pipelines.audit.readings import Reading
from monai_pipelines.data.split import Item, label_indices
from monai_pipelines.metrics import classification_metrics, metric_intervals
from monai_pipelines.metrics.shortcut import shortcut_baselines

FOLDS = 5
MAX_CATEGORIES = 20
_RESAMPLES = 500


def shortcut_table(
    readings: Sequence[Reading], items: Sequence[Item], num_classes: int, values: str
) -> list[dict[str, Any]]:
    """ROC AUC of logistic regressions on cheap features: size, spacing, file type, scanner, values.

    Each is fitted and scored in five-fold cross-validation with whole patients; classes with fewer than five patients
    are left out, and so are features that are the same for all.

    Args:
        readings: of the items.
        items: with ``label`` and ``patient``.
        num_classes: C.
        values: what the values are called: gray levels, or HU.

    Returns:
        for each group of features and for all together ``features``, ``roc_auc`` (mean over the classes), and its 95%
        interval ``low`` and ``high`` (None if undefined); [] with fewer than two classes of five patients.
    """
    present = np.array([[k in label_indices(item["label"]) for k in range(num_classes)] for item in items])
    patients = np.array([item["patient"] for item in items])
    multilabel = any(isinstance(item["label"], list) for item in items)
    sides = (present, ~present) if multilabel else (present,)
    large = [k for k in range(num_classes) if all(len({*patients[side[:, k]]}) >= FOLDS for side in sides)]
    if len(large) < 2 - multilabel:
        return []
    rows = np.arange(len(items)) if multilabel else np.flatnonzero(present[:, large].any(axis=1))
    present, patients = present[rows][:, large], patients[rows]
    label = present.astype(int) if multilabel else present.argmax(axis=1)
    strata = np.where(present.any(axis=1), present.argmax(axis=1), len(large))
    features = _features([readings[row] for row in rows.tolist()], values)
    if not features:
        return []
    probs: dict[str, NDArray[np.float64]] = {}
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(strata, strata, patients):
        found = shortcut_baselines(
            {name: values[train] for name, values in features.items()},
            label[train],
            {name: values[test] for name, values in features.items()},
            len(large),
        )
        for name, prob in found.items():
            probs.setdefault(name, np.zeros(present.shape))[test] = prob
    return [_row(name, prob, label, patients.tolist()) for name, prob in probs.items()]


def _row(name: str, prob: NDArray[np.float64], label: NDArray[Any], patients: Sequence[str]) -> dict[str, Any]:
    low, high = metric_intervals(prob, label, patients, num_resamples=_RESAMPLES).metrics.get("roc_auc", (None, None))
    return {"features": name, "roc_auc": classification_metrics(prob, label)["roc_auc"], "low": low, "high": high}


def _features(readings: Sequence[Reading], values: str) -> Mapping[str, NDArray[np.float64]]:
    """Name -> (N, F); without those that are the same for all."""
    groups: dict[str, Any] = {
        "size": [np.log2(reading.size) for reading in readings],
        "file type": _one_hot([f"{reading.file_type} {reading.channels}" for reading in readings]),
        "scanner": _one_hot([reading.scanner for reading in readings]),
        values: [(reading.low, reading.mean, reading.std, reading.high) for reading in readings],
    }
    spacings = [reading.spacing for reading in readings if reading.spacing]
    if len(spacings) == len(readings):
        groups["spacing"] = np.log2(spacings)
    stacked = {name: np.asarray(group, float) for name, group in groups.items()}
    return {name: group for name, group in stacked.items() if np.ptp(group, axis=0).any()}


def _one_hot(texts: Sequence[str]) -> NDArray[np.float64]:
    known = [text for text, _ in Counter(texts).most_common(MAX_CATEGORIES)]
    return np.array([[text == one for one in known] for text in texts], float)
