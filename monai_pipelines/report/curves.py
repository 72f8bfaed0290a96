"""The curves of a report: what a threshold costs, how far probabilities hold, what is left when doubts are referred."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from monai_pipelines.metrics import predicted_classes
from monai_pipelines.report.figures import COLORS, GREY, plain, tidy

__all__ = [
    "decision_figure",
    "pr_figure",
    "reliability_figure",
    "risk_coverage_figure",
    "roc_figure",
    "subgroup_figure",
]

_LINES: Any = ("-", "--", "-.", ":")
_FOREST = {"roc_auc": "ROC AUC", "recall": "Sensitivity", "specificity": "Specificity"}


class _Kind(NamedTuple):
    """What a curve over all thresholds shows."""

    name: str
    x_label: str
    y_label: str
    style: Any
    curve: Callable[[NDArray[np.bool_], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
    area: Callable[[NDArray[np.bool_], NDArray[Any]], float]
    point: Callable[[NDArray[np.bool_], NDArray[np.bool_]], tuple[float, float]]


def roc_figure(
    label: ArrayLike,
    prob: ArrayLike,
    class_names: Sequence[str],
    shortcut_prob: ArrayLike | None = None,
    threshold: float | Sequence[float] | None = None,
) -> Figure:
    """ROC curve of class 1 (two classes) or of every class against the rest, the shortcut's dashed beside.

    A class without an image, or without an image of the rest, has no curve; the legend says so. Of more than seven
    classes the shortcut's curves are not drawn: styles of line tell the classes apart.

    Args:
        label: (N,) true classes, integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        prob: (N, C) probabilities.
        class_names: the C names.
        shortcut_prob: (N, C) probabilities of the shortcut baseline on the same images.
        threshold: of two classes, or one for each of several labels; its point on the curve is marked.

    Returns:
        The figure.

    Example:
        >>> figure = roc_figure([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["healthy", "ill"])
        >>> figure.legends[0].get_texts()[0].get_text()
        'ill: 1.000'
    """
    figure = _class_curves(_ROC, label, prob, class_names, shortcut_prob, threshold)
    axes = figure.axes[0]
    axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
    axes.text(0.53, 0.51, "chance", color=GREY, fontsize=10, rotation=45, ha="left", va="top", rotation_mode="anchor")
    return figure


def pr_figure(
    label: ArrayLike,
    prob: ArrayLike,
    class_names: Sequence[str],
    shortcut_prob: ArrayLike | None = None,
    threshold: float | Sequence[float] | None = None,
) -> Figure:
    """Precision-recall curve of class 1 (two classes) or of every class against the rest, else as :func:`roc_figure`.

    Steps, not straight lines, join the points: average precision, in the legend, is the area below them. Of two
    classes a dotted line marks the share of class 1, the precision of guessing.

    Args:
        label: (N,) true classes, integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        prob: (N, C) probabilities.
        class_names: the C names.
        shortcut_prob: (N, C) probabilities of the shortcut baseline on the same images.
        threshold: of two classes, or one for each of several labels; its point on the curve is marked.

    Returns:
        The figure.

    Example:
        >>> figure = pr_figure([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]], ["healthy", "ill"])
        >>> figure.legends[0].get_texts()[0].get_text()
        'ill: 0.833'
    """
    return _class_curves(_PR, label, prob, class_names, shortcut_prob, threshold)


def reliability_figure(bins: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] | None = None) -> Figure:
    """How often what is called 70% likely is true: the observed share over the predicted one, counts below.

    Args:
        bins: not empty ones, each with ``prob`` (mean predicted), ``observed`` (share), ``count``, ``low`` and ``high``
            (interval of the share), as :func:`monai_pipelines.metrics.reliability` gives them.
        before: the same for the probabilities before they were calibrated.

    Returns:
        The figure.

    Example:
        >>> bins = [{"prob": 0.2, "observed": 0.25, "count": 8, "low": 0.07, "high": 0.59}]
        >>> [int(bar.get_height()) for bar in reliability_figure(bins).axes[1].patches]
        [8]
    """
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="perfect")
    if before:
        axes.plot([row["prob"] for row in before], [row["observed"] for row in before], "s--", color=COLORS[1],
                  linewidth=1.4, label="before", clip_on=False)  # fmt: skip
    places, shares, low, high = (np.array([row[key] for row in bins]) for key in ("prob", "observed", "low", "high"))
    ends = np.maximum([shares - low, high - shares], 0)
    label = "calibrated" if before else "observed"
    axes.errorbar(places, shares, ends, fmt="o-", color=COLORS[0], capsize=3, linewidth=2, label=label, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    tidy(axes, "", "Share that is true")
    below.bar(places, [row["count"] for row in bins], 0.04, color=COLORS[0])
    tidy(below, "Predicted probability", "Count")
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    return figure


def decision_figure(
    thresholds: Sequence[float], model: Sequence[float], treat_all: Sequence[float], threshold: float | None = None
) -> Figure:
    """Decision curve: the net benefit of acting on the model, on everyone and on no one, over thresholds.

    Args:
        thresholds: (T,) probabilities from which one would act.
        model: (T,) net benefit of the model, as :func:`monai_pipelines.metrics.net_benefit` gives it.
        treat_all: (T,) that of acting on everyone.
        threshold: the one that is used, marked.

    Returns:
        The figure.

    Example:
        >>> decision_figure([0.1, 0.5], [0.3, 0.2], [0.25, -0.1]).axes[0].get_ylabel()
        'Net benefit'

    Reference: Vickers and Elkin, Decision curve analysis, Medical Decision Making, 2006.
    """
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(thresholds, treat_all, "--", color=COLORS[1], linewidth=1.8, label="act on everyone")
    axes.axhline(0, linestyle="-.", color=GREY, linewidth=1.4, label="act on no one")
    axes.plot(thresholds, model, color=COLORS[0], linewidth=2.4, label="act on the model")
    if threshold is not None:
        axes.axvline(threshold, linestyle=":", color=COLORS[6], linewidth=1.4, label=f"threshold {threshold:.3g}")
    top = max(*model, *treat_all, 0.02)
    axes.set(xlim=(0, 1), ylim=(-0.35 * top, 1.08 * top))
    tidy(axes, "Probability from which one would act", "Net benefit")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return figure


def risk_coverage_figure(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Share of wrong answers among the most certain ones, over how many are answered: the rest goes to a person.

    Args:
        curves: what doubt is measured by -> ``coverage`` (share answered), ``risk`` (share of wrong ones among them)
            and ``area`` below the curve.

    Returns:
        The figure.

    Example:
        >>> curve = {"coverage": [0.5, 1.0], "risk": [0.0, 0.25], "area": 0.125}
        >>> risk_coverage_figure({"probability": curve}).legends[0].get_texts()[0].get_text()
        'by probability: area 0.125'
    """
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, own), color, line in zip(curves.items(), COLORS, _LINES, strict=False):
        axes.plot(
            own["coverage"], own["risk"], line, color=color, linewidth=2.2, label=f"by {name}: area {own['area']:.3f}"
        )
    everyone = next(iter(curves.values()))["risk"][-1]
    axes.axhline(everyone, linestyle=":", color=GREY, linewidth=1.2, label=f"referred by chance: {everyone:.3f}")
    highest = max(max(own["risk"]) for own in curves.values())
    axes.set(xlim=(0, 1), ylim=(0, min(max(1.25 * highest, 0.02), 1)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    tidy(axes, "Answered by the model, the most certain first", "Wrong among the answered")
    figure.legend(loc="outside lower center", frameon=False, fontsize=11)
    return figure


def subgroup_figure(groups: Mapping[str, Mapping[str, Any]], everyone: Mapping[str, Any]) -> Figure:
    """ROC AUC, sensitivity and specificity of each subgroup with their intervals, the figures of all dashed behind.

    Args:
        groups: value of the column -> ``metrics`` and ``intervals`` (figure -> [low, high]).
        everyone: ``metrics`` of all.

    Returns:
        The figure.

    Example:
        >>> own = {"metrics": {"roc_auc": 0.8, "recall": None, "specificity": 1.0}, "intervals": {}}
        >>> [axes.get_title() for axes in subgroup_figure({"female": own, "male": own}, own).axes]
        ['ROC AUC', 'Sensitivity', 'Specificity']
    """
    figure = Figure(figsize=(5.8, 0.9 + 0.36 * len(groups)), layout=ConstrainedLayoutEngine(wspace=0.08))
    panels = figure.subplots(1, len(_FOREST), sharey=True)
    for axes, (name, title) in zip(panels, _FOREST.items(), strict=True):
        if everyone["metrics"][name] is not None:
            axes.axvline(everyone["metrics"][name], linestyle="--", color=GREY, linewidth=1.2)
        for k, own in enumerate(groups.values()):
            if own["metrics"][name] is not None:
                axes.plot(own["metrics"][name], k, "o", color=COLORS[0], markersize=7, clip_on=False)
                axes.plot(own["intervals"].get(name, ()), [k] * len(own["intervals"].get(name, ())), color=COLORS[0],
                          linewidth=2, clip_on=False)  # fmt: skip
        axes.set_title(title, fontsize=12)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        tidy(axes, "", "")
        axes.tick_params(axis="y", length=0, labelsize=11)
    panels[0].set_yticks(range(len(groups)), [plain(value or "not given", 18, lines=1) for value in groups])
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    return figure


def _class_curves(
    kind: _Kind,
    label: ArrayLike,
    prob: ArrayLike,
    class_names: Sequence[str],
    shortcut_prob: ArrayLike | None,
    threshold: float | Sequence[float] | None,
) -> Figure:
    truth = np.asarray(label)
    multilabel = truth.ndim == 2
    positives = truth.T == 1 if multilabel else truth == np.arange(len(class_names))[:, None]
    classes = [1] if len(class_names) == 2 and not multilabel else range(len(class_names))
    models = [np.asarray(values) for values in (prob, shortcut_prob) if values is not None]
    beside = len(classes) > len(COLORS)
    drawn = 1 if beside else len(models)
    below = 0.25 * (len(classes) + (threshold is not None) + (kind is _PR))
    size = (9.6, max(5.6, 0.5 + below)) if beside else (5.2, 5.5 + below)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    called = None
    if threshold is not None:
        predicted = predicted_classes(prob, threshold, multilabel)
        called = predicted.T == 1 if multilabel else predicted == np.arange(len(class_names))[:, None]
    handles = []
    for k in classes:
        color, line = COLORS[(k - classes[0]) % len(COLORS)], _LINES[k // len(COLORS) % len(_LINES)]
        areas = []
        if positives[k].any() and not positives[k].all():
            for scores, own, width in zip(models[:drawn], (line, "--"), (2.2, 1.6), strict=False):
                x, y = kind.curve(positives[k], scores[:, k])
                axes.plot(x, y, own, color=color, linewidth=width, drawstyle=kind.style, clip_on=False)
            areas = [f"{kind.area(positives[k], scores[:, k]):.3f}" for scores in models]
            if called is not None:
                point = kind.point(positives[k], called[k])
                axes.plot(*point, "o", color=color, markersize=9, markeredgecolor="white", clip_on=False, zorder=5)
        text = " / ".join(areas) or "n/a (one class only)"
        name = plain(class_names[k], 34, lines=1)
        handles.append(Line2D([], [], color=color, linestyle=line, linewidth=2.2, label=f"{name}: {text}"))
    if kind is _PR and len(classes) == 1:
        share = positives[1].mean()
        axes.axhline(share, linestyle=":", color=GREY, linewidth=1)
        handles.append(Line2D([], [], color=GREY, linestyle=":", label=f"guessing, the class's share: {share:.3f}"))
    if threshold is not None:
        told = f"at the threshold {threshold:.3g}" if np.ndim(threshold) == 0 else "at the class's threshold"
        handles.append(Line2D([], [], color=GREY, marker="o", linestyle="", label=told))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="auto" if beside else "equal")
    tidy(axes, kind.x_label, kind.y_label)
    models_named = "model (solid) / shortcut (dashed)" if drawn == 2 else "model (drawn) / shortcut"
    title = kind.name if shortcut_prob is None else f"{kind.name}: {models_named}"
    place: Any = "outside right center" if beside else "outside lower center"
    figure.legend(handles=handles, loc=place, title=title, frameon=False, fontsize=11, title_fontsize=11)
    return figure


def _roc(positive: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    x, y, _ = roc_curve(positive, scores)
    return x, y


def _pr(positive: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return recall, precision


def _rates(positive: NDArray[np.bool_], called: NDArray[np.bool_]) -> tuple[float, float]:
    return float(called[~positive].mean()), float(called[positive].mean())


def _recall_precision(positive: NDArray[np.bool_], called: NDArray[np.bool_]) -> tuple[float, float]:
    return float(called[positive].mean()), float(positive[called].mean()) if called.any() else math.nan


_ROC = _Kind("ROC AUC", "False positive rate (1 - specificity)", "True positive rate (sensitivity)", "default",
             _roc, roc_auc_score, _rates)  # fmt: skip
_PR = _Kind("Average precision", "Recall (sensitivity)", "Precision (positive predictive value)", "steps-post",
            _pr, average_precision_score, _recall_precision)  # fmt: skip
