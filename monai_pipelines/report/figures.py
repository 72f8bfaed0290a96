"""The pictures of a report: matplotlib figures without pyplot, so nothing global is touched."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

__all__ = ["best_epoch", "confusion_figure", "history_figure", "roc_figure", "slices_figure"]

# Okabe and Ito's colour-blind-safe set, without its yellow
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#6b6b6b"
_PANELS = {"loss": "Loss", "accuracy": "Accuracy", "f1": "F1", "roc_auc": "ROC AUC"}
_MAX_VOLUMES = 8


def confusion_figure(label: ArrayLike, prob: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Confusion matrix: counts, and the share of each true class in percent (also the colour).

    Args:
        label: (N,) true classes, integers in 0..C-1.
        prob: (N, C) probabilities; the highest is the prediction.
        class_names: the C names.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Example:
        >>> confusion_figure([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], ["healthy", "ill"]).axes[0].get_xlabel()
        'Predicted'
    """
    num = len(class_names)
    counts = confusion_matrix(label, np.asarray(prob).argmax(axis=1), labels=range(num))
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.6, 2.2 + 0.8 * num)
    figure = Figure(figsize=(side, side * 0.92), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts):
        share = f"{percent[row, column]:.0f}%" if counts[row].any() else "no scans"
        color = "white" if percent[row, column] > 60 else "black"
        style: dict[str, Any] = {"ha": "center", "color": color}
        axes.text(column, row - 0.03, f"{count}", va="bottom", fontsize=16 if num < 6 else 12, weight="bold", **style)
        axes.text(column, row + 0.05, share, va="top", fontsize=11 if num < 6 else 9, **style)
    slanted = num > 2 and max(map(len, class_names)) > 7
    axes.set_xticks(
        range(num), [_plain(name, width=24 if slanted else 14, lines=1 if slanted else 3) for name in class_names]
    )
    axes.set_yticks(range(num), [_plain(name, width=14, lines=3) for name in class_names])
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
    label: ArrayLike, prob: ArrayLike, class_names: Sequence[str], shortcut_prob: ArrayLike | None = None
) -> Figure:
    """ROC curve of class 1 (two classes) or of every class against the rest, the shortcut's dashed beside.

    A class without a scan, or without a scan of the rest, has no curve; the legend says so.

    Args:
        label: (N,) true classes, integers in 0..C-1.
        prob: (N, C) probabilities.
        class_names: the C names.
        shortcut_prob: (N, C) probabilities of the shortcut baseline on the same scans.

    Returns:
        The figure.

    Example:
        >>> figure = roc_figure([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["healthy", "ill"])
        >>> figure.legends[0].get_texts()[0].get_text()
        'ill: 1.000'
    """
    truth = np.asarray(label)
    classes = [1] if len(class_names) == 2 else range(len(class_names))
    models = [(np.asarray(prob), "-", 2.2)]
    if shortcut_prob is not None:
        models.append((np.asarray(shortcut_prob), "--", 1.6))
    figure = Figure(figsize=(5.2, 5.5 + 0.25 * len(classes)), layout="constrained")
    axes = figure.subplots()
    handles = []
    for k, color in zip(classes, cycle(_COLORS), strict=False):
        positive = truth == k
        aucs = []
        if positive.any() and not positive.all():
            for scores, line, width in models:
                x, y, _ = roc_curve(positive, scores[:, k])
                axes.plot(x, y, line, color=color, linewidth=width, clip_on=False)
                aucs.append(f"{roc_auc_score(positive, scores[:, k]):.3f}")
        text = " / ".join(aucs) or "n/a (one class only)"
        handles.append(
            Line2D([], [], color=color, linewidth=2.2, label=f"{_plain(class_names[k], 34, lines=1)}: {text}")
        )
    axes.plot([0, 1], [0, 1], ":", color=_GREY, linewidth=1)
    axes.text(0.53, 0.51, "chance", color=_GREY, fontsize=10, rotation=45, ha="left", va="top", rotation_mode="anchor")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _tidy(axes, "False positive rate (1 - specificity)", "True positive rate (sensitivity)")
    title = "ROC AUC" if shortcut_prob is None else "ROC AUC: model (solid) / shortcut (dashed)"
    figure.legend(
        handles=handles, loc="outside lower center", title=title, frameon=False, fontsize=11, title_fontsize=11
    )
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
            for part, title, color in (("train", "Training", _COLORS[0]), ("val", "Validation", _COLORS[1])):
                axes.plot(epochs, curves[part, name], color=color, marker=marker, markersize=3, label=title)
        if best is not None:
            axes.axvline(best, color=_GREY, linestyle="--", linewidth=1.2, label=f"Best epoch: {best}")
        if name in _PANELS and name != "loss":
            axes.set_ylim(0, 1.02)
        axes.set_title(_PANELS.get(name, "Learning rate"), fontsize=12)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _tidy(axes, "Epoch", "")
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


def slices_figure(images: Sequence[Any], titles: Sequence[str]) -> Figure:
    """An axial, a coronal and a sagittal slice of each volume, as a radiologist expects them.

    Patient right is on the viewer's left, anterior (axial) and head (coronal, sagittal) up, and the sagittal slice
    faces left. Axial and coronal through the middle, sagittal through the middle of the right half (the midline has no
    lung). First channel, grey from the volume's lowest to its highest value.

    Args:
        images: up to 8 volumes (C, X, Y, Z), RAS: arrays, tensors or MetaTensors, whose ``pixdim`` gives the
            voxels' shape (else cubes).
        titles: one line for each volume.

    Returns:
        The figure.

    Raises:
        ValueError: no volume, more than 8, another shape, or titles that do not match.

    Example:
        >>> len(slices_figure([np.zeros((1, 8, 8, 8))], ["a scan"]).axes)
        3
    """
    if not 1 <= len(images) <= _MAX_VOLUMES or len(images) != len(titles):
        raise ValueError(
            f"slices_figure: wanted 1 to {_MAX_VOLUMES} volumes and a title each, got {len(images)} and {len(titles)}"
        )
    columns = 1 if len(images) < 3 else 2
    rows = math.ceil(len(images) / columns)
    x, y, z = _extent_mm(images[0])
    width, scale = 6.4, 6.4 / (2 * x + y)
    figure = Figure(figsize=(width * columns, (max(y, z) * scale + 0.6) * rows), layout="constrained")
    figure.set_facecolor("white")
    parts = np.ravel(figure.subfigures(rows, columns, squeeze=False))
    for part, image, title in zip(parts, images, titles, strict=False):
        _draw_planes(part, image, title)
    return figure


def _draw_planes(part: SubFigure, image: Any, title: str) -> None:
    x, y, z = _extent_mm(image)
    volume = np.asarray(image)[0]
    low, high = float(volume.min()), float(volume.max())
    i, j, k = 3 * volume.shape[0] // 4, volume.shape[1] // 2, volume.shape[2] // 2
    planes = (
        ("Axial", volume[::-1, ::-1, k], (x, y), ("R", "A")),
        ("Coronal", volume[::-1, j, ::-1], (x, z), ("R", "S")),
        ("Sagittal", volume[i, ::-1, ::-1], (y, z), ("A", "S")),
    )
    part.suptitle(_plain(title, 60), fontsize=12, weight="bold")
    for axes, (name, pixels, (width, height), (left, top)) in zip(
        part.subplots(1, 3, width_ratios=[x, x, y]), planes, strict=True
    ):
        axes.imshow(pixels.T, cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0), interpolation="nearest")
        axes.set_title(name, fontsize=11)
        axes.set_axis_off()
        style: dict[str, Any] = {"color": "white", "fontsize": 11, "weight": "bold", "transform": axes.transAxes}
        outline = [withStroke(linewidth=2, foreground="black")]
        axes.text(0.03, 0.5, left, va="center", ha="left", path_effects=outline, **style)
        axes.text(0.5, 0.97, top, va="top", ha="center", path_effects=outline, **style)


def _extent_mm(image: Any) -> tuple[float, float, float]:
    if len(image.shape) != 4:
        raise ValueError(f"slices_figure: wanted a volume (C, X, Y, Z), got shape {tuple(image.shape)}")
    x, y, z = (float(n * mm) for n, mm in zip(image.shape[1:], getattr(image, "pixdim", (1, 1, 1)), strict=True))
    return x, y, z


def _series(history: Sequence[Mapping[str, Any]], part: str, name: str) -> np.ndarray:
    return np.array([_number((row.get(part) or {}).get(name)) for row in history])


def _number(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _plain(text: str, width: int, lines: int = 2) -> str:
    """Text wrapped and cut to fit, a dollar sign drawn as it stands: it would start matplotlib's formulas."""
    wrapped = textwrap.wrap(text, width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: width - 1] + "\u2026"]
    return "\n".join(wrapped).replace("$", r"\$")


def _tidy(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
