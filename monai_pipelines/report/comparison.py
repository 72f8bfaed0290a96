"""Two evaluated runs compared on the same images, and the page of it."""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from monai_pipelines.metrics import compare_detections, compare_predictions
from monai_pipelines.metrics.detection import MAIN_METRICS
from monai_pipelines.metrics.froc import RATES
from monai_pipelines.report.detection_results import found_in, lesions_in
from monai_pipelines.report.figures import COLORS, GRAY, png_bytes, tidy
from monai_pipelines.report.page import page_template
from monai_pipelines.report.predictions import Row
from monai_pipelines.report.results import plain_data
from monai_pipelines.report.words import (
    LOWER_IS_BETTER,
    described_metrics,
    detection_words,
    hidden_metrics,
    rule_words,
)
from monai_pipelines.runs.folder import RunFolder

DECIDE_FIRST = (
    "Each metric is tested separately: of 20 tests of two equally good models, one shows a difference by chance. "
    "Decide which metric counts before you look."
)
_UNBOUNDED = "log_loss"  # on another scale


def compare_runs(
    run_a: str | PathLike[str], run_b: str | PathLike[str], out: str | PathLike[str] | None = None
) -> dict[str, Any]:
    """Compare two evaluated runs on the images that both predicted, matched by name.

    See :func:`monai_pipelines.metrics.compare_predictions` and, of detectors,
    :func:`monai_pipelines.metrics.compare_detections`, which resample whole patients.

    Args:
        run_a, run_b: folders of runs, each with ``metrics.json`` and ``predictions.csv``.
        out: folder for ``comparison.json`` and ``comparison.html``; None writes nothing.

    Returns:
        the content of ``comparison.json``: ``command``; ``task``; ``main_metric`` (ROC AUC, or CPM of detectors);
        ``runs``: ``a`` and ``b``, each with ``folder``, ``task``, ``key_metric``, ``title``, ``unit``, ``classes``,
        ``seed``, ``fingerprint``, ``num_networks``, ``threshold``, ``threshold_by``, ``num_images`` and ``num_only``
        (images missing from the other run); ``unit``, ``multilabel``, ``num_images`` (in common), ``num_patients``
        (None if unknown); ``metrics`` of the comparison, each with ``better``: "a" or "b" if the interval excludes 0,
        else None; ``delong``: class -> the test of its ROC AUC, of classifiers.

    Raises:
        FileNotFoundError: a folder that is not an evaluated run.
        ValueError: runs with different tasks, classes, labels or patients, or without a common image.
    """
    a, b = _read_run(run_a), _read_run(run_b)
    if a["task"] != b["task"]:
        raise ValueError(f"compare: wanted runs of one task, got {a['task']} in A and {b['task']} in B")
    if a["classes"] != b["classes"]:
        raise ValueError(f"compare: wanted runs of the same classes, got {a['classes']} in A and {b['classes']} in B")
    rows_a, rows_b = a.pop("rows"), b.pop("rows")
    hidden = hidden_metrics(a["key_metric"], b["key_metric"])
    names = [name for name in rows_a if name in rows_b]
    if not names:
        raise ValueError(
            f"compare: no common image, A has {len(rows_a)} like {next(iter(rows_a))} and B {len(rows_b)} like "
            f"{next(iter(rows_b))}: evaluate both on the same test images"
        )
    for key in ("label", "patient"):
        values = {name: (rows_a[name][key], rows_b[name][key]) for name in names}
        if different := [name for name, (in_a, in_b) in values.items() if in_a and in_b and in_a != in_b]:
            raise ValueError(
                f"compare: {len(different)} of {len(names)} images have another {key} in B than in A, such as "
                f"{different[0]}: evaluate both with the same table"
            )
    patients = [rows_a[name]["patient"] or rows_b[name]["patient"] for name in names]
    groups = [patient or name for patient, name in zip(patients, names, strict=True)]
    compared = _compare_detectors if a["task"] == "detection" else _compare_classifiers
    tests = compared([rows_a[name] for name in names], [rows_b[name] for name in names], groups, a, b)
    options = [] if out is None else ["--out", str(out)]
    result: dict[str, Any] = plain_data(
        {
            "command": shlex.join(["python", "-m", "monai_pipelines", "compare", str(run_a), str(run_b), *options]),
            "runs": {key: {**run, "num_only": run["num_images"] - len(names)} for key, run in (("a", a), ("b", b))},
            "task": a["task"],
            "main_metric": "cpm" if a["task"] == "detection" else "roc_auc",
            "unit": a["unit"],
            "num_images": len(names),
            "num_patients": len(set(groups)) if any(patients) else None,
            **tests,
            "metrics": {
                name: {**row, "better": better(name, row)}
                for name, row in tests["metrics"].items()
                if name not in hidden
            },
        }
    )
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
        write_comparison(folder / "comparison.html", result)
    return result


def _compare_classifiers(
    rows_a: Sequence[Row], rows_b: Sequence[Row], groups: Sequence[str], a: Row, b: Row
) -> dict[str, Any]:
    label = np.array([row["label"].split("|") for row in rows_a], dtype=np.int64)
    multilabel = label.shape[1] > 1
    tests = compare_predictions(
        np.array([row["prob"] for row in rows_a]),
        np.array([row["prob"] for row in rows_b]),
        label if multilabel else label[:, 0],
        groups,
        a["threshold"],
        b["threshold"],
    )
    delong = dict(zip(a["classes"][-len(tests["delong"]) :], tests["delong"], strict=True))
    return {"multilabel": multilabel, "metrics": tests["metrics"], "delong": delong}


def _compare_detectors(
    rows_a: Sequence[Row], rows_b: Sequence[Row], groups: Sequence[str], a: Row, b: Row
) -> dict[str, Any]:
    metrics = compare_detections(
        *(found_in(rows_a), found_in(rows_b), lesions_in(rows_a), groups), num_classes=len(a["classes"])
    )
    return {"multilabel": False, "metrics": {name: metrics[name] for name in MAIN_METRICS}, "delong": {}}


def _read_run(path: str | PathLike[str]) -> dict[str, Any]:
    """A run and its scored ``rows``: image -> ``label``, ``patient``, and ``prob`` or ``found`` and ``lesions``."""
    folder = RunFolder(path)
    for name in ("metrics.json", "predictions.csv"):
        if not (folder.path / name).is_file():
            inside = next(folder.path.glob("*/metrics.json"), None)
            hint = f"did you mean {inside.parent}?" if inside else "evaluate it first"
            raise FileNotFoundError(f"compare: {path}: wanted the folder of an evaluated run, found no {name}; {hint}")
    metrics, evaluation = folder.metrics or {}, folder.evaluation or {}
    classes, task = list(metrics["classes"]), evaluation.get("task", "classification")
    rows = _detected(evaluation) if task == "detection" else _predicted(folder, classes)
    if not rows:
        raise ValueError(f"compare: {path}: no scored image, none has a label")
    return {
        "folder": str(path),
        "task": task,
        "key_metric": evaluation.get("key_metric"),
        "title": evaluation.get("title", folder.path.name),
        "unit": evaluation.get("unit", "image"),
        "seed": metrics["run"].get("seed"),
        "fingerprint": metrics["run"].get("fingerprint"),
        "num_networks": len(metrics.get("members") or [None]),
        "threshold": metrics["threshold"],
        "threshold_by": metrics.get("threshold_by"),
        "classes": classes,
        "num_images": len(rows),
        "rows": rows,
    }


def _predicted(folder: RunFolder, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for line in folder.predictions():
        if line["skipped"] or not line.get("label"):
            continue
        if line["image"] in rows:
            raise ValueError(
                f"compare: {folder.path}/predictions.csv: {line['image']} occurs twice, so runs cannot be matched"
            )
        prob = [float(line[f"prob_{name}"]) for name in classes]
        rows[line["image"]] = {"label": line["label"], "patient": line.get("patient", ""), "prob": prob}
    return rows


def _detected(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        row["image"]: {
            "label": [row["lesions"][name] for name in ("boxes", "labels", "ignore")],
            "patient": row.get("patient") or "",
            "found": row["found"],
            "lesions": row["lesions"],
        }
        for row in evaluation["rows"]
    }


def write_comparison(file: str | PathLike[str], result: Mapping[str, Any]) -> None:
    """Write the page of a comparison, self-contained, from the result of :func:`compare_runs`."""
    page = page_template("comparison.html.j2").render(
        names=compared_metrics(result),
        verdict=verdict(result),
        decide_first=DECIDE_FIRST,
        picture=base64.b64encode(png_bytes(differences_figure(result), dpi=170)).decode(),
        lower_is_better=LOWER_IS_BETTER,
        interval=format_interval,
        p=format_p,
        rule=rule_words,
        rules_differ=rules_differ(result),
        **result,
    )
    Path(file).write_text(page, encoding="utf-8")


def compared_metrics(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name and description of each compared metric, in the order of reports."""
    metrics = described_metrics(result["unit"], result["multilabel"])
    if result["task"] == "detection":
        metrics = detection_words(result["unit"], RATES)
    return {name: metrics[name] for name in metrics if name in result["metrics"]}


def better(name: str, difference: Mapping[str, float]) -> str | None:
    """The model that is better by a metric, "a" or "b"; None if the interval of B - A contains 0 or is undefined.

    Example:
        >>> better("roc_auc", {"low": 0.01, "high": 0.2}), better("brier", {"low": 0.01, "high": 0.2})
        ('b', 'a')
    """
    low, high = difference["low"], difference["high"]
    if math.isnan(low) or low <= 0 <= high:
        return None
    return "b" if (low > 0) != (name in LOWER_IS_BETTER) else "a"


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Sentences that say which model is better, and in which metrics; undefined ones are left out."""
    rows, names = result["metrics"], compared_metrics(result)
    if {row[end] for row in rows.values() for end in ("low", "high")} - {None} == {0}:
        return ["A and B make the same predictions."]
    sentences = []
    for winner, text in (("b", "B is better in"), ("a", "A is better in"), (None, "No difference shown in")):
        found = [names[n][0] for n in names if rows[n]["low"] is not None and rows[n]["better"] == winner]
        if found:
            sentences.append(f"{text} {'; '.join(found)}.")
    return sentences


def rules_differ(result: Mapping[str, Any]) -> str | None:
    """A warning if the thresholds of two classifiers were chosen by different rules, else None."""
    if result["task"] == "detection":
        return None
    rules = [
        rule_words(run["threshold_by"]) or ("none, 0.5" if run["threshold"] is None else "unknown")
        for run in result["runs"].values()
    ]
    if rules[0] == rules[1]:
        return None
    return (
        f"The thresholds were chosen by different rules: A: {rules[0]}; B: {rules[1]}. Metrics of the predictions, "
        "such as sensitivity, may differ for this reason alone."
    )


def format_interval(row: Mapping[str, float | None]) -> str:
    """The interval of a difference, with signs: ``+0.010 to +0.200``."""
    if row["low"] is None or row["high"] is None:
        return "n/a"
    return f"{row['low']:+.3f} to {row['high']:+.3f}"


def format_p(p: float | None) -> str:
    """A p value: ``< 0.001`` or ``0.250``."""
    return "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def differences_figure(result: Mapping[str, Any]) -> Figure:
    """A point with its interval for each metric: right of the line B is better, left of it A.

    The sign is flipped where lower is better; log loss, which has no upper bound, is not drawn.
    """
    names = {name: short for name, (short, _) in compared_metrics(result).items() if name != _UNBOUNDED}
    figure = Figure(figsize=(6.6, 1.3 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(names):
        row = result["metrics"][name]
        if row["low"] is None:
            continue
        sign = -1 if name in LOWER_IS_BETTER else 1
        color, marker = {"b": (COLORS[0], "o"), "a": (COLORS[1], "s"), None: (GRAY, "d")}[row["better"]]
        axes.plot([sign * row["low"], sign * row["high"]], [k, k], color=color, linewidth=2.2)
        axes.plot(sign * row["difference"], k, marker, color=color, markersize=7)
    axes.axvline(0, color="black", linewidth=1)
    edge = 1.05 * max((abs(x) for x in axes.dataLim.intervalx), default=0)
    axes.set_xlim(-max(edge, 0.01), max(edge, 0.01))
    axes.set_yticks(
        range(len(names)), [short + (" *" if name in LOWER_IS_BETTER else "") for name, short in names.items()]
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    tidy(axes, "Difference B \u2212 A, 95% interval", "")
    axes.tick_params(axis="y", length=0, labelsize=11)
    axes.grid(axis="y", visible=False)
    axes.set_title("\u2190 A is better", loc="left", fontsize=11, color=COLORS[1])
    axes.set_title("B is better \u2192", loc="right", fontsize=11, color=COLORS[0])
    return figure
