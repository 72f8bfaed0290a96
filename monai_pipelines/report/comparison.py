"""The page of two runs side by side."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from monai_pipelines.report.figures import COLORS, tidy
from monai_pipelines.report.page import page_template, png_bytes
from monai_pipelines.report.words import LOWER_IS_BETTER, rule_words, told_metrics

__all__ = [
    "better",
    "differences_figure",
    "figure_names",
    "other_rules",
    "told_interval",
    "told_p",
    "verdict",
    "write_comparison",
]

DECIDE_FIRST = (
    "Every figure is tested by itself: of 20 tests of two equally good models one finds a difference by chance. Decide "
    "before you look which figure counts."
)
_UNBOUNDED = "log_loss"  # on a scale of its own
_GREY = "#6b6b6b"


def write_comparison(file: str | PathLike[str], result: Mapping[str, Any]) -> None:
    """Write the page of a comparison; it holds its picture and needs no network.

    Args:
        file: the page.
        result: what :func:`monai_pipelines.commands.compare.compare_runs` returns.
    """
    names = figure_names(result)
    page = page_template("comparison.html.j2").render(
        names=names,
        verdict=verdict(result),
        decide_first=DECIDE_FIRST,
        picture=base64.b64encode(png_bytes(differences_figure(result), dpi=170)).decode(),
        lower_is_better=LOWER_IS_BETTER,
        interval=told_interval,
        p=told_p,
        rule=rule_words,
        other_rules=other_rules(result),
        **result,
    )
    Path(file).write_text(page, encoding="utf-8")


def figure_names(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name and meaning of each figure that was compared, in the order of reports."""
    told = told_metrics(result["unit"], result["multilabel"])
    return {name: told[name] for name in told if name in result["metrics"]}


def better(name: str, difference: Mapping[str, float]) -> str | None:
    """Which model is better by a figure: "a", "b", or None where the interval of B - A holds 0 or is undefined.

    Example:
        >>> better("roc_auc", {"low": 0.01, "high": 0.2}), better("brier", {"low": 0.01, "high": 0.2})
        ('b', 'a')
    """
    low, high = difference["low"], difference["high"]
    if math.isnan(low) or low <= 0 <= high:
        return None
    return "b" if (low > 0) != (name in LOWER_IS_BETTER) else "a"


def verdict(result: Mapping[str, Any]) -> list[str]:
    """In plain words who is better in what.

    Example:
        >>> figures = {"roc_auc": ("b", 0.01), "f1": (None, -0.02), "brier": (None, 0.0)}
        >>> metrics = {name: {"better": own, "low": low, "high": 0.1} for name, (own, low) in figures.items()}
        >>> verdict({"unit": "image", "multilabel": False, "metrics": metrics})
        ['B is better in ROC AUC.', 'Not told apart in F1; Brier score.']
    """
    texts = {"b": "B is better in", "a": "A is better in", None: "Not told apart in"}
    names, figures = figure_names(result), result["metrics"]
    if {own[edge] for own in figures.values() for edge in ("low", "high")} - {None} == {0}:
        return ["A and B predict the same."]
    lists = {
        text: [names[name][0] for name in names if figures[name]["better"] == own and figures[name]["low"] is not None]
        for own, text in texts.items()
    }
    return [f"{text} {'; '.join(found)}." for text, found in lists.items() if found]


def other_rules(result: Mapping[str, Any]) -> str | None:
    """A warning where the thresholds of the two models were not chosen by the same rule.

    Example:
        >>> a, b = {"threshold": 0.3, "threshold_by": "youden"}, {"threshold": None, "threshold_by": None}
        >>> other_rules({"runs": {"a": a, "b": b}})[:47]
        'The thresholds were chosen by different rules: '
    """
    rules = [
        rule_words(run["threshold_by"]) or ("none, 0.5" if run["threshold"] is None else "none that is known")
        for run in result["runs"].values()
    ]
    if rules[0] == rules[1]:
        return None
    return (
        f"The thresholds were chosen by different rules: A: {rules[0]}; B: {rules[1]}. Figures of what is predicted, "
        "such as sensitivity, may differ for that alone."
    )


def told_interval(own: Mapping[str, float | None]) -> str:
    """The interval of a difference as text, both ends with their sign.

    Example:
        >>> told_interval({"low": -0.01, "high": 0.2})
        '-0.010 to +0.200'
    """
    return "n/a" if own["low"] is None or own["high"] is None else f"{own['low']:+.3f} to {own['high']:+.3f}"


def told_p(p: float | None) -> str:
    """A p value as text.

    Example:
        >>> told_p(0.0004), told_p(0.25)
        ('< 0.001', '0.250')
    """
    return "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def differences_figure(result: Mapping[str, Any]) -> Figure:
    """A point with its interval for each figure: right of the line B is better, left of it A.

    Figures of which the lower is better are turned round; log loss, which has no upper end, is not drawn.

    Args:
        result: what :func:`monai_pipelines.commands.compare.compare_runs` returns.

    Returns:
        The figure.
    """
    names = {name: told[0] for name, told in figure_names(result).items() if name != _UNBOUNDED}
    figure = Figure(figsize=(6.6, 1.3 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        own = result["metrics"][name]
        if own["low"] is None:
            continue
        sign = -1 if name in LOWER_IS_BETTER else 1
        color, marker = {"b": (COLORS[0], "o"), "a": (COLORS[1], "s"), None: (_GREY, "d")}[own["better"]]
        axes.plot([sign * own["low"], sign * own["high"]], [row, row], color=color, linewidth=2.2)
        axes.plot(sign * own["difference"], row, marker, color=color, markersize=7)
    axes.axvline(0, color="black", linewidth=1)
    edge = 1.05 * max((abs(x) for x in axes.dataLim.intervalx), default=0)
    axes.set_xlim(-max(edge, 0.01), max(edge, 0.01))
    axes.set_yticks(
        range(len(names)), [text + (" *" if name in LOWER_IS_BETTER else "") for name, text in names.items()]
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    tidy(axes, "Difference of B and A, 95% interval", "")
    axes.tick_params(axis="y", length=0, labelsize=11)
    axes.grid(axis="y", visible=False)
    axes.set_title("\u2190 A is better", loc="left", fontsize=11, color=COLORS[1])
    axes.set_title("B is better \u2192", loc="right", fontsize=11, color=COLORS[0])
    return figure
