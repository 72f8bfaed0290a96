"""The one-page report of an evaluation."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from monai_pipelines.report.figures import best_epoch, class_figure, confusion_figure, history_figure, roc_figure
from monai_pipelines.report.images import slices_figure, thumbnail
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.results import Row, class_table, evaluation_results, plain_data, shortcut_probs

__all__ = ["read_history", "write_report"]

Pictures = Sequence[tuple[str, Any]]

LOOKED_PX = 1200  # longest side of a picture of where the network looked

_METRICS = {
    "roc_auc": ("ROC AUC", "chance that {a} of the class is ranked above one of the rest; 0.5 is guessing"),
    "average_precision": (
        "Average precision",
        "precision averaged over all thresholds; guessing gives the class's share",
    ),
    "balanced_accuracy": ("Balanced accuracy", "mean share found right over the classes, each class counting the same"),
    "accuracy": ("Accuracy", "share of {s} given the right class"),
    "recall": ("Sensitivity", "share of the class's {s} that are found; also called recall"),
    "specificity": ("Specificity", "share of the other {s} that are left alone"),
    "precision": ("Precision", "share of right ones among the {s} given the class"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
}
_SEVERAL = {
    "balanced_accuracy": (
        "Balanced accuracy",
        "mean of sensitivity and specificity over the classes, each class counting the same",
    ),
    "accuracy": ("Accuracy", "share of all labels, one for each class and {one}, that are right"),
}


def write_report(
    output_dir: str | PathLike[str],
    *,
    title: str,
    rows: Sequence[Row],
    class_names: Sequence[str],
    threshold: float | None = None,
    multilabel: bool = False,
    unit: str = "image",
    splits: Mapping[str, Sequence[Row]] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    key_metric: str = "roc_auc",
    run: Mapping[str, Any] | None = None,
    samples: Pictures = (),
    mistakes: Pictures = (),
    embeddings: Mapping[str, Figure] | None = None,
    explanations: Sequence[Any] = (),
) -> dict[str, Any]:
    """Write what an evaluation leaves: predictions, metrics, figures and one self-contained page.

    Files: ``predictions.csv``, ``metrics.json``, ``classes.png``, ``confusion_matrix.png`` (not of several labels
    each), ``roc.png``, ``history.png`` (with a history), ``embedding_<name>.png`` and ``report.html``, which holds its
    pictures and needs no network. Rows that are not skipped and have a label are scored.

    Args:
        output_dir: folder, made if missing.
        title: headline of the page.
        rows: one mapping per image: ``image`` (path), ``prob`` (C floats), ``label`` (int, or C of 0 and 1), and where
            there are any ``patient``, ``split``, ``spread`` (of the likeliest class's probability, over test-time
            augmentations), ``skipped`` (why the image has no ``prob``), ``shortcut_prob`` (name -> C floats, of
            :func:`monai_pipelines.metrics.shortcut_baselines`; all scored rows or none).
        class_names: the C names; with two, the second is the positive class.
        threshold: probability from which the second of two classes is predicted; None: the likelier one.
        multilabel: several labels each.
        unit: what the page calls an input: image, scan or slide.
        splits: name -> items with ``label`` and, where known, ``patient``, for the table of classes; None: the scored
            rows.
        history: as :func:`read_history` gives it.
        key_metric: validation figure that chose the model; its best epoch is marked.
        run: plain data told as it stands (seed, chain, fingerprint, versions, table hash ...); ``command`` says how to
            run again.
        samples: (caption, image (C, H, W) or volume (C, X, Y, Z)) as the network saw them.
        mistakes: the same, of wrong predictions.
        embeddings: name, such as ``raw_pixels`` -> figure.
        explanations: of where the network looked: each with ``results`` (plain data, told where it has ``tile_auc`` or
            ``relative_entropy``, as `monai_pipelines.handlers.ExplainSlides` has) and ``pictures`` (as ``samples``).

    Returns:
        What ``metrics.json`` holds: :func:`monai_pipelines.report.results.evaluation_results`, ``splits``,
        ``num_unlabelled``, ``skipped``, ``explanations`` (the results of each that has any) and ``run``.

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
    write_predictions(folder / "predictions.csv", rows, class_names, threshold, multilabel)
    scored = [row for row in rows if not row.get("skipped") and row.get("label") is not None]
    if not scored:
        raise ValueError(
            f"write_report: wanted labelled {unit}s to score, got none of {len(rows)}; see {folder}/predictions.csv"
        )
    result = evaluation_results(scored, class_names, threshold)
    result["splits"] = {name: class_table(items, class_names) for name, items in (splits or {"scored": scored}).items()}
    result["num_unlabelled"] = sum(not row.get("skipped") for row in rows) - len(scored)
    result["skipped"] = [{"image": str(row["image"]), "reason": row["skipped"]} for row in rows if row.get("skipped")]
    result["explanations"] = [plain_data(own.results) for own in explanations if own.results]
    result["run"] = plain_data(dict(run or {}))
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")

    prob, label = np.array([row["prob"] for row in scored]), np.array([row["label"] for row in scored])
    figures = {
        "classes": class_figure(
            {
                split: {name: size["num_scans"] for name, size in table["classes"].items()}
                for split, table in result["splits"].items()
            }
        ),
        "roc": roc_figure(
            label, prob, class_names, shortcut_probs(scored).get(result["shortcut_name"] or ""), threshold
        ),
        **{f"embedding_{name}": figure for name, figure in (embeddings or {}).items()},
    }
    if not multilabel:
        figures["confusion_matrix"] = confusion_figure(label, prob, class_names, threshold)
    if history:
        figures["history"] = history_figure(history, key_metric)
    pictures = {name: png_bytes(figure, dpi=170) for name, figure in figures.items()}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)

    # One entry here and one block of the template for each section; a section that is None or empty is left out.
    sections = {
        "summary": result,
        "run": {name: value for name, value in result["run"].items() if name != "command"},
        "data": result["splits"],
        "metrics": told_metrics(unit, multilabel),
        "per_class": result["per_class"],
        "figures": {name: base64.b64encode(png).decode() for name, png in pictures.items()},
        "embeddings": list(embeddings or ()),
        "history": {"best": best_epoch(history, key_metric), "key_metric": key_metric} if history else None,
        "samples": [_picture(*sample) for sample in samples],
        "mistakes": [_picture(*mistake) for mistake in mistakes],
        "explanations": result["explanations"],
        "looked": [_picture(text, image, LOOKED_PX) for own in explanations for text, image in own.pictures],
        "skipped": result["skipped"],
        "command": result["run"].get("command"),
    }
    page = page_template("report.html.j2").render(
        title=title, class_names=class_names, unit=unit, multilabel=multilabel, **sections
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return result


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


def page_template(name: str) -> Template:
    """A template of this folder."""
    environment = Environment(
        loader=PackageLoader("monai_pipelines", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    return environment.get_template(name)


def told_metrics(unit: str, multilabel: bool) -> dict[str, tuple[str, str]]:
    """Name and meaning of each metric, in order."""
    words = {"one": unit, "a": f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}", "s": f"{unit}s"}
    told = _METRICS | (_SEVERAL if multilabel else {})
    return {name: (short, meaning.format(**words)) for name, (short, meaning) in told.items()}


def _picture(caption: str, image: Any, side: int = 192) -> dict[str, Any]:
    """An image for the page: 2D ones as they are, at most ``side`` wide and high, volumes as three slices."""
    volume = len(image.shape) == 4
    kind, content = ("png", png_bytes(slices_figure([image], [""]), dpi=110)) if volume else thumbnail(image, side)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {
        "caption": caption,
        "source": source,
        "volume": volume,
        "anatomical": volume and hasattr(image, "affine"),
        "small": kind == "png" and not volume,
    }


def _figure(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}".replace("-", "\u2212")


def png_bytes(figure: Figure, dpi: int) -> bytes:
    """A figure as a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
