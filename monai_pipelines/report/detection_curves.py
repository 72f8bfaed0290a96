"""The curves of a detector's report: FROC, precision-recall, and sensitivity by lesion size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from monai_pipelines.metrics import Detections, Lesions, detection_precision_recall, froc_curve
from monai_pipelines.metrics.froc import RATES
from monai_pipelines.report.figures import COLORS, GRAY, plain, tidy
from monai_pipelines.report.words import per_unit

_LINES: Any = ("-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_BASELINE: Any = {"linestyle": "--", "linewidth": 1.6}
_X = (1 / 16, 16.0)  # false positives per image that are drawn


def froc_figure(
    found: Sequence[Detections],
    lesions: Sequence[Lesions],
    classes: Sequence[str],
    results: Mapping[str, Any],
    unit: str = "image",
    baseline: Sequence[Detections] | None = None,
) -> Figure:
    """Sensitivity over false positives per image, of each class with lesions, with the operating point marked.

    The seven rates of the CPM carry their intervals, where there is one class.

    Args:
        found, lesions: of each image.
        classes: C class names.
        results: of `monai_pipelines.report.detection_results.detection_results`.
        unit: what an image is called.
        baseline: detections of a simple method, drawn dashed.

    Example:
        >>> from monai_pipelines.report.detection_results import detection_results, plain_row
        >>> found, lesions = Detections([[0, 0, 8, 8]], [0.9]), Lesions([[0, 0, 8, 8]])
        >>> row = plain_row({"image": "a", "found": found, "lesions": lesions})
        >>> results = detection_results([row], ["mass"], [0.5])
        >>> froc_figure([found], [lesions], ["mass"], results).legends[0].get_texts()[0].get_text()
        'mass: CPM 1.000'
    """
    figure = Figure(figsize=(5.6, 4.5 + 0.22 * _legend_rows(len(classes))), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set(xlim=_X, ylim=(0, 1.02))
    axes.xaxis.set_major_locator(FixedLocator(RATES))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}"))
    for k, name in enumerate(classes):
        color, line = COLORS[k % len(COLORS)], _LINES[k // len(COLORS) % len(_LINES)]
        of_class = results["per_class"][name]
        if not of_class["num_lesions"]:
            axes.plot([], [], color=color, linestyle=line, label=f"{plain(name, 24, 1)}: no lesions")
            continue
        label = f"{plain(name, 24, 1)}: CPM {of_class['cpm']:.3f}"
        axes.plot(*_steps(found, lesions, k, len(classes)), color=color, linestyle=line, linewidth=2.2, label=label)
        if len(classes) == 1:
            _draw_intervals(axes, results, color)
        if of_class.get("sensitivity") is not None and results["threshold"] is not None:
            point = max(of_class["false_positives_per_image"], _X[0]), of_class["sensitivity"]
            axes.plot(*point, "o", color=color, markeredgecolor="black", markersize=8, clip_on=False, zorder=5)
    if results["threshold"] is not None:
        axes.plot([], [], "o", color="white", markeredgecolor="black", markersize=8, label="at the threshold")
    if baseline is not None:
        for k in range(len(classes)):
            axes.plot(*_steps(baseline, lesions, k, len(classes)), color=_baseline_color(k, classes), **_BASELINE)
        _label_baseline(axes, results, "cpm", "CPM")
    tidy(axes, f"False positives per {per_unit(unit, len(classes))}", "Sensitivity")
    _add_legend(figure, len(classes))
    return figure


def precision_recall_figure(
    found: Sequence[Detections],
    lesions: Sequence[Lesions],
    classes: Sequence[str],
    results: Mapping[str, Any],
    baseline: Sequence[Detections] | None = None,
) -> Figure:
    """Highest precision at each recall or a higher one, of hits by an IoU of 0.5: the area is AP50.

    Args:
        found, lesions, classes, results, baseline: of :func:`froc_figure`.
    """
    figure = Figure(figsize=(5.6, 4.5 + 0.22 * _legend_rows(len(classes))), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(classes):
        color, line = COLORS[k % len(COLORS)], _LINES[k // len(COLORS) % len(_LINES)]
        of_class = results["per_class"][name]
        if of_class["num_lesions"]:
            label = f"{plain(name, 24, 1)}: AP50 {of_class['ap50']:.3f}"
            x, y = _envelope(found, lesions, k, len(classes))
            axes.plot(x, y, color=color, linestyle=line, linewidth=2.2, label=label, clip_on=False)
        else:
            axes.plot([], [], color=color, linestyle=line, label=f"{plain(name, 24, 1)}: no lesions")
        if baseline is not None and of_class["num_lesions"]:
            x, y = _envelope(baseline, lesions, k, len(classes))
            axes.plot(x, y, color=_baseline_color(k, classes), clip_on=False, **_BASELINE)
    if baseline is not None:
        _label_baseline(axes, results, "ap50", "AP50")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    tidy(axes, "Recall", "Precision")
    _add_legend(figure, len(classes))
    return figure


def size_figure(sizes: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Sensitivity at the threshold for each band of lesion size, with its interval and the numbers.

    Args:
        sizes: ``sizes`` of `monai_pipelines.report.detection_results.detection_results`.

    Example:
        >>> band = {"num_lesions": 4, "num_found": 3, "sensitivity": 0.75, "interval": [0.3, 0.95]}
        >>> [text.get_text() for text in size_figure({"under_6_mm": band}).axes[0].get_xticklabels()]
        ['under 6 mm\\n3 of 4']
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for k, band in enumerate(sizes.values()):
        if band["sensitivity"] is None:
            continue
        axes.bar(k, band["sensitivity"], 0.6, color=COLORS[0], alpha=0.35, edgecolor=COLORS[0])
        if band["interval"]:
            low, high = band["interval"]
            ends = [[max(band["sensitivity"] - low, 0)], [max(high - band["sensitivity"], 0)]]
            axes.errorbar([k], [band["sensitivity"]], ends, fmt="o", color=COLORS[0], capsize=5, linewidth=2)
        else:
            axes.plot(k, band["sensitivity"], "o", color=COLORS[0])
    axes.set_xticks(range(len(sizes)), [f"{band_words(name)}\n{_counted(band)}" for name, band in sizes.items()])
    axes.set(xlim=(-0.6, max(len(sizes), 1) - 0.4), ylim=(0, 1.02))
    tidy(axes, "", "Sensitivity at the threshold")
    axes.grid(axis="x", visible=False)
    return figure


def band_words(name: str) -> str:
    """A band of lesion size.

    Example:
        >>> band_words("6_to_10_mm")
        '6 to 10 mm'
    """
    return name.replace("_", " ")


def _counted(band: Mapping[str, Any]) -> str:
    if not band["num_lesions"]:
        return "no lesions"
    return f"{'?' if band['num_found'] is None else band['num_found']} of {band['num_lesions']}"


def _steps(found: Sequence[Detections], lesions: Sequence[Lesions], label: int, num_classes: int) -> tuple[Any, Any]:
    """Rates and the sensitivity from each on: the highest at that rate."""
    curve = froc_curve(found, lesions, label=label, num_classes=num_classes)
    rate, first = np.unique(curve.false_positives_per_image[::-1], return_index=True)
    sensitivity = curve.sensitivity[::-1][first]
    x = np.append(np.maximum(np.repeat(rate, 2)[1:], 0), _X[1])
    return np.maximum(x, _X[0] / 2), np.repeat(sensitivity, 2)


def _envelope(found: Sequence[Detections], lesions: Sequence[Lesions], label: int, num_classes: int) -> tuple[Any, Any]:
    """The curve as steps, from a recall of 0, down to a precision of 0 where it ends."""
    curve = detection_precision_recall(found, lesions, label=label, num_classes=num_classes)
    recall = np.append(0, np.repeat(curve.recall, 2))
    return recall, np.append(np.repeat(curve.precision, 2), 0)


def _legend_rows(num_classes: int) -> int:
    return num_classes + 2 if num_classes < 5 else num_classes // 2 + 2


def _add_legend(figure: Figure, num_classes: int) -> None:
    """In two columns if there are many classes."""
    figure.legend(loc="outside lower center", ncols=1 if num_classes < 5 else 2, frameon=False, fontsize=10)


def _draw_intervals(axes: Any, results: Mapping[str, Any], color: str) -> None:
    for rate in RATES:
        name = f"sensitivity_at_{rate:g}"
        ends, value = results["intervals"].get(name), results["metrics"][name]
        if ends:
            reach = [[max(value - ends[0], 0)], [max(ends[1] - value, 0)]]
            axes.errorbar([rate], [value], reach, color=color, capsize=3, linewidth=1.2, alpha=0.7)


def _baseline_color(label: int, classes: Sequence[str]) -> str:
    return GRAY if len(classes) == 1 else COLORS[label % len(COLORS)]


def _label_baseline(axes: Any, results: Mapping[str, Any], metric: str, short: str) -> None:
    baseline, num_classes = results["baseline"], len(results["per_class"])
    name = plain(baseline["name"], 40 if num_classes < 5 else 18, 1)
    value = baseline["metrics"][metric]
    number = "n/a" if value is None else f"{value:.3f}"
    mean = "mean " if num_classes > 1 else ""
    axes.plot([], [], color=GRAY, label=f"{name}: {mean}{short} {number}", **_BASELINE)
