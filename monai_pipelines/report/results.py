"""The numbers of an evaluation: what ``metrics.json`` holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from monai_pipelines.metrics import bootstrap_intervals, classification_metrics, per_class_metrics, predicted_classes

__all__ = ["class_table", "confident_mistakes", "evaluation_results", "plain_data"]

Row = Mapping[str, Any]

MAX_INTERVALS = 2000  # images for which intervals are computed: of 14 labels each it takes 9 s


def evaluation_results(
    scored: Sequence[Row], class_names: Sequence[str], threshold: float | None = None
) -> dict[str, Any]:
    """Figures of merit of rows with a label, those of the shortcut baselines beside.

    Args:
        scored: rows with ``prob`` and ``label``, as :func:`monai_pipelines.report.write_report` takes them.
        class_names: the C names.
        threshold: of :func:`monai_pipelines.metrics.predicted_classes`.

    Returns:
        ``num_scans``, ``num_patients``, ``num_wrong``, ``classes``, ``threshold``, ``metrics``, ``intervals`` (name ->
        [low, high] of 95%, by :func:`monai_pipelines.metrics.bootstrap_intervals`; empty above 2,000 images),
        ``metrics_at_half`` (at 0.5, where a threshold gives others), ``shortcut`` (figures of the strongest baseline),
        ``shortcut_name`` (by ROC AUC), ``shortcuts`` (of each), ``per_class``, ``confusion_matrix`` (rows true,
        columns predicted; of several labels each a 2 x 2 one for each class), ``spread`` (mean of the right and of the
        wrong ones); None stands for what the labels leave undefined and for what there is not.

    Raises:
        ValueError: bad probabilities or labels, or a baseline that not all rows have.

    Example:
        >>> rows = [{"image": f"{k}.png", "label": k, "prob": [1.0 - k, float(k)]} for k in (0, 1)]
        >>> evaluation_results(rows, ["healthy", "ill"])["confusion_matrix"]
        [[1, 0], [0, 1]]
    """
    prob, label = np.array([row["prob"] for row in scored]), np.array([row["label"] for row in scored])
    num, several = len(class_names), label.ndim == 2
    figures = partial(classification_metrics, num_classes=num, threshold=threshold)
    metrics = plain_data(figures(prob, label))
    few = len(scored) <= MAX_INTERVALS
    at_half = None if threshold is None else plain_data(classification_metrics(prob, label, num, 0.5))
    shortcuts = {
        name: plain_data(classification_metrics(own, label, num)) for name, own in shortcut_probs(scored).items()
    }
    strongest = max(shortcuts, key=lambda name: shortcuts[name]["roc_auc"] or -math.inf, default=None)
    predicted = predicted_classes(prob, threshold, several)
    right = (predicted == label).all(axis=1) if several else predicted == label
    matrix = multilabel_confusion_matrix if several else confusion_matrix
    table = class_table(scored, class_names)
    return {
        "num_scans": len(scored),
        "num_patients": table["num_patients"],
        "num_wrong": int((~right).sum()),
        "classes": table["classes"],
        "threshold": threshold,
        "metrics": metrics,
        "intervals": plain_data(bootstrap_intervals(figures, prob, label, _patients(scored))) if few else {},
        "metrics_at_half": None if at_half == metrics else at_half,
        "shortcut": shortcuts[strongest] if strongest else None,
        "shortcut_name": strongest,
        "shortcuts": shortcuts,
        "per_class": dict(zip(class_names, plain_data(per_class_metrics(prob, label, num, threshold)), strict=True)),
        "confusion_matrix": matrix(label, predicted, labels=range(num)).tolist(),
        "spread": _spread(scored, right),
    }


def shortcut_probs(scored: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Probabilities (N, C) of each shortcut baseline; all rows have the same baselines, or none has any."""
    names = list(scored[0].get("shortcut_prob") or {})
    given = sum(list(row.get("shortcut_prob") or {}) == names for row in scored)
    if given < len(scored):
        raise ValueError(
            f"write_report: wanted shortcut_prob of the same baselines for all {len(scored)} scored rows, got {given}"
        )
    return {name: np.array([row["shortcut_prob"][name] for row in scored]) for name in names}


def class_table(items: Sequence[Row], class_names: Sequence[str]) -> dict[str, Any]:
    """Images and patients of each class, and how unequal the classes are.

    Args:
        items: with ``label``, and ``patient`` where it is known; among others an image without is a patient of its
            own.
        class_names: the C names.

    Returns:
        ``num_scans``, ``num_patients``, ``classes`` (name -> ``num_scans``, ``num_patients``), ``imbalance_factor``
        (images of the largest class by those of the smallest; None where a class has none). ``num_patients`` is
        None where no item has a patient.

    Example:
        >>> class_table([{"label": 0}, {"label": 1}, {"label": 1}], ["healthy", "ill"])["imbalance_factor"]
        2.0
    """
    label = np.array([item["label"] for item in items])
    has = label == 1 if label.ndim == 2 else label[:, None] == np.arange(len(class_names))
    patients, counts = np.array(_patients(items)), has.sum(axis=0)
    known = any(item.get("patient") for item in items)
    return {
        "num_scans": len(items),
        "num_patients": len(np.unique(patients)) if known else None,
        "classes": {
            name: {
                "num_scans": int(counts[k]),
                "num_patients": len(np.unique(patients[has[:, k]])) if known else None,
            }
            for k, name in enumerate(class_names)
        },
        "imbalance_factor": float(counts.max() / counts.min()) if counts.min() else None,
    }


def confident_mistakes(
    prob: ArrayLike, label: ArrayLike, num: int, threshold: float | None = None
) -> list[tuple[int, int]]:
    """The images given a wrong class with the highest probability, the most certain first.

    Of several labels each, the label that is wrong with the highest probability counts.

    Args:
        prob: (N, C) probabilities.
        label: (N,) or (N, C).
        num: of images, at most.
        threshold: of :func:`monai_pipelines.metrics.predicted_classes`.

    Returns:
        (row, class): the class predicted, or of several labels each the one that is wrong.

    Example:
        >>> confident_mistakes([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]], [1, 0, 1], num=2)
        [(0, 0), (1, 1)]
    """
    scores, truth = np.asarray(prob), np.asarray(label)
    predicted = predicted_classes(scores, threshold, truth.ndim == 2)
    if truth.ndim == 2:
        certain = np.where(predicted == truth, -1.0, np.where(predicted == 1, scores, 1 - scores))
        classes, certain = certain.argmax(axis=1), certain.max(axis=1)
    else:
        classes, certain = predicted, np.where(predicted == truth, -1.0, scores[np.arange(len(scores)), predicted])
    order = [int(row) for row in np.argsort(-certain, kind="stable")[:num] if certain[row] >= 0]
    return [(row, int(classes[row])) for row in order]


def plain_data(value: Any) -> Any:
    """Plain data that strict JSON can hold: NaN is None, paths and the like are text.

    Example:
        >>> plain_data({"roc_auc": float("nan"), "n": np.int64(3)})
        {'roc_auc': None, 'n': 3}
    """
    if isinstance(value, Mapping):
        return {str(name): plain_data(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_data(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _patients(items: Sequence[Row]) -> list[str]:
    return [str(item.get("patient") or item.get("image") or k) for k, item in enumerate(items)]


def _spread(scored: Sequence[Row], right: NDArray[np.bool_]) -> dict[str, float | None] | None:
    if any(row.get("spread") is None for row in scored):
        return None
    spread = np.array([row["spread"] for row in scored])
    return {
        name: float(spread[own].mean()) if own.any() else None for name, own in (("right", right), ("wrong", ~right))
    }
