"""Two evaluated runs side by side: which figures differ by more than chance."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from monai_pipelines.metrics import compare_predictions
from monai_pipelines.report.comparison import (
    DECIDE_FIRST,
    better,
    figure_names,
    other_rules,
    told_interval,
    told_p,
    verdict,
    write_comparison,
)
from monai_pipelines.report.results import plain_data


def compare_runs(
    run_a: str | PathLike[str], run_b: str | PathLike[str], out: str | PathLike[str] | None = None
) -> dict[str, Any]:
    """Compare two evaluated runs on the images that both have predicted, and print what differs.

    Images are matched by their names, and whole patients are drawn: see
    :func:`monai_pipelines.metrics.compare_predictions`.

    Args:
        run_a, run_b: folders of runs, each with ``metrics.json`` and ``predictions.csv``.
        out: folder for ``comparison.json`` and ``comparison.html``; None writes nothing.

    Returns:
        the content of ``comparison.json``: ``command``; ``runs``: ``a`` and ``b``, each with ``folder``, ``title``,
        ``unit``, ``classes``, ``seed``, ``fingerprint``, ``num_networks``, ``threshold``, ``threshold_by``,
        ``num_scans`` and ``num_only`` (images that the other run lacks); ``unit``, ``multilabel``, ``num_scans`` (in
        common), ``num_patients`` (None where none is known); ``metrics`` as `compare_predictions` has it, each with
        ``better``: "a" or "b" where the interval leaves 0 out, else None; ``delong``: class -> the test of its ROC AUC.

    Raises:
        FileNotFoundError: a folder that is no evaluated run.
        ValueError: runs of other classes, labels or patients, or without an image in common.
    """
    a, b = _read_run(run_a), _read_run(run_b)
    if a["classes"] != b["classes"]:
        raise ValueError(f"compare: wanted runs of the same classes, got {a['classes']} in A and {b['classes']} in B")
    rows_a, rows_b = a.pop("rows"), b.pop("rows")
    names = [name for name in rows_a if name in rows_b]
    if not names:
        raise ValueError(
            f"compare: no image in common, A has {len(rows_a)} like {next(iter(rows_a))} and B {len(rows_b)} like "
            f"{next(iter(rows_b))}: evaluate both on the same test images"
        )
    for key in ("label", "patient"):
        _check_equal(key, {name: rows_a[name][key] for name in names}, {name: rows_b[name][key] for name in names})
    label = np.array([rows_a[name]["label"].split("|") for name in names], dtype=np.int64)
    patients = [rows_a[name]["patient"] or rows_b[name]["patient"] for name in names]
    groups = [patient or name for patient, name in zip(patients, names, strict=True)]
    found = compare_predictions(
        np.array([rows_a[name]["prob"] for name in names]),
        np.array([rows_b[name]["prob"] for name in names]),
        label if label.shape[1] > 1 else label[:, 0],
        groups,
        a["threshold"],
        b["threshold"],
    )
    options = [] if out is None else ["--out", str(out)]
    result: dict[str, Any] = plain_data(
        {
            "command": shlex.join(["python", "-m", "monai_pipelines", "compare", str(run_a), str(run_b), *options]),
            "runs": {key: {**run, "num_only": run["num_scans"] - len(names)} for key, run in (("a", a), ("b", b))},
            "unit": a["unit"],
            "multilabel": label.shape[1] > 1,
            "num_scans": len(names),
            "num_patients": len(set(groups)) if any(patients) else None,
            "metrics": {name: {**own, "better": better(name, own)} for name, own in found["metrics"].items()},
            "delong": dict(zip(a["classes"][-len(found["delong"]) :], found["delong"], strict=True)),
        }
    )
    _print(result)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
        write_comparison(folder / "comparison.html", result)
        Console().print(f"wrote {escape(str(folder / 'comparison.html'))}", highlight=False, soft_wrap=True)
    return result


def _read_run(folder: str | PathLike[str]) -> dict[str, Any]:
    """What a run tells of itself, and its scored ``rows``: image -> ``label`` (as written), ``patient``, ``prob``."""
    root = Path(folder)
    for name in ("metrics.json", "predictions.csv"):
        if not (root / name).is_file():
            inside = next(root.glob("*/metrics.json"), None)
            hint = f"did you mean {inside.parent}?" if inside else "evaluate it first"
            raise FileNotFoundError(f"compare: {root}: wanted the folder of an evaluated run, found no {name}; {hint}")
    metrics = json.loads((root / "metrics.json").read_text(encoding="utf-8"))
    evaluation = root / "evaluation.json"
    page = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {}
    classes = list(metrics["classes"])
    rows: dict[str, dict[str, Any]] = {}
    with (root / "predictions.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["skipped"] or not line.get("label"):
                continue
            if line["image"] in rows:
                raise ValueError(f"compare: {file.name}: {line['image']} is there twice, so runs cannot be matched")
            prob = [float(line[f"prob_{name}"]) for name in classes]
            rows[line["image"]] = {"label": line["label"], "patient": line.get("patient", ""), "prob": prob}
    if not rows:
        raise ValueError(f"compare: {root}: no scored image in predictions.csv, none has a label")
    return {
        "folder": str(folder),
        "title": page.get("title", root.name),
        "unit": page.get("unit", "image"),
        "seed": metrics["run"].get("seed"),
        "fingerprint": metrics["run"].get("fingerprint"),
        "num_networks": len(metrics.get("members") or [None]),
        "threshold": metrics["threshold"],
        "threshold_by": metrics.get("threshold_by"),
        "classes": classes,
        "num_scans": len(rows),
        "rows": rows,
    }


def _check_equal(key: str, values_a: Mapping[str, str], values_b: Mapping[str, str]) -> None:
    other = [name for name, own in values_a.items() if own and values_b[name] and own != values_b[name]]
    if other:
        raise ValueError(
            f"compare: {len(other)} of {len(values_a)} images have another {key} in B than in A, such as {other[0]}: "
            "evaluate both with the same table"
        )


def _print(result: Mapping[str, Any]) -> None:
    console, unit = Console(), result["unit"]
    patients = "" if result["num_patients"] is None else f", {result['num_patients']} patients"
    for key, run in result["runs"].items():
        only = f", {run['num_only']} of them not in the other run and left out" if run["num_only"] else ""
        text = f"{key.upper()}: {escape(run['folder'])}: {run['num_scans']} {unit}s{only}"
        console.print(text, highlight=False, soft_wrap=True)
    headers = ("A", "B", "B - A", "95% interval", "p", "better")
    columns = (Column(header, justify="right", no_wrap=True) for header in headers)
    title = f"{result['num_scans']} {unit}s in common{patients}"
    table = Table("", *columns, title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for name, (short, _) in figure_names(result).items():
        own = result["metrics"][name]
        told = ["n/a" if own[key] is None else f"{own[key]:.3f}" for key in ("a", "b")]
        change = "n/a" if own["difference"] is None else f"{own['difference']:+.3f}"
        style = "bold" if own["better"] else None
        cells = (*told, change, told_interval(own), told_p(own["p"]), (own["better"] or "").upper())
        table.add_row(short, *cells, style=style)
    console.print(table)
    for name, test in result["delong"].items():
        if test["p"] is not None:
            text = f"DeLong, ROC AUC of {name}: {test['difference']:+.3f}, {told_interval(test)}, p {told_p(test['p'])}"
            console.print(escape(text), highlight=False)
    console.print(escape(" ".join([*verdict(result), DECIDE_FIRST])), highlight=False)
    if warning := other_rules(result):
        console.print(escape(warning), style="bold", highlight=False)
