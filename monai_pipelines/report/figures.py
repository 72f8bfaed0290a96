"""Figures of a report, drawn without pyplot and its global state."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix

from monai_pipelines.metrics import predicted_classes
from monai_pipelines.report.words import DETECTION, LOWER_IS_BETTER, METRICS

# Okabe and Ito's colorblind-safe palette, without its yellow
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRAY = "#6b6b6b"
BOX_COLORS = {"lesion": COLORS[4], "detection": COLORS[5], "ignored": COLORS[3]}  # seen on black and on white
_PANELS = ("loss", "accuracy", "f1", "roc_auc", "cpm", "ap50")


def confusion_figure(
    label: ArrayLike, prob: ArrayLike, classes: Sequence[str], threshold: float | None = None
) -> Figure:
    """Confusion matrix: counts, and percent of each true class (also shown by color).

    Args:
        label: (N,) true classes, integers in 0..C-1.
        prob: (N, C) probabilities.
        classes: C class names.
        threshold: see :func:`monai_pipelines.metrics.predicted_classes`.

    Example:
        >>> confusion_figure([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], ["healthy", "ill"]).axes[0].get_xlabel()
        'Predicted'
    """
    num = len(classes)
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
    slanted = num > 2 and max(map(len, classes)) > 7
    axes.set_xticks(
        range(num), [plain(name, width=26 if slanted else 14, lines=2 if slanted else 3) for name in classes]
    )
    axes.set_yticks(range(num), [plain(name, width=14, lines=3) for name in classes])
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


def class_figure(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Number of images of each class: a panel of bars for each split, all on one scale.

    Args:
        counts: split -> class name -> number of images.

    Example:
        >>> figure = class_figure({"train": {"healthy": 90, "ill": 10}, "test": {"healthy": 20, "ill": 5}})
        >>> [[int(bar.get_width()) for bar in axes.patches] for axes in figure.axes]
        [[90, 10], [20, 5]]
    """
    classes = list(next(iter(counts.values())))
    figure = Figure(figsize=(5.8, 0.6 + 0.34 * len(classes)), layout="constrained")
    most = max(1, *(num for sizes in counts.values() for num in sizes.values()))
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (split, sizes) in zip(panels, counts.items(), strict=True):
        bars = axes.barh(range(len(classes)), [sizes[name] for name in classes], 0.72, color=COLORS[0])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=10)
        axes.set_title(split.capitalize(), fontsize=12)
        axes.set(xlim=(0, 1.45 * most), xticks=[])
        axes.tick_params(axis="y", length=0, labelsize=11)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    panels[0].set_yticks(range(len(classes)), [plain(name, 20) for name in classes])
    panels[0].set_ylim(len(classes) - 0.5, -0.5)
    return figure


def history_figure(history: Sequence[Mapping[str, Any]], key_metric: str = "roc_auc") -> Figure:
    """Training history: a panel each for the loss, the usual metrics and the key metric, of training and validation.

    Args:
        history: one dict per epoch, as `monai_pipelines.runs.RunFolder.history` has it:
            ``{"epoch": 1, "lr": 1e-3, "train": {"loss": 0.7, ...}, "val": {...}}``. Missing values are not drawn;
            ``lr``, if present, has a panel.
        key_metric: the validation metric whose best epoch is marked.

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
    names = dict.fromkeys((*_PANELS, key_metric))
    curves = {(part, name): _series(history, part, name) for part in ("train", "val") for name in names}
    panels = [name for name in names if np.isfinite([curves["train", name], curves["val", name]]).any()]
    rate = _finite([row.get("lr") for row in history])
    if np.isfinite(rate).any():
        panels.append("lr")
    grid: list[Any] = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    grid = [row * 2 if len(row) == 1 else row for row in grid]
    figure = Figure(figsize=(5.8, 0.5 + 2.3 * len(grid)), layout="constrained")
    mosaic = figure.subplot_mosaic(grid)
    best = best_epoch(history, key_metric)
    marker = "o" if len(epochs) <= 30 else ""
    titles = {
        "loss": "Loss",
        "lr": "Learning rate",
        **{name: short for name, (short, _) in {**METRICS, **DETECTION}.items()},
    }
    for name, axes in mosaic.items():
        if name == "lr":
            axes.plot(epochs, rate, color=GRAY, marker=marker, markersize=3)
            axes.set_yscale("log")
        else:
            for part, title, color in (("train", "Training", COLORS[0]), ("val", "Validation", COLORS[1])):
                axes.plot(epochs, curves[part, name], color=color, marker=marker, markersize=3, label=title)
        if best is not None:
            axes.axvline(best, color=GRAY, linestyle="--", linewidth=1.2, label=f"Best epoch: {best}")
        if name == "loss" and _spans_decades(np.concatenate([curves["train", name], curves["val", name]])):
            axes.set_yscale("log")
            axes.yaxis.set(
                major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter()
            )
        if name != "lr" and name not in LOWER_IS_BETTER:
            axes.set_ylim(0 if axes.dataLim.y0 >= 0 else None, 1.02)
        axes.set_title(titles.get(name, name), fontsize=12)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        tidy(axes, "Epoch", "")
    handles, labels = mosaic[panels[0]].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=11)
    return figure


def best_epoch(history: Sequence[Mapping[str, Any]], key_metric: str = "roc_auc") -> int | None:
    """Epoch with the best finite validation metric (highest, or lowest for a loss or error), or None.

    Ties go to the lowest loss, then the first epoch: the one whose weights are saved.

    Example:
        >>> best_epoch([{"epoch": 1, "val": {"f1": 0.7}}, {"epoch": 2, "val": {"f1": float("nan")}}], "f1")
        1
    """
    values = _series(history, "val", key_metric)
    if not np.isfinite(values).any():
        return None
    cost = np.nan_to_num(values if key_metric in LOWER_IS_BETTER else -values, nan=np.inf)
    loss = np.nan_to_num(_series(history, "val", "loss"), nan=np.inf)
    return int(history[int(np.lexsort((loss, cost))[0])]["epoch"])


def _spans_decades(values: np.ndarray) -> bool:
    """Whether a few values far above the others would flatten them on a linear axis."""
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and finite.min() > 0 and finite.max() > 5 * np.median(finite)


def _series(history: Sequence[Mapping[str, Any]], part: str, name: str) -> np.ndarray:
    return _finite([(row.get(part) or {}).get(name) for row in history])


def _finite(values: Sequence[float | None]) -> np.ndarray:
    """None and infinite ones as NaN."""
    numbers = np.array(values, dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def plain(text: str, width: int, lines: int = 2) -> str:
    """Wrap and truncate text for matplotlib; dollar signs are escaped, they would start a formula."""
    wrapped = textwrap.wrap(text, width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: width - 1] + "\u2026"]
    return "\n".join(wrapped).replace("$", r"\$")


def tidy(axes: Axes, x_label: str, y_label: str) -> None:
    """Set labels and a pale grid; no spines at the top and right."""
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png_bytes(figure: Figure, dpi: int) -> bytes:
    """A figure as a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
