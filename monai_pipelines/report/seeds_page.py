"""The page of several seeds."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from monai_pipelines.report.figures import COLORS, tidy
from monai_pipelines.report.page import DPI, page_template, png_bytes
from monai_pipelines.report.words import LOWER_IS_BETTER, told_metrics

__all__ = ["seeds_figure", "write_page"]

_KEY = ("roc_auc", "balanced_accuracy", "recall", "specificity")


def write_page(file: str | PathLike[str], title: str, unit: str, result: Mapping[str, Any]) -> None:
    """Write the page of several seeds; it holds its pictures, needs no network, and links to the page of each seed.

    Args:
        file: the page.
        title: headline.
        unit: what the page calls an input: image, scan or slide.
        result: ``command`` and what :func:`monai_pipelines.report.seeds.summarize_seeds` returns.
    """
    told = told_metrics(unit, multilabel=False)
    names = {name: told[name] for name in told if name in result["summary"]["metrics"]}
    drawn = {name: short for name, (short, _) in names.items() if name not in LOWER_IS_BETTER}
    picture = png_bytes(seeds_figure(result, drawn), DPI)
    page = page_template("seeds.html.j2").render(
        title=title,
        unit=unit,
        names=names,
        key=_KEY,
        picture=base64.b64encode(picture).decode(),
        **_against_shortcut(result["seeds"]),
        **result,
    )
    Path(file).write_text(page, encoding="utf-8")


def seeds_figure(result: Mapping[str, Any], names: Mapping[str, str]) -> Figure:
    """A dot for each seed in a row for each figure, a line at their mean, the shortcut's below.

    Args:
        result: what :func:`monai_pipelines.report.seeds.summarize_seeds` returns.
        names: figure -> what the row is called, in order.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(6.6, 1.0 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    drawn = [("metrics", "model", COLORS[0], 0.0)]
    if result["summary"]["shortcut"]:
        drawn = [("metrics", "model", COLORS[0], -0.16), ("shortcut", "shortcut", COLORS[1], 0.16)]
    for part, label, color, shift in drawn:
        for k, name in enumerate(names):
            known = [row[part][name] for row in result["seeds"] if row[part] and row[part][name] is not None]
            place = np.full(len(known), k + shift)
            axes.scatter(known, place, 34, color, alpha=0.55, linewidths=0, clip_on=False, label=None if k else label)
            if known:
                axes.plot(
                    [np.mean(known)] * 2, k + shift + np.array([-0.15, 0.15]), color=color, linewidth=2, clip_on=False
                )
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(right=1)
    tidy(axes, "", "")
    axes.tick_params(axis="y", length=0, labelsize=11)
    axes.grid(axis="y", visible=False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=11)
    return figure


def _against_shortcut(seeds: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """In how many seeds the model can be compared with its shortcut, and in how many it is better."""
    pairs = [(row["metrics"]["roc_auc"], row["shortcut"]["roc_auc"]) for row in seeds if row["shortcut"]]
    known = [own > theirs for own, theirs in pairs if None not in (own, theirs)]
    return {"compared": len(known), "better": sum(known)}
