"""The charts of a report: matplotlib figures without pyplot, so nothing global is touched."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from monai_pipelines.metrics import predicted_classes

__all__ = ["best_epoch", "class_figure", "confusion_figure", "history_figure", "roc_figure"]

# Okabe and Ito's colour-blind-safe set, without its yellow
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES: Any = ("-", "--", "-.", ":")
_GREY = "#6b6b6b"
_PANELS = {"loss": "Loss", "accuracy": "Accuracy", "f1": "F1", "roc_auc": "ROC AUC"}


def confusion_figure(
    label: ArrayLike, prob: ArrayLike, class_names: Sequence[str], threshold: float | None = None
) -> Figure:
    """Confusion matrix: counts, and the share of each true class in percent (also the colour).

    Args:
        label: (N,) true classes, integers in 0..C-1.
        prob: (N, C) probabilities.
        class_names: the C names.
        threshold: of :func:`monai_pipelines.metrics.predicted_classes`.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Example:
        >>> confusion_figure([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], ["healthy", "ill"]).axes[0].get_xlabel()
        'Predicted'
    """
    num = len(class_names)
    counts = confusion_matrix(label, predicted_classes(prob, threshold), labels=range(num))
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.6, 2.2 + (0.8 if num < 6 else 0.66) * num)
    figure = Figure(figsize=(side, side * 0.92), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts):
        share = f"{percent[row, column]:.0f}%" if counts[row].any() else "none"
        color = "white" if percent[row, column] > 60 else "black" if count or num < 6 else "#9aa3ad"
        style: dict[str, Any] = {"ha": "center", "color": color}
        axes.text(column, row - 0.03, f"{count}", va="bottom", fontsize=16 if num < 6 else 12, weight="bold", **style)
        axes.text(column, row + 0.05, share, va="top", fontsize=11 if num < 6 else 9, **style)
    slanted = num > 2 and max(map(len, class_names)) > 7
    axes.set_xticks(
        range(num), [plain(name, width=24 if slanted else 14, lines=1 if slanted else 3) for name in class_names]
    )
    axes.set_yticks(range(num), [plain(name, width=14, lines=3) for name in class_names])
    if slanted:
        for tick in axes.get_xticklabels():
            tick.set(rotation=45, ha="right", rotation_mode="anchor")
    edges = np.arange(num + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="#c9d1d9", linewidth=0.8)
    axes.tick_params(which="both", length=0, labelsize=11)
    axes.set_xlabel("Predicted", fontsize=12)
    axes.set_ylabel("True", fontsize=12)
    axes.spines[:].set_visible(False)
    return figure


def roc_figure(
    label: ArrayLike,
    prob: ArrayLike,
    class_names: Sequence[str],
    shortcut_prob: ArrayLike | None = None,
    threshold: float | None = None,
) -> Figure:
    """ROC curve of class 1 (two classes) or of every class against the rest, the shortcut's dashed beside.

    A class without an image, or without an image of the rest, has no curve; the legend says so. Of more than seven
    classes the shortcut's curves are not drawn: styles of line tell the classes apart.

    Args:
        label: (N,) true classes, integers in 0..C-1, or (N, C) of 0 and 1 for several labels each.
        prob: (N, C) probabilities.
        class_names: the C names.
        shortcut_prob: (N, C) probabilities of the shortcut baseline on the same images.
        threshold: of two classes; its point on the curve is marked.

    Returns:
        The figure.

    Example:
        >>> figure = roc_figure([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["healthy", "ill"])
        >>> figure.legends[0].get_texts()[0].get_text()
        'ill: 1.000'
    """
    truth = np.asarray(label)
    positives = truth.T == 1 if truth.ndim == 2 else truth == np.arange(len(class_names))[:, None]
    classes = [1] if len(class_names) == 2 and truth.ndim == 1 else range(len(class_names))
    models = [np.asarray(values) for values in (prob, shortcut_prob) if values is not None]
    drawn = 1 if len(classes) > len(COLORS) else len(models)
    beside = len(classes) > len(COLORS)
    below = 0.25 * (len(classes) + (threshold is not None))
    size = (9.6, max(5.6, 0.5 + below)) if beside else (5.2, 5.5 + below)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    handles = []
    for k in classes:
        color, line = COLORS[(k - classes[0]) % len(COLORS)], _LINES[k // len(COLORS) % len(_LINES)]
        aucs = []
        if positives[k].any() and not positives[k].all():
            for scores, own, width in zip(models[:drawn], (line, "--"), (2.2, 1.6), strict=False):
                x, y, _ = roc_curve(positives[k], scores[:, k])
                axes.plot(x, y, own, color=color, linewidth=width, clip_on=False)
            aucs = [f"{roc_auc_score(positives[k], scores[:, k]):.3f}" for scores in models]
            if threshold is not None:
                called = predicted_classes(prob, threshold) == k
                point = called[~positives[k]].mean(), called[positives[k]].mean()
                axes.plot(*point, "o", color=color, markersize=9, markeredgecolor="white", clip_on=False, zorder=5)
        text = " / ".join(aucs) or "n/a (one class only)"
        name = plain(class_names[k], 34, lines=1)
        handles.append(Line2D([], [], color=color, linestyle=line, linewidth=2.2, label=f"{name}: {text}"))
    if threshold is not None:
        handles.append(Line2D([], [], color=_GREY, marker="o", linestyle="", label=f"at the threshold {threshold:.3g}"))
    axes.plot([0, 1], [0, 1], ":", color=_GREY, linewidth=1)
    axes.text(0.53, 0.51, "chance", color=_GREY, fontsize=10, rotation=45, ha="left", va="top", rotation_mode="anchor")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="auto" if beside else "equal")
    tidy(axes, "False positive rate (1 - specificity)", "True positive rate (sensitivity)")
    models_named = "model (solid) / shortcut (dashed)" if drawn == 2 else "model (drawn) / shortcut"
    title = "ROC AUC" if shortcut_prob is None else f"ROC AUC: {models_named}"
    place: Any = "outside right center" if beside else "outside lower center"
    figure.legend(handles=handles, loc=place, title=title, frameon=False, fontsize=11, title_fontsize=11)
    return figure


def class_figure(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """How many images of each class there are, a panel of bars for each split, each with its own scale.

    Args:
        counts: split -> class name -> number of images.

    Returns:
        The figure.

    Example:
        >>> figure = class_figure({"train": {"healthy": 90, "ill": 10}, "test": {"healthy": 20, "ill": 5}})
        >>> [[int(bar.get_width()) for bar in axes.patches] for axes in figure.axes]
        [[90, 10], [20, 5]]
    """
    class_names = list(next(iter(counts.values())))
    figure = Figure(figsize=(6.6, 0.6 + 0.34 * len(class_names)), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (split, own) in zip(panels, counts.items(), strict=True):
        bars = axes.barh(range(len(class_names)), [own[name] for name in class_names], 0.72, color=COLORS[0])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=10)
        axes.set_title(split.capitalize(), fontsize=12)
        axes.set(xlim=(0, 1.45 * max(1, *own.values())), xticks=[])
        axes.tick_params(axis="y", length=0, labelsize=11)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    panels[0].set_yticks(range(len(class_names)), [plain(name, 24) for name in class_names])
    panels[0].set_ylim(len(class_names) - 0.5, -0.5)
    return figure


def history_figure(history: Sequence[Mapping[str, Any]], key_metric: str = "roc_auc") -> Figure:
    """Training history: loss, accuracy, F1 and ROC AUC, training and validation in one panel each.

    Args:
        history: one dict per epoch, as :func:`monai_pipelines.report.read_history` gives it:
            ``{"epoch": 1, "lr": 1e-3, "train": {"loss": 0.7, ...}, "val": {...}}``. What is missing is not drawn;
            ``lr`` gets a panel where it is there.
        key_metric: the validation figure whose best epoch is marked.

    Returns:
        The figure.

    Raises:
        ValueError: no epoch.

    Example:
        >>> history = [{"epoch": e, "train": {"loss": 1 / e}, "val": {"loss": 2 / e, "roc_auc": 0.5}} for e in (1, 2)]
        >>> [axes.get_title() for axes in history_figure(history).axes]
        ['Loss', 'ROC AUC']
    """
    if not history:
        raise ValueError("history_figure: wanted at least one epoch, got none")
    epochs = [row["epoch"] for row in history]
    curves = {(part, name): _series(history, part, name) for part in ("train", "val") for name in _PANELS}
    panels = [name for name in _PANELS if np.isfinite([curves["train", name], curves["val", name]]).any()]
    rate = np.array([_number(row.get("lr")) for row in history])
    if np.isfinite(rate).any():
        panels.append("lr")
    grid: list[Any] = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    grid = [row * 2 if len(row) == 1 else row for row in grid]
    figure = Figure(figsize=(6.6, 0.5 + 2.5 * len(grid)), layout="constrained")
    mosaic = figure.subplot_mosaic(grid)
    best = best_epoch(history, key_metric)
    marker = "o" if len(epochs) <= 30 else ""
    for name, axes in mosaic.items():
        if name == "lr":
            axes.plot(epochs, rate, color=_GREY, marker=marker, markersize=3)
            axes.set_yscale("log")
        else:
            for part, title, color in (("train", "Training", COLORS[0]), ("val", "Validation", COLORS[1])):
                axes.plot(epochs, curves[part, name], color=color, marker=marker, markersize=3, label=title)
        if best is not None:
            axes.axvline(best, color=_GREY, linestyle="--", linewidth=1.2, label=f"Best epoch: {best}")
        if name in _PANELS and name != "loss":
            axes.set_ylim(0, 1.02)
        axes.set_title(_PANELS.get(name, "Learning rate"), fontsize=12)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        tidy(axes, "Epoch", "")
    handles, titles = mosaic[panels[0]].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside upper center", ncols=3, frameon=False, fontsize=11)
    return figure


def best_epoch(history: Sequence[Mapping[str, Any]], key_metric: str = "roc_auc") -> int | None:
    """Epoch with the best finite validation figure: the highest, or the lowest ``loss``; None if there is none.

    Among equals the one of lowest loss, then the first: the epoch whose weights are kept.

    Example:
        >>> best_epoch([{"epoch": 1, "val": {"f1": 0.7}}, {"epoch": 2, "val": {"f1": float("nan")}}], "f1")
        1
    """
    values = _series(history, "val", key_metric)
    if not np.isfinite(values).any():
        return None
    cost = np.nan_to_num(values if key_metric == "loss" else -values, nan=np.inf)
    loss = np.nan_to_num(_series(history, "val", "loss"), nan=np.inf)
    return int(history[int(np.lexsort((loss, cost))[0])]["epoch"])


def _series(history: Sequence[Mapping[str, Any]], part: str, name: str) -> np.ndarray:
    return np.array([_number((row.get(part) or {}).get(name)) for row in history])


def _number(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan


def plain(text: str, width: int, lines: int = 2) -> str:
    """Text wrapped and cut to fit, a dollar sign drawn as it stands: it would start matplotlib's formulas."""
    wrapped = textwrap.wrap(text, width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: width - 1] + "\u2026"]
    return "\n".join(wrapped).replace("$", r"\$")


def tidy(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels, a pale grid, no frame on top and on the right."""
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
