"""The numbers of an evaluation: what ``metrics.json`` holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from monai_pipelines.metrics import (
    classification_metrics,
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

__all__ = ["class_table", "confident_mistakes", "evaluation_results", "plain_data"]

Row = Mapping[str, Any]

MAX_VALUES = 12  # of a column that makes subgroups
NUM_POINTS = 200  # of a risk-coverage curve, at most


def evaluation_results(
    scored: Sequence[Row],
    class_names: Sequence[str],
    threshold: Threshold = None,
    threshold_by: str | None = None,
    temperature: float | None = None,
    subgroups: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of merit of rows with a label, those of the shortcut baselines beside.

    Intervals are those of :func:`monai_pipelines.metrics.metric_intervals` (95%, whole patients drawn; images where
    patients are unknown), [low, high].

    Args:
        scored: rows with ``prob`` and ``label``, as :func:`monai_pipelines.report.write_report` takes them.
        class_names: the C names.
        threshold: of :func:`monai_pipelines.metrics.predicted_classes`.
        threshold_by: the rule that chose it.
        temperature: that the logits were divided by; None: by none.
        subgroups: keys of ``columns``, whose values part the rows.

    Returns:
        ``num_scans``, ``num_patients``, ``num_wrong``, ``classes``, ``threshold``, ``threshold_by``;
        ``metrics``, ``intervals`` (figure -> interval), ``metrics_at_half`` (at 0.5, where a threshold gives others);
        ``shortcut`` (figures of the strongest baseline), ``shortcut_name`` (by ROC AUC), ``shortcuts`` (of each);
        ``per_class``, ``per_class_intervals`` (class -> figure -> interval);
        ``confusion_matrix`` (rows true, columns predicted; of several labels each a 2 x 2 one for each class);
        ``subgroups`` (column -> value -> ``num_scans``, ``num_patients``, ``classes`` (name -> number), ``metrics``,
        ``intervals``; the value "": not given);
        ``calibration`` (``temperature``, ``reliability`` and, with a temperature, ``before`` it: ``ece``, ``brier``,
        ``log_loss``, ``reliability``);
        ``decision_curve`` (of two classes: net benefit at ``thresholds`` of the ``model`` and of treating ``all``);
        ``uncertainty`` and, where rows have a spread, ``uncertainty_by_spread``: ``by``, ``coverage``, ``risk`` (share
        of wrong rows, or labels; 200 points at most), ``area``, ``referral``, of
        :func:`monai_pipelines.metrics.risk_coverage` and :func:`monai_pipelines.metrics.referral_table`; ``spread``
        (mean of the right and of the wrong ones).
        None stands for what the labels leave undefined and for what there is not.

    Raises:
        ValueError: bad probabilities or labels, a baseline that not all rows have, or a column of subgroups with more
            than 12 values.
        KeyError: a column of subgroups that no row has.

    Example:
        >>> rows = [{"image": f"{k}.png", "label": k, "prob": [1.0 - k, float(k)]} for k in (0, 1)]
        >>> evaluation_results(rows, ["healthy", "ill"])["confusion_matrix"]
        [[1, 0], [0, 1]]
    """
    prob, label = np.array([row["prob"] for row in scored]), np.array([row["label"] for row in scored])
    num, several = len(class_names), label.ndim == 2
    metrics = plain_data(classification_metrics(prob, label, num, threshold))
    intervals = metric_intervals(prob, label, _patients(scored), num, threshold)
    at_half = None if threshold is None else plain_data(classification_metrics(prob, label, num, 0.5))
    shortcuts = {
        name: plain_data(classification_metrics(own, label, num)) for name, own in shortcut_probs(scored).items()
    }
    strongest = max(shortcuts, key=lambda name: shortcuts[name]["roc_auc"] or -math.inf, default=None)
    predicted = predicted_classes(prob, threshold, several)
    wrong = (predicted != label).mean(axis=1) if several else (predicted != label).astype(float)
    matrix = multilabel_confusion_matrix if several else confusion_matrix
    table = class_table(scored, class_names)
    spread = None
    if all(row.get("spread") is not None for row in scored):
        spread = np.array([row["spread"] for row in scored])

    def uncertain(values: NDArray[Any], by: str) -> dict[str, Any]:
        coverage, risk, area = risk_coverage(values, wrong)
        kept = np.unique(np.linspace(0, len(risk) - 1, NUM_POINTS).round().astype(int))
        referral = referral_table(values, prob, label, threshold=threshold)
        return {"by": by, "coverage": coverage[kept], "risk": risk[kept], "area": area, "referral": referral}

    results = {
        "num_scans": len(scored),
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
        "per_class": dict(zip(class_names, per_class_metrics(prob, label, num, threshold), strict=True)),
        "per_class_intervals": dict(zip(class_names, intervals.per_class, strict=True)),
        "confusion_matrix": matrix(label, predicted, labels=range(num)),
        "subgroups": {column: _subgroup(scored, column, class_names, threshold) for column in subgroups},
        "calibration": _calibration(prob, label, temperature),
        "decision_curve": None if several or num > 2 else _decision_curve(prob[:, 1], label),
        "uncertainty": uncertain(uncertainty(prob, threshold, several), "probability"),
        "uncertainty_by_spread": None if spread is None else uncertain(spread, "spread"),
        "spread": None if spread is None else {"right": _mean(spread[wrong == 0]), "wrong": _mean(spread[wrong > 0])},
    }
    plain: dict[str, Any] = plain_data(results)
    return plain


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
    from monai_pipelines.data import patients_known  # needs torch, which drawing a page does not

    label = np.array([item["label"] for item in items])
    has = label == 1 if label.ndim == 2 else label[:, None] == np.arange(len(class_names))
    patients, counts = np.array(_patients(items)), has.sum(axis=0)
    known = patients_known(items)
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
    prob: ArrayLike, label: ArrayLike, num: int, threshold: Threshold = None
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


def _subgroup(
    scored: Sequence[Row], column: str, class_names: Sequence[str], threshold: Threshold
) -> dict[str, dict[str, Any]]:
    """Figures of the rows of each value of a column."""
    known = {name for row in scored for name in row.get("columns", {})}
    if column not in known:
        raise KeyError(f"subgroups: no row has the column {column!r}; there are {', '.join(sorted(known)) or 'none'}")
    parts: dict[str, list[Row]] = {}
    for row in scored:
        value = row.get("columns", {}).get(column)
        parts.setdefault("" if value is None else str(value).strip(), []).append(row)
    if len(parts) > MAX_VALUES:
        raise ValueError(
            f"subgroups: wanted a column with {MAX_VALUES} values at most, got {len(parts)} in {column!r} "
            "(put them into groups in the table)"
        )
    return {value: _part(parts[value], class_names, threshold) for value in sorted(parts)}


def _part(rows: Sequence[Row], class_names: Sequence[str], threshold: Threshold) -> dict[str, Any]:
    prob, label = np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])
    table, num = class_table(rows, class_names), len(class_names)
    return {
        "num_scans": len(rows),
        "num_patients": table["num_patients"],
        "classes": {name: own["num_scans"] for name, own in table["classes"].items()},
        "metrics": classification_metrics(prob, label, num, threshold),
        "intervals": metric_intervals(prob, label, _patients(rows), num, threshold).metrics,
    }


def _calibration(prob: NDArray[Any], label: NDArray[Any], temperature: float | None) -> dict[str, Any]:
    before = None
    if temperature is not None:
        first = temper(prob, 1 / temperature, label.ndim == 2)
        figures = classification_metrics(first, label)
        before = {
            **{name: figures[name] for name in ("ece", "brier", "log_loss")},
            "reliability": reliability(first, label),
        }
    return {"temperature": temperature, "reliability": reliability(prob, label), "before": before}


def _decision_curve(prob: NDArray[Any], label: NDArray[Any]) -> dict[str, Any]:
    thresholds = np.arange(1, 100) / 100
    model, everybody = net_benefit(prob, label, thresholds)
    return {"thresholds": thresholds, "model": model, "all": everybody}


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
