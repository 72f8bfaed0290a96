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

from monai_pipelines.metrics.calibration import TEMPERATURES
from monai_pipelines.metrics.classification import Threshold
from monai_pipelines.report import curves
from monai_pipelines.report.figures import best_epoch, class_figure, confusion_figure, history_figure
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.results import Row, class_table, evaluation_results, plain_data, shortcut_probs
from monai_pipelines.report.words import GROUPS, METHODS, rule_words, told_metrics

__all__ = ["read_history", "write_report"]

Pictures = Sequence[Mapping[str, Any]]

DPI = 170  # of the figures: sharp on a phone


def write_report(
    output_dir: str | PathLike[str],
    *,
    title: str,
    rows: Sequence[Row],
    class_names: Sequence[str],
    threshold: float | Sequence[float] | None = None,
    threshold_by: str | None = None,
    temperature: float | None = None,
    multilabel: bool = False,
    unit: str = "image",
    splits: Mapping[str, Mapping[str, Any]] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    key_metric: str = "roc_auc",
    run: Mapping[str, Any] | None = None,
    samples: Pictures = (),
    mistakes: Pictures = (),
    embeddings: Sequence[str] = (),
    explanations: Sequence[Mapping[str, Any]] = (),
    subgroups: Sequence[str] = (),
    audit: Mapping[str, Any] | None = None,
    members: Sequence[Mapping[str, Any]] | None = None,
    epoch: int | None = None,
) -> dict[str, Any]:
    """Write what an evaluation leaves: predictions, metrics, figures and one self-contained page.

    Files: ``predictions.csv``, ``metrics.json``, ``report.html``, which holds its pictures and needs no network, and
    the figures of the page: ``classes.png``, ``roc.png``, ``precision_recall.png``, ``calibration.png``,
    ``risk_coverage.png``, ``confusion_matrix.png`` (not of several labels each), ``decision_curve.png`` (of two
    classes), ``subgroups_<column>.png`` by number, ``history.png`` (with a history). Rows that are not skipped and have
    a label are scored.

    Args:
        output_dir: folder, made if missing.
        title: headline of the page.
        rows: one mapping per image: ``image`` (path), ``prob`` (C floats), ``label`` (int, or C of 0 and 1), and where
            there are any ``patient``, ``split``, ``spread`` (of the likeliest class's probability, over test-time
            augmentations, passes or networks), ``columns`` (name -> value, for subgroups), ``skipped`` (why the image
            has no ``prob``), ``shortcut_prob`` (name -> C floats, of
            :func:`monai_pipelines.metrics.shortcut_baselines`; all scored rows or none).
        class_names: the C names; with two, the second is the positive class.
        threshold: probability from which the second of two classes is predicted, or one for each of several labels;
            None: the likelier one, or 0.5.
        threshold_by: the rule it was chosen by on the validation set; None: given by hand.
        temperature: fitted on the validation set; ``prob`` is tempered by it already.
        multilabel: several labels each.
        unit: what the page calls an input: image, scan or slide.
        splits: name -> its table, as :func:`monai_pipelines.report.results.class_table` makes it; None: that of the
            scored rows.
        history: as :func:`read_history` gives it.
        key_metric: validation figure that chose the model; its best epoch is marked.
        run: plain data told as it stands (seed, chain, fingerprint, versions, table hash ...); ``command`` says how to
            run again.
        samples: images as the network saw them: of each ``caption``, ``file`` (in ``output_dir``), ``volume`` (three
            slices), ``anatomical`` (these lie as in a patient) and ``small`` (to be shown pixel by pixel).
        mistakes: the same, of wrong predictions.
        embeddings: names, such as ``raw_pixels``, of what ``embedding_<name>.png`` in ``output_dir`` shows.
        explanations: of where the network looked: each with ``results`` (plain data, told where it has ``method``,
            ``tile_auc`` or ``relative_entropy``, as the handlers that explain have) and ``pictures`` (as ``samples``).
        subgroups: names in ``columns``; the figures are told for each value.
        audit: of :func:`monai_pipelines.data.audit_splits`.
        members: networks of an ensemble: of each ``file``, ``epoch``, ``temperature`` and ``threshold``.
        epoch: whose weights were evaluated; not told of an ensemble.

    Returns:
        What ``metrics.json`` holds: :func:`monai_pipelines.report.results.evaluation_results`, ``splits``, ``audit``,
        ``num_unlabelled``, ``skipped``, ``explanations`` (the results of each that has any), ``members``,
        ``epoch`` and ``run``.

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
    result = evaluation_results(scored, class_names, threshold, threshold_by, temperature, subgroups)
    result["splits"] = plain_data(splits or {"scored": class_table(scored, class_names)})
    result["audit"] = plain_data(audit)
    result["num_unlabelled"] = sum(not row.get("skipped") for row in rows) - len(scored)
    result["skipped"] = [{"image": str(row["image"]), "reason": row["skipped"]} for row in rows if row.get("skipped")]
    result["explanations"] = [plain_data(own["results"]) for own in explanations if own["results"]]
    result["members"] = plain_data(members)
    result["epoch"] = epoch
    result["run"] = plain_data(dict(run or {}))
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")

    pictures = {name: png_bytes(figure, DPI) for name, figure in _figures(result, scored, class_names).items()}
    if history:
        pictures["history"] = png_bytes(history_figure(history, key_metric), DPI)
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    pictures |= {f"embedding_{name}": (folder / f"embedding_{name}.png").read_bytes() for name in embeddings}

    # One entry here and one block of the templates for each section; a section that is None or empty is left out.
    sections = {
        "summary": result,
        "data": result["splits"],
        "audit": result["audit"],
        "samples": [_picture(folder, sample) for sample in samples],
        "metrics": told_metrics(unit, multilabel),
        "groups": GROUPS,
        "chosen": rule_words(threshold_by),
        "mean_of_members": _is_mean(threshold, members),
        "at_bound": temperature is not None and temperature > 0.99 * TEMPERATURES[1],
        "some_unknown": any(row.get("patient") in (None, "", row["image"]) for row in scored),
        "figures": {name: base64.b64encode(png).decode() for name, png in pictures.items()},
        "mistakes": [_picture(folder, mistake) for mistake in mistakes],
        "looked": [
            {"results": own["results"], "pictures": [_picture(folder, picture) for picture in own["pictures"]]}
            for own in explanations
            if own["results"] or own["pictures"]
        ],
        "methods": METHODS,
        "embeddings": list(embeddings),
        "history": {"best": best_epoch(history, key_metric), "key_metric": key_metric} if history else None,
        "run": _run_once(result["run"]),
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


def png_bytes(figure: Figure, dpi: int) -> bytes:
    """A figure as a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _figures(result: Mapping[str, Any], scored: Sequence[Row], class_names: Sequence[str]) -> dict[str, Figure]:
    """The charts of the scored rows, by the name of their files."""
    prob, label = np.array([row["prob"] for row in scored]), np.array([row["label"] for row in scored])
    threshold, calibration = result["threshold"], result["calibration"]
    shortcut = shortcut_probs(scored).get(result["shortcut_name"] or "")
    sizes = {
        split: {name: size["num_scans"] for name, size in table["classes"].items()}
        for split, table in result["splits"].items()
    }
    doubts = {own["by"]: own for own in (result["uncertainty"], result["uncertainty_by_spread"]) if own}
    figures = {
        "classes": class_figure(sizes),
        "roc": curves.roc_figure(label, prob, class_names, shortcut, threshold),
        "precision_recall": curves.pr_figure(label, prob, class_names, shortcut, threshold),
        "calibration": curves.reliability_figure(
            calibration["reliability"], (calibration["before"] or {}).get("reliability")
        ),
        "risk_coverage": curves.risk_coverage_figure(doubts),
    }
    if label.ndim == 1:
        figures["confusion_matrix"] = confusion_figure(label, prob, class_names, threshold)
    if result["decision_curve"]:
        own = result["decision_curve"]
        figures["decision_curve"] = curves.decision_figure(own["thresholds"], own["model"], own["all"], threshold)
    for k, groups in enumerate(result["subgroups"].values(), 1):
        figures[f"subgroups_{k}"] = curves.subgroup_figure(groups, result)
    return figures


def _is_mean(threshold: Threshold, members: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether the threshold is the mean of the members', as that of an ensemble is that nobody gave by hand."""
    own = [member["threshold"] for member in members or ()]
    return bool(own) and threshold is not None and None not in own and np.allclose(np.mean(own, axis=0), threshold)


def _run_once(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run without the command, and the settings without what is told beside them."""
    told = {name: value for name, value in run.items() if name != "command"}
    if "settings" in told:
        told["settings"] = {name: value for name, value in told["settings"].items() if name not in run}
    return told


def _picture(folder: Path, picture: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / picture["file"]
    kind, content = file.suffix[1:], base64.b64encode(file.read_bytes()).decode()
    return {**picture, "source": f"data:image/{kind};base64,{content}"}


def _figure(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}".replace("-", "\u2212")
