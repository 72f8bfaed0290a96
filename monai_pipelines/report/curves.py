"""The curves of a report: ROC, precision-recall, calibration, decision, risk-coverage and subgroups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from monai_pipelines.metrics import predicted_classes
from monai_pipelines.report.figures import COLORS, GRAY, plain, tidy

_LINES: Any = ("-", "--", "-.", ":")
_FOREST = {"roc_auc": "ROC AUC", "recall": "Sensitivity", "specificity": "Specificity"}


def roc_figure(
    label: ArrayLike,
    prob: ArrayLike,
    classes: Sequence[str],
    shortcut_prob: ArrayLike | None = None,
    threshold: float | Sequence[float] | None = None,
) -> Figure:
    """ROC curve of class 1 (two classes) or of each class against the rest, with the shortcut's curve dashed.

    A class without positive or without negative images has no curve; the legend says so. With more than seven classes
    the shortcut's curves are not drawn, since line styles then distinguish the classes.

    Args:
        label: (N,) true classes, integers in 0..C-1, or (N, C) of 0 and 1 for multi-label.
        prob: (N, C) probabilities.
        classes: C class names.
        shortcut_prob: (N, C) probabilities of the shortcut baseline on the same images.
        threshold: for two classes, or one per label; its point on the curve is marked.

    Example:
        >>> figure = roc_figure([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["healthy", "ill"])
        >>> figure.legends[0].get_texts()[0].get_text()
        'ill: 1.000'
    """
    figure = _class_curves(label, prob, classes, shortcut_prob, threshold)
    axes = figure.axes[0]
    axes.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1)
    axes.text(0.53, 0.51, "chance", color=GRAY, fontsize=10, rotation=45, ha="left", va="top", rotation_mode="anchor")
    return figure


def pr_figure(
    label: ArrayLike,
    prob: ArrayLike,
    classes: Sequence[str],
    shortcut_prob: ArrayLike | None = None,
    threshold: float | Sequence[float] | None = None,
) -> Figure:
    """Precision-recall curve of class 1 (two classes) or of each class against the rest, drawn like :func:`roc_figure`.

    Points are joined by steps, so that the area below them is the average precision given in the legend. For two
    classes a dotted line marks the prevalence of class 1, the precision of guessing.

    Args:
        label, prob, classes, shortcut_prob, threshold: see :func:`roc_figure`.

    Example:
        >>> figure = pr_figure([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]], ["healthy", "ill"])
        >>> figure.legends[0].get_texts()[0].get_text()
        'ill: 0.833'
    """
    return _class_curves(label, prob, classes, shortcut_prob, threshold, precision=True)


def reliability_figure(bins: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] | None = None) -> Figure:
    """Reliability diagram: observed frequency over predicted probability, with counts below.

    Args:
        bins: the non-empty bins, each with ``prob`` (mean predicted), ``observed`` (frequency), ``count``, ``low`` and
            ``high`` (interval of the frequency), from :func:`monai_pipelines.metrics.reliability`.
        before: the same before calibration.

    Example:
        >>> bins = [{"prob": 0.2, "observed": 0.25, "count": 8, "low": 0.07, "high": 0.59}]
        >>> [int(bar.get_height()) for bar in reliability_figure(bins).axes[1].patches]
        [8]
    """
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 1], [0, 1], ":", color=GRAY, linewidth=1, label="perfect")
    if before:
        axes.plot([row["prob"] for row in before], [row["observed"] for row in before], "s--", color=COLORS[1],
                  linewidth=1.4, label="before", clip_on=False)  # fmt: skip
    places, shares, low, high = (np.array([row[key] for row in bins]) for key in ("prob", "observed", "low", "high"))
    ends = np.maximum([shares - low, high - shares], 0)
    label = "calibrated" if before else "observed"
    axes.errorbar(places, shares, ends, fmt="o-", color=COLORS[0], capsize=3, linewidth=2, label=label, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    tidy(axes, "", "Observed frequency")
    below.bar(places, [row["count"] for row in bins], 0.04, color=COLORS[0])
    tidy(below, "Predicted probability", "Count")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    return figure


def decision_figure(
    thresholds: Sequence[float], model: Sequence[float], treat_all: Sequence[float], threshold: float | None = None
) -> Figure:
    """Decision curve: net benefit of acting on the model, on everyone and on no one, over thresholds.

    Args:
        thresholds: (T,) probabilities at which to act.
        model: (T,) net benefit of the model, from :func:`monai_pipelines.metrics.net_benefit`.
        treat_all: (T,) net benefit of acting on everyone.
        threshold: the threshold in use, marked.

    Example:
        >>> decision_figure([0.1, 0.5], [0.3, 0.2], [0.25, -0.1]).axes[0].get_ylabel()
        'Net benefit'

    Reference: Vickers and Elkin, Decision curve analysis, Medical Decision Making, 2006.
    """
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(thresholds, treat_all, "--", color=COLORS[1], linewidth=1.8, label="act on everyone")
    axes.axhline(0, linestyle="-.", color=GRAY, linewidth=1.4, label="act on no one")
    axes.plot(thresholds, model, color=COLORS[0], linewidth=2.4, label="act on the model")
    if threshold is not None:
        axes.axvline(threshold, linestyle=":", color=COLORS[6], linewidth=1.4, label=f"threshold {threshold:.3g}")
    top = max(*model, *treat_all, 0.02)
    axes.set(xlim=(0, 1), ylim=(-0.35 * top, 1.08 * top))
    tidy(axes, "Threshold probability", "Net benefit")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return figure


def risk_coverage_figure(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Risk-coverage curve: error rate of the most certain predictions over their share; the rest is referred.

    Args:
        curves: uncertainty measure -> ``coverage`` (share not referred), ``risk`` (error rate among these) and ``area``
            under the curve.

    Example:
        >>> curve = {"coverage": [0.5, 1.0], "risk": [0.0, 0.25], "area": 0.125}
        >>> risk_coverage_figure({"probability": curve}).legends[0].get_texts()[0].get_text()
        'by probability: area 0.125'
    """
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), color, line in zip(curves.items(), COLORS, _LINES, strict=False):
        label = f"by {name}: area {curve['area']:.3f}"
        axes.plot(curve["coverage"], curve["risk"], line, color=color, linewidth=2.2, label=label)
    overall = next(iter(curves.values()))["risk"][-1]
    axes.axhline(overall, linestyle=":", color=GRAY, linewidth=1.2, label=f"referred at random: {overall:.3f}")
    highest = max(max(curve["risk"]) for curve in curves.values())
    axes.set(xlim=(0, 1), ylim=(0, min(max(1.25 * highest, 0.02), 1)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    tidy(axes, "Predictions kept, most certain first", "Error rate among those kept")
    figure.legend(loc="outside lower center", frameon=False, fontsize=11)
    return figure


def subgroup_figure(groups: Mapping[str, Mapping[str, Any]], overall: Mapping[str, Any]) -> Figure:
    """ROC AUC, sensitivity and specificity of each subgroup with intervals; dashed lines mark those of all images.

    Args:
        groups: value of the column -> ``metrics`` and ``intervals`` (metric -> [low, high]).
        overall: ``metrics`` of all images.

    Example:
        >>> group = {"metrics": {"roc_auc": 0.8, "recall": None, "specificity": 1.0}, "intervals": {}}
        >>> [axes.get_title() for axes in subgroup_figure({"female": group, "male": group}, group).axes]
        ['ROC AUC', 'Sensitivity', 'Specificity']
    """
    figure = Figure(figsize=(5.8, 0.9 + 0.36 * len(groups)), layout=ConstrainedLayoutEngine(wspace=0.08))
    panels = figure.subplots(1, len(_FOREST), sharey=True)
    for axes, (name, title) in zip(panels, _FOREST.items(), strict=True):
        if overall["metrics"][name] is not None:
            axes.axvline(overall["metrics"][name], linestyle="--", color=GRAY, linewidth=1.2)
        for k, group in enumerate(groups.values()):
            if group["metrics"][name] is not None:
                interval = group["intervals"].get(name, ())
                axes.plot(group["metrics"][name], k, "o", color=COLORS[0], markersize=7, clip_on=False)
                axes.plot(interval, [k] * len(interval), color=COLORS[0], linewidth=2, clip_on=False)
        axes.set_title(title, fontsize=12)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        tidy(axes, "", "")
        axes.tick_params(axis="y", length=0, labelsize=11)
    panels[0].set_yticks(range(len(groups)), [plain(value or "not given", 18, lines=1) for value in groups])
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    return figure


def _class_curves(
    label: ArrayLike,
    prob: ArrayLike,
    names: Sequence[str],
    shortcut_prob: ArrayLike | None,
    threshold: float | Sequence[float] | None,
    precision: bool = False,
) -> Figure:
    """ROC curves, or with `precision` precision-recall curves."""
    if precision:
        name, area, style = "Average precision", average_precision_score, "steps-post"
        x_label, y_label = "Recall (sensitivity)", "Precision (positive predictive value)"
    else:
        name, area, style = "ROC AUC", roc_auc_score, "default"
        x_label, y_label = "False positive rate (1 - specificity)", "True positive rate (sensitivity)"
    truth = np.asarray(label)
    multilabel = truth.ndim == 2
    positives = truth.T == 1 if multilabel else truth == np.arange(len(names))[:, None]
    classes = [1] if len(names) == 2 and not multilabel else range(len(names))
    models = [np.asarray(values) for values in (prob, shortcut_prob) if values is not None]
    crowded = len(classes) > len(COLORS)
    drawn = 1 if crowded else len(models)
    below = 0.25 * (len(classes) + (threshold is not None) + precision)
    size = (9.6, max(5.6, 0.5 + below)) if crowded else (5.2, 5.5 + below)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    called = None
    if threshold is not None:
        predicted = predicted_classes(prob, threshold, multilabel)
        called = predicted.T == 1 if multilabel else predicted == np.arange(len(names))[:, None]
    handles = []
    for k in classes:
        color, own_line = COLORS[(k - classes[0]) % len(COLORS)], _LINES[k // len(COLORS) % len(_LINES)]
        areas = []
        if positives[k].any() and not positives[k].all():
            for scores, line, width in zip(models[:drawn], (own_line, "--"), (2.2, 1.6), strict=False):
                x, y, _ = roc_curve(positives[k], scores[:, k])
                if precision:
                    y, x, _ = precision_recall_curve(positives[k], scores[:, k])
                axes.plot(x, y, line, color=color, linewidth=width, drawstyle=style, clip_on=False)
            areas = [f"{area(positives[k], scores[:, k]):.3f}" for scores in models]
            if called is not None:
                point = called[k][~positives[k]].mean(), called[k][positives[k]].mean()
                if precision:
                    point = point[1], positives[k][called[k]].mean() if called[k].any() else math.nan
                axes.plot(*point, "o", color=color, markersize=9, markeredgecolor="white", clip_on=False, zorder=5)
        text = f"{plain(names[k], 34, lines=1)}: {' / '.join(areas) or 'n/a (one class only)'}"
        handles.append(Line2D([], [], color=color, linestyle=own_line, linewidth=2.2, label=text))
    if precision and len(classes) == 1:
        share = positives[1].mean()
        axes.axhline(share, linestyle=":", color=GRAY, linewidth=1)
        handles.append(Line2D([], [], color=GRAY, linestyle=":", label=f"guessing (prevalence): {share:.3f}"))
    if threshold is not None:
        text = f"at the threshold {threshold:.3g}" if np.ndim(threshold) == 0 else "at the threshold of the class"
        handles.append(Line2D([], [], color=GRAY, marker="o", linestyle="", label=text))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="auto" if crowded else "equal")
    tidy(axes, x_label, y_label)
    legend = "model (solid) / shortcut (dashed)" if drawn == 2 else "model (drawn) / shortcut"
    title = name if shortcut_prob is None else f"{name}: {legend}"
    place: Any = "outside right center" if crowded else "outside lower center"
    figure.legend(handles=handles, loc=place, title=title, frameon=False, fontsize=11, title_fontsize=11)
    return figure
