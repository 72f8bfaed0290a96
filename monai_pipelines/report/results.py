"""The metrics of an evaluation, as ``metrics.json`` holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from monai_pipelines.metrics import (
    classification_metrics,
    compare_predictions,
    metric_intervals,
    net_benefit,
    per_class_metrics,
    predicted_classes,
    referral_table,
    reliability,
    risk_coverage,
    temper,
    uncertainty,
)
from monai_pipelines.metrics.classification import Threshold
from monai_pipelines.report.predictions import Row

MAX_VALUES = 12  # of a subgroup column
NUM_POINTS = 200  # of a risk-coverage curve, at most


def evaluation_results(
    scored: Sequence[Row],
    classes: Sequence[str],
    threshold: Threshold = None,
    threshold_by: str | None = None,
    temperature: float | None = None,
    subgroups: Sequence[str] = (),
) -> dict[str, Any]:
    """Compute all metrics of labeled rows and of their shortcut baselines.

    Intervals are [low, high] of :func:`monai_pipelines.metrics.metric_intervals` (95%, whole patients resampled; images
    where patients are unknown).

    Args:
        scored: rows with ``prob`` and ``label``, as :func:`monai_pipelines.report.write_report` takes them.
        classes: C class names.
        threshold: see :func:`monai_pipelines.metrics.predicted_classes`.
        threshold_by: the rule that chose it.
        temperature: by which the logits were divided; None: not calibrated.
        subgroups: keys of ``columns`` by which to split the rows.

    Returns:
        ``num_images``, ``num_patients``, ``num_wrong``, ``classes``, ``threshold``, ``threshold_by``;
        ``metrics``, ``intervals`` (metric -> interval), ``metrics_at_half`` (at 0.5, where the threshold changes any);
        ``shortcut`` (metrics of the baseline with the highest ROC AUC), ``shortcut_name``, ``shortcuts`` (of each);
        ``differences`` (metric -> ``difference`` of the model from the shortcut and its ``interval``, by
        :func:`monai_pipelines.metrics.compare_predictions`; empty without a shortcut);
        ``per_class``, ``per_class_intervals`` (class -> metric -> interval);
        ``confusion_matrix`` (rows true, columns predicted; multi-label: a 2 x 2 matrix for each class);
        ``subgroups`` (column -> value -> ``num_images``, ``num_patients``, ``classes`` (name -> count), ``metrics``,
        ``intervals``; the value "" is a missing one);
        ``calibration`` (``temperature``, ``reliability`` and, with a temperature, ``before``: ``ece``, ``brier``,
        ``log_loss``, ``reliability``);
        ``decision_curve`` (two classes only: ``thresholds``, net benefit of the ``model`` and of treating ``all``);
        ``uncertainty`` and, where rows have a spread, ``uncertainty_by_spread``: ``by``, ``coverage``, ``risk`` (share
        of wrong rows, or labels; at most 200 points) and ``area`` of :func:`monai_pipelines.metrics.risk_coverage`,
        ``referral`` of :func:`monai_pipelines.metrics.referral_table`; ``spread`` (mean over ``right`` and ``wrong``
        predictions).
        Undefined and missing values are None.

    Raises:
        ValueError: bad probabilities or labels, a baseline that some rows lack, or a subgroup column with more than 12
            values.
        KeyError: a subgroup column that no row has.

    Example:
        >>> rows = [{"image": f"{k}.png", "label": k, "prob": [1.0 - k, float(k)]} for k in (0, 1)]
        >>> evaluation_results(rows, ["healthy", "ill"])["confusion_matrix"]
        [[1, 0], [0, 1]]
    """
    prob, label = np.array([row["prob"] for row in scored]), np.array([row["label"] for row in scored])
    num, multilabel = len(classes), label.ndim == 2
    metrics = plain_data(classification_metrics(prob, label, threshold))
    intervals = metric_intervals(prob, label, _patients(scored), threshold)
    at_half = None if threshold is None else plain_data(classification_metrics(prob, label, 0.5))
    shortcuts = {name: plain_data(classification_metrics(p, label)) for name, p in shortcut_probs(scored).items()}
    strongest = max(shortcuts, key=lambda name: shortcuts[name]["roc_auc"] or -math.inf, default=None)
    differences = {}
    if strongest:
        shortcut = shortcut_probs(scored)[strongest]
        differences = compare_predictions(shortcut, prob, label, _patients(scored), None, threshold)["metrics"]
    predicted = predicted_classes(prob, threshold, multilabel)
    wrong = (predicted != label).mean(axis=1) if multilabel else (predicted != label).astype(float)
    matrix = multilabel_confusion_matrix if multilabel else confusion_matrix
    table = class_table(scored, classes)
    spread = None
    if all(row.get("spread") is not None for row in scored):
        spread = np.array([row["spread"] for row in scored])

    def uncertainty_results(values: NDArray[Any], by: str) -> dict[str, Any]:
        coverage, risk, area = risk_coverage(values, wrong)
        points = np.unique(np.linspace(0, len(risk) - 1, NUM_POINTS).round().astype(int))
        referral = referral_table(values, prob, label, threshold=threshold)
        return {"by": by, "coverage": coverage[points], "risk": risk[points], "area": area, "referral": referral}

    results = {
        "num_images": len(scored),
        "num_patients": table["num_patients"],
        "num_wrong": int((wrong > 0).sum()),
        "classes": table["classes"],
        "threshold": threshold,
        "threshold_by": threshold_by,
        "metrics": metrics,
        "intervals": intervals.metrics,
        "metrics_at_half": None if at_half == metrics else at_half,
        "shortcut": shortcuts[strongest] if strongest else None,
        "shortcut_name": strongest,
        "shortcuts": shortcuts,
        "differences": differences_of(differences),
        "per_class": dict(zip(classes, per_class_metrics(prob, label, threshold), strict=True)),
        "per_class_intervals": dict(zip(classes, intervals.per_class, strict=True)),
        "confusion_matrix": matrix(label, predicted, labels=range(num)),
        "subgroups": {
            column: by_value(scored, column, partial(_group_results, classes=classes, threshold=threshold))
            for column in subgroups
        },
        "calibration": _calibration(prob, label, temperature),
        "decision_curve": None if multilabel or num > 2 else _decision_curve(prob[:, 1], label),
        "uncertainty": uncertainty_results(uncertainty(prob, threshold, multilabel), "probability"),
        "uncertainty_by_spread": None if spread is None else uncertainty_results(spread, "spread"),
        "spread": None if spread is None else {"right": _mean(spread[wrong == 0]), "wrong": _mean(spread[wrong > 0])},
    }
    plain: dict[str, Any] = plain_data(results)
    return plain


def shortcut_probs(scored: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Probabilities (N, C) of each shortcut baseline; all rows must have the same baselines."""
    names = list(scored[0].get("shortcut_prob") or {})
    num = sum(list(row.get("shortcut_prob") or {}) == names for row in scored)
    if num < len(scored):
        raise ValueError(
            f"write_report: wanted shortcut_prob of the same baselines for all {len(scored)} scored rows, got {num}"
        )
    return {name: np.array([row["shortcut_prob"][name] for row in scored]) for name in names}


def class_table(items: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """Count images and patients of each class.

    Args:
        items: with ``label`` and, where known, ``patient``. If only some have a patient, each of the others counts as
            one.
        classes: C class names.

    Returns:
        ``num_images``, ``num_patients`` (None if no item has a patient), ``classes`` (name -> ``num_images``,
        ``num_patients``), ``imbalance_factor`` (images of the largest class over those of the smallest; None if a class
        is empty).

    Example:
        >>> class_table([{"label": 0}, {"label": 1}, {"label": 1}], ["healthy", "ill"])["imbalance_factor"]
        2.0
    """
    from monai_pipelines.data import patients_known  # imports torch, which rendering a page does not need

    label = np.array([item["label"] for item in items])
    has = label == 1 if label.ndim == 2 else label[:, None] == np.arange(len(classes))
    patients, counts = np.array(_patients(items)), has.sum(axis=0)
    known = patients_known(items)
    return {
        "num_images": len(items),
        "num_patients": len(np.unique(patients)) if known else None,
        "classes": {
            name: {
                "num_images": int(counts[k]),
                "num_patients": len(np.unique(patients[has[:, k]])) if known else None,
            }
            for k, name in enumerate(classes)
        },
        "imbalance_factor": float(counts.max() / counts.min()) if counts.min() else None,
    }


def by_value(
    scored: Sequence[Row], column: str, results: Callable[[Sequence[Row]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Results of the rows of each value of a column; the value "" is a missing one.

    Raises:
        KeyError: no row has the column.
        ValueError: more than 12 values.
    """
    columns = {name for row in scored for name in row.get("columns", {})}
    if column not in columns:
        raise KeyError(f"subgroups: no row has the column {column!r}; there are {', '.join(sorted(columns)) or 'none'}")
    groups: dict[str, list[Row]] = {}
    for row in scored:
        value = row.get("columns", {}).get(column)
        groups.setdefault("" if value is None else str(value).strip(), []).append(row)
    if len(groups) > MAX_VALUES:
        raise ValueError(
            f"subgroups: wanted a column with at most {MAX_VALUES} values, got {len(groups)} in {column!r} "
            "(bin them in the table)"
        )
    return {value: results(groups[value]) for value in sorted(groups)}


def confident_mistakes(
    prob: ArrayLike, label: ArrayLike, num: int, threshold: Threshold = None
) -> list[tuple[int, int]]:
    """Find the wrong predictions with the highest probability, the most certain first.

    Multi-label: an image counts by its most certain wrong label.

    Args:
        prob: (N, C) probabilities.
        label: (N,) or (N, C).
        num: at most this many.
        threshold: see :func:`monai_pipelines.metrics.predicted_classes`.

    Returns:
        (row, class): the predicted class; multi-label: the wrong one.

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


def differences_of(compared: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """``difference`` and its ``interval`` [low, high] (None: undefined) of each compared metric.

    Example:
        >>> differences_of({"roc_auc": {"a": 0.5, "b": 0.75, "difference": 0.25, "low": 0.1, "high": 0.4, "p": 0.01}})
        {'roc_auc': {'difference': 0.25, 'interval': [0.1, 0.4]}}
    """
    return {
        name: {
            "difference": row["difference"],
            "interval": None if math.isnan(row["low"]) else [row["low"], row["high"]],
        }
        for name, row in compared.items()
    }


def plain_data(value: Any) -> Any:
    """Convert to what strict JSON can hold: NaN becomes None, paths and other objects become text.

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


def _group_results(rows: Sequence[Row], classes: Sequence[str], threshold: Threshold) -> dict[str, Any]:
    prob, label = np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])
    table = class_table(rows, classes)
    return {
        "num_images": len(rows),
        "num_patients": table["num_patients"],
        "classes": {name: count["num_images"] for name, count in table["classes"].items()},
        "metrics": classification_metrics(prob, label, threshold),
        "intervals": metric_intervals(prob, label, _patients(rows), threshold).metrics,
    }


def _calibration(prob: NDArray[Any], label: NDArray[Any], temperature: float | None) -> dict[str, Any]:
    before = None
    if temperature is not None:
        untempered = temper(prob, 1 / temperature, label.ndim == 2)
        metrics = classification_metrics(untempered, label)
        before = {
            **{name: metrics[name] for name in ("ece", "brier", "log_loss")},
            "reliability": reliability(untempered, label),
        }
    return {"temperature": temperature, "reliability": reliability(prob, label), "before": before}


def _decision_curve(prob: NDArray[Any], label: NDArray[Any]) -> dict[str, Any]:
    thresholds = np.arange(1, 100) / 100
    model, treat_all = net_benefit(prob, label, thresholds)
    return {"thresholds": thresholds, "model": model, "all": treat_all}


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
