"""Predictions, metrics and the one-page report of an evaluation."""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from monai_pipelines.metrics import classification_metrics, per_class_metrics
from monai_pipelines.report.figures import best_epoch, confusion_figure, history_figure, roc_figure, slices_figure

__all__ = ["read_history", "write_predictions", "write_report"]

Row = Mapping[str, Any]

_METRICS = {
    "roc_auc": ("ROC AUC", "chance that a scan of the class is ranked above one of the rest; 0.5 is guessing"),
    "average_precision": (
        "Average precision",
        "precision averaged over all thresholds; guessing gives the class's share",
    ),
    "balanced_accuracy": ("Balanced accuracy", "mean share found right over the classes, each class counting the same"),
    "accuracy": ("Accuracy", "share of scans given the right class"),
    "recall": ("Sensitivity", "share of the class's scans that are found; also called recall"),
    "specificity": ("Specificity", "share of the other scans that are left alone"),
    "precision": ("Precision", "share of right ones among the scans given the class"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
}


def write_report(
    output_dir: str | PathLike[str],
    *,
    title: str,
    rows: Sequence[Row],
    class_names: Sequence[str],
    history: Sequence[Mapping[str, Any]] | None = None,
    key_metric: str = "roc_auc",
    run: Mapping[str, Any] | None = None,
    samples: Sequence[tuple[str, Any]] = (),
) -> dict[str, Any]:
    """Write what an evaluation leaves: predictions, metrics, figures and one self-contained page.

    Files: ``predictions.csv``, ``metrics.json``, ``confusion_matrix.png``, ``roc.png``, ``history.png`` (with a
    history) and ``report.html``, which holds its pictures and needs no network. Rows that are not skipped and have a
    label are scored.

    Args:
        output_dir: folder, made if missing.
        title: headline of the page.
        rows: one mapping per scan: ``image`` (path), ``prob`` (C floats), ``label`` (int), and where there are any
            ``patient``, ``split``, ``skipped`` (why the scan has no ``prob``), ``shortcut_prob`` (C floats of
            :func:`monai_pipelines.metrics.shortcut_baseline`; all scored rows or none).
        class_names: the C names; with two, the second is the positive class.
        history: as :func:`read_history` gives it.
        key_metric: validation figure that chose the model; its best epoch is marked.
        run: plain data told as it stands (seed, chain, fingerprint, versions, table hash ...); ``command`` says how to
            run again.
        samples: up to 8 (title, volume (C, X, Y, Z) in RAS) as the network saw them.

    Returns:
        What ``metrics.json`` holds: ``num_scans``, ``num_patients``, ``classes``, ``metrics``, ``shortcut``,
        ``per_class``, ``confusion_matrix`` (rows true, columns predicted), ``skipped``, ``run``; None stands for a
        figure that the labels leave undefined.

    Raises:
        ValueError: nothing to score, equal class names, or bad probabilities or labels.

    Example:
        >>> from tempfile import mkdtemp
        >>> rows = [{"image": f"{k}.nii", "label": k, "prob": [1.0 - k, float(k)]} for k in (0, 1)]
        >>> write_report(mkdtemp(), title="Demo", rows=rows, class_names=["healthy", "ill"])["metrics"]["accuracy"]
        1.0
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", rows, class_names)
    scored = [row for row in rows if not row.get("skipped") and row.get("label") is not None]
    if not scored:
        raise ValueError(
            f"write_report: wanted labelled scans to score, got none of {len(rows)}; see {folder}/predictions.csv"
        )
    prob = np.array([row["prob"] for row in scored])
    label = np.array([row["label"] for row in scored])
    shortcut_prob = _shortcut(scored)

    result = _result(scored, prob, label, class_names)
    result["shortcut"] = None
    if shortcut_prob is not None:
        result["shortcut"] = _json(classification_metrics(shortcut_prob, label, len(class_names)))
    result["num_unlabelled"] = sum(not row.get("skipped") for row in rows) - len(scored)
    result["skipped"] = [{"image": str(row["image"]), "reason": row["skipped"]} for row in rows if row.get("skipped")]
    result["run"] = _json(dict(run or {}))
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")

    figures = {
        "confusion_matrix": confusion_figure(label, prob, class_names),
        "roc": roc_figure(label, prob, class_names, shortcut_prob),
    }
    if history:
        figures["history"] = history_figure(history, key_metric)
    pictures = {name: _png(figure, dpi=170) for name, figure in figures.items()}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)

    # One entry here and one block of the template for each section; a section that is None or empty is left out.
    sections = {
        "summary": result,
        "run": {name: value for name, value in result["run"].items() if name != "command"},
        "data": result,
        "metrics": _METRICS,
        "per_class": result["per_class"],
        "figures": {name: base64.b64encode(png).decode() for name, png in pictures.items()},
        "history": {"best": best_epoch(history, key_metric), "key_metric": key_metric} if history else None,
        "samples": [
            base64.b64encode(_png(slices_figure([image], [name]), dpi=110)).decode() for name, image in samples
        ],
        "skipped": result["skipped"],
        "command": result["run"].get("command"),
    }
    environment = Environment(
        loader=PackageLoader("monai_pipelines", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    page = environment.get_template("report.html.j2").render(title=title, class_names=class_names, **sections)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return result


def write_predictions(path: str | PathLike[str], rows: Sequence[Row], class_names: Sequence[str]) -> None:
    """Write predictions as CSV, a line for each scan, skipped ones included.

    Columns: ``image``; ``patient``, ``split``, ``label`` and ``label_name`` where any row has them; ``prob_<class>``
    for each class; ``predicted`` (index) and ``predicted_name``; ``skipped`` (the reason, else empty).

    Args:
        path: the file.
        rows: as :func:`write_report` takes them.
        class_names: the C names.

    Raises:
        ValueError: equal class names, or a row with neither C probabilities nor a reason.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "predictions.csv"
        >>> write_predictions(path, [{"image": "a.nii", "prob": [0.25, 0.75]}], ["healthy", "ill"])
        >>> path.read_text().split()
        ['image,prob_healthy,prob_ill,predicted,predicted_name,skipped', 'a.nii,0.25,0.75,1,ill,']
    """
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"write_predictions: class names must differ, got {list(class_names)}")
    given = [name for name in ("patient", "split", "label") if any(row.get(name) is not None for row in rows)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        header = [name for key in given for name in ((key, "label_name") if key == "label" else (key,))]
        prob_names = [f"prob_{name}" for name in class_names]
        columns = ["image", *header, *prob_names, "predicted", "predicted_name", "skipped"]
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            line = {"image": row["image"], "skipped": row.get("skipped"), **{name: row.get(name) for name in given}}
            if row.get("label") is not None:
                line["label_name"] = class_names[row["label"]]
            if not row.get("skipped"):
                prob = np.asarray(row.get("prob"))
                if prob.shape != (len(class_names),):
                    raise ValueError(
                        f"write_predictions: {row['image']}: wanted {len(class_names)} probabilities or the reason why "
                        f"it is skipped, got {row.get('prob')}"
                    )
                predicted = int(prob.argmax())
                line |= dict(zip(prob_names, map(str, prob), strict=True))
                line |= {"predicted": predicted, "predicted_name": class_names[predicted]}
            writer.writerow(line)


def read_history(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """Read ``history.json``: a list with one dict per epoch.

    ``[{"epoch": 1, "lr": 0.001, "train": {"loss": 0.7, "accuracy": 0.5}, "val": {"loss": 0.6, "roc_auc": null}}, ...]``

    Args:
        path: the file.

    Raises:
        ValueError: not such a list.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "history.json"
        >>> _ = path.write_text('[{"epoch": 1, "train": {"loss": 0.7}}]')
        >>> read_history(path)[0]["train"]
        {'loss': 0.7}
    """
    history = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(history, list) or not all(isinstance(row, dict) and "epoch" in row for row in history):
        raise ValueError(f'read_history: {path}: wanted a list of {{"epoch": ..., "train": ..., "val": ...}}')
    return history


def _result(scored: Sequence[Row], prob: np.ndarray, label: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    num = len(class_names)
    patients = [str(row.get("patient") or row["image"]) for row in scored]
    classes = {
        name: {
            "num_scans": int((label == k).sum()),
            "num_patients": len({patient for patient, own in zip(patients, label, strict=True) if own == k}),
        }
        for k, name in enumerate(class_names)
    }
    return {
        "num_scans": len(scored),
        "num_patients": len(set(patients)),
        "classes": classes,
        "metrics": _json(classification_metrics(prob, label, num)),
        "per_class": dict(zip(class_names, _json(per_class_metrics(prob, label, num)), strict=True)),
        "confusion_matrix": confusion_matrix(label, prob.argmax(axis=1), labels=range(num)).tolist(),
    }


def _shortcut(scored: Sequence[Row]) -> np.ndarray | None:
    given = [row["shortcut_prob"] for row in scored if row.get("shortcut_prob") is not None]
    if given and len(given) < len(scored):
        raise ValueError(
            f"write_report: wanted shortcut_prob for all {len(scored)} scored scans or none, got {len(given)}"
        )
    return np.array(given) if given else None


def _json(value: Any) -> Any:
    """Plain data that strict JSON can hold: NaN is None, paths and the like are text."""
    if isinstance(value, Mapping):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _figure(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}".replace("-", "\u2212")


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
