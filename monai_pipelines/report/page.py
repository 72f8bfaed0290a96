"""The one-page report of an evaluation."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from monai_pipelines.metrics.calibration import TEMPERATURES
from monai_pipelines.report import curves
from monai_pipelines.report.figures import best_epoch, class_figure, confusion_figure, history_figure, png_bytes
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.results import Row, class_table, evaluation_results, plain_data, shortcut_probs
from monai_pipelines.report.saved import Evaluation
from monai_pipelines.report.words import GROUPS, METHODS, described_metrics, hidden_metrics, rule_words

DPI = 170  # of the figures: sharp on a phone


def write_report(output_dir: str | PathLike[str], evaluation: Evaluation) -> dict[str, Any]:
    """Compute the metrics of an evaluation, then write predictions, metrics, figures and one self-contained page.

    Files: ``predictions.csv``, ``metrics.json``, ``report.html``, which holds its pictures and needs no network, and
    the figures of the page: ``classes.png``, ``roc.png``, ``precision_recall.png``, ``calibration.png``,
    ``risk_coverage.png``, ``confusion_matrix.png`` (not of several labels each), ``decision_curve.png`` (of two
    classes), ``subgroups_<number>.png``, ``history.png`` (with a history). Rows that are not skipped and have a label
    are scored.

    Args:
        output_dir: folder, created if missing.
        evaluation: what was found.

    Returns:
        the content of ``metrics.json``: :func:`monai_pipelines.report.results.evaluation_results`, ``splits``,
        ``audit``, ``num_unlabelled``, ``skipped``, ``explanations`` (the results of each that has any), ``members``,
        ``epoch`` and ``run``.

    Raises:
        ValueError: nothing to score, equal class names, or bad probabilities or labels.

    Example:
        >>> from tempfile import mkdtemp
        >>> rows = [{"image": f"{k}.nii", "label": k, "prob": [1.0 - k, float(k)]} for k in (0, 1)]
        >>> write_report(mkdtemp(), Evaluation("Demo", rows, ["healthy", "ill"]))["metrics"]["accuracy"]
        1.0
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows, classes = evaluation.rows, evaluation.classes
    how = (evaluation.threshold, evaluation.multilabel, evaluation.unit)
    write_predictions(folder / "predictions.csv", rows, classes, *how)
    scored = [row for row in rows if not row.get("skipped") and row.get("label") is not None]
    if not scored:
        raise ValueError(
            f"write_report: wanted labelled {evaluation.unit}s to score, got none of {len(rows)}; see "
            f"{folder}/predictions.csv"
        )
    metrics = _metrics(evaluation, scored)
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    figures = {name: png_bytes(figure, DPI) for name, figure in _figures(evaluation, metrics, scored).items()}
    for name, png in figures.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / "report.html").write_text(_page(evaluation, metrics, figures), encoding="utf-8")
    return metrics


def page_template(name: str) -> Template:
    """A template of this folder."""
    environment = Environment(
        loader=PackageLoader("monai_pipelines", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["thousands"] = lambda text: re.sub(r"\d{4,}", lambda found: f"{int(found[0]):,}", text)
    return environment.get_template(name)


def _metrics(evaluation: Evaluation, scored: Sequence[Row]) -> dict[str, Any]:
    rows, classes = evaluation.rows, evaluation.classes
    names = ("threshold", "threshold_by", "temperature", "subgroups")
    metrics = evaluation_results(scored, classes, **{name: getattr(evaluation, name) for name in names})
    return _without(metrics, hidden_metrics(evaluation.key_metric)) | {
        "splits": plain_data(evaluation.splits or {"scored": class_table(scored, classes)}),
        "audit": plain_data(evaluation.audit),
        "compared_with_training": evaluation.compared,
        "num_unlabelled": sum(not row.get("skipped") for row in rows) - len(scored),
        "skipped": [{"image": str(row["image"]), "reason": row["skipped"]} for row in rows if row.get("skipped")],
        "explanations": [plain_data(part["results"]) for part in evaluation.explanations if part["results"]],
        "members": plain_data(evaluation.members),
        "epoch": evaluation.epoch,
        "run": plain_data(dict(evaluation.run or {})),
    }


def _without(value: Any, names: set[str]) -> Any:
    """Without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(part, names) for key, part in value.items() if key not in names}
    return [_without(part, names) for part in value] if isinstance(value, list) else value


def _figures(evaluation: Evaluation, metrics: Mapping[str, Any], scored: Sequence[Row]) -> dict[str, Figure]:
    """By the name of their files."""
    prob, label = np.array([row["prob"] for row in scored]), np.array([row["label"] for row in scored])
    classes, calibration = evaluation.classes, metrics["calibration"]
    threshold: Any = evaluation.threshold
    shortcut = shortcut_probs(scored).get(metrics["shortcut_name"] or "")
    sizes = {
        split: {name: size["num_images"] for name, size in table["classes"].items()}
        for split, table in metrics["splits"].items()
    }
    curves_by = {curve["by"]: curve for curve in (metrics["uncertainty"], metrics["uncertainty_by_spread"]) if curve}
    before = (calibration["before"] or {}).get("reliability")
    figures = {
        "classes": class_figure(sizes),
        "roc": curves.roc_figure(label, prob, classes, shortcut, threshold),
        "precision_recall": curves.pr_figure(label, prob, classes, shortcut, threshold),
        "calibration": curves.reliability_figure(calibration["reliability"], before),
        "risk_coverage": curves.risk_coverage_figure(curves_by),
    }
    if label.ndim == 1:
        figures["confusion_matrix"] = confusion_figure(label, prob, classes, threshold)
    if benefit := metrics["decision_curve"]:
        figures["decision_curve"] = curves.decision_figure(
            benefit["thresholds"], benefit["model"], benefit["all"], threshold
        )
    for k, groups in enumerate(metrics["subgroups"].values(), 1):
        figures[f"subgroups_{k}"] = curves.subgroup_figure(groups, metrics)
    if evaluation.history:
        figures["history"] = history_figure(evaluation.history, evaluation.key_metric)
    return figures


def _page(evaluation: Evaluation, metrics: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """The page; one entry here and one block of the templates per section, left out if it is None or empty."""
    history, key_metric, temperature = evaluation.history, evaluation.key_metric, evaluation.temperature
    pngs = {**figures, **{f"embedding_{name}": png for name, png in evaluation.embeddings.items()}}
    sections = {
        "summary": metrics,
        "data": metrics["splits"],
        "audit": metrics["audit"],
        "samples": sources(evaluation.samples),
        "metrics": described_metrics(evaluation.unit, evaluation.multilabel),
        "groups": GROUPS,
        "chosen": rule_words(evaluation.threshold_by),
        "mean_of_members": _is_mean(evaluation),
        "at_bound": temperature is not None and temperature > 0.99 * TEMPERATURES[1],
        "some_unknown": any(
            row.get("patient") in (None, "", row["image"])
            for row in evaluation.rows
            if not row.get("skipped") and row.get("label") is not None
        ),
        "figures": {name: base64.b64encode(png).decode() for name, png in pngs.items()},
        "mistakes": sources(evaluation.mistakes),
        "looked": [
            {"results": part["results"], "pictures": sources(part["pictures"])}
            for part in evaluation.explanations
            if part["results"] or part["pictures"]
        ],
        "methods": METHODS,
        "embeddings": list(evaluation.embeddings),
        "history": {"best": best_epoch(history, key_metric), "key_metric": key_metric} if history else None,
        "run": run_once(metrics["run"]),
        "command": metrics["run"].get("command"),
    }
    return page_template("report.html.j2").render(
        title=evaluation.title,
        classes=evaluation.classes,
        unit=evaluation.unit,
        multilabel=evaluation.multilabel,
        **sections,
    )


def _is_mean(evaluation: Evaluation) -> bool:
    """Whether the threshold is the mean of the members', as that of an ensemble is unless given by hand."""
    thresholds = [member["threshold"] for member in evaluation.members or ()]
    if not thresholds or evaluation.threshold is None or None in thresholds:
        return False
    return bool(np.allclose(np.mean(thresholds, axis=0), evaluation.threshold))


def run_once(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run without the command, and the settings without what is shown beside them."""
    shown = {name: value for name, value in run.items() if name != "command"}
    if "settings" in shown:
        shown["settings"] = {name: value for name, value in shown["settings"].items() if name not in run}
    return shown


def sources(pictures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pictures with their content as the ``source`` of an image."""
    return [
        {**picture, "source": f"data:image/{kind};base64,{base64.b64encode(picture['content']).decode()}"}
        for picture in pictures
        for kind in [Path(picture["file"]).suffix[1:]]
    ]


def _number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}".replace("-", "\u2212")
