"""The one-page report of a detector's evaluation."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure

from monai_pipelines.metrics import Detections
from monai_pipelines.metrics.froc import RATES
from monai_pipelines.report.detection_curves import band_words, froc_figure, precision_recall_figure, size_figure
from monai_pipelines.report.detection_results import Thresholds, detection_results, found_in, lesions_in
from monai_pipelines.report.figures import BOX_COLORS, best_epoch, history_figure, png_bytes
from monai_pipelines.report.found_boxes import write_detections
from monai_pipelines.report.page import DPI, page_template, run_once, sources
from monai_pipelines.report.predictions import Row
from monai_pipelines.report.results import plain_data
from monai_pipelines.report.saved import Pictures, Saved
from monai_pipelines.report.words import detection_words, per_unit, rule_words


@dataclass(frozen=True)
class DetectionEvaluation(Saved):
    """What the evaluation of a detector found, before any metric is computed.

    Attributes:
        title: headline of the page.
        rows: one for each test image, of `monai_pipelines.report.detection_results.plain_row`: ``image``, ``found``,
            ``lesions``, and where there are any ``patient``, ``split``, ``columns`` (name -> value, for subgroups),
            ``verdict``.
        classes: class names by index.
        unit: what the page calls an input: image or scan.
        key_metric: validation metric that chose the model; its best epoch is marked.
        threshold: score of each class from which detections are shown; an entry of None shows none. None: there is no
            operating point.
        threshold_by: the rule that chose it on the validation set; None: given by hand.
        epoch: whose weights were evaluated.
        members: networks of an ensemble: of each ``file``, ``epoch``, ``temperature`` and ``threshold``.
        subgroups: names in ``columns``; metrics are reported for each value.
        splits: name -> its table, of `monai_pipelines.report.detection.lesion_table`.
        skipped: what could not be used: ``image``, ``split``, ``skipped`` (why).
        audit: of :func:`monai_pipelines.data.audit_splits`.
        baseline: a simple method on the same images: ``name``, and as ``rows`` what it found in each.
        pictures: of lesions found and missed and of false alarms; as those of
            `monai_pipelines.report.detection_pictures.finding_pictures`.
    """

    task: ClassVar[str] = "detection"

    title: str
    rows: Sequence[Row]
    classes: Sequence[str]
    unit: str = "scan"
    key_metric: str = "cpm"
    threshold: Thresholds | None = None
    threshold_by: str | None = None
    epoch: int | None = None
    members: Sequence[Mapping[str, Any]] | None = None
    subgroups: Sequence[str] = ()
    splits: Mapping[str, Mapping[str, Any]] | None = None
    skipped: Sequence[Row] = ()
    audit: Mapping[str, Any] | None = None
    baseline: Mapping[str, Any] | None = None
    pictures: Pictures = ()


def write_detection_report(output_dir: str | PathLike[str], evaluation: DetectionEvaluation) -> dict[str, Any]:
    """Compute the metrics of a detector's evaluation, then write boxes, metrics, figures and one self-contained page.

    Files: ``predictions.csv`` (:func:`monai_pipelines.report.found_boxes.write_detections`), ``metrics.json``,
    ``report.html``, which holds its pictures and needs no network, and the figures of the page: ``froc.png``,
    ``precision_recall.png``, ``size.png`` (with a threshold and lesions), ``history.png`` (with a history).

    Args:
        output_dir: folder, created if missing.
        evaluation: what was found.

    Returns:
        the content of ``metrics.json``: ``task``,
        :func:`monai_pipelines.report.detection_results.detection_results`, ``threshold_by``, ``splits``, ``audit``,
        ``compared_with_training``, ``skipped``, ``members``, ``epoch`` and ``run``.

    Raises:
        ValueError: no image, or bad boxes, scores or labels.

    Example:
        >>> from tempfile import mkdtemp
        >>> from monai_pipelines.metrics import Lesions
        >>> from monai_pipelines.report.detection_results import plain_row
        >>> found, lesions = Detections([[0, 0, 8, 8]], [0.9]), Lesions([[0, 0, 8, 8]])
        >>> rows = [plain_row({"image": "a.nii", "found": found, "lesions": lesions})]
        >>> write_detection_report(mkdtemp(), DetectionEvaluation("Demo", rows, ["mass"]))["metrics"]["cpm"]
        1.0
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"task": evaluation.task} | detection_results(
        evaluation.rows, evaluation.classes, evaluation.threshold, evaluation.baseline, evaluation.subgroups
    )
    metrics |= {
        "threshold_by": evaluation.threshold_by,
        "splits": plain_data(evaluation.splits or {}),
        "audit": plain_data(evaluation.audit),
        "compared_with_training": evaluation.compared,
        "skipped": [{"image": str(row["image"]), "reason": row["skipped"]} for row in evaluation.skipped],
        "members": plain_data(evaluation.members),
        "epoch": evaluation.epoch,
        "run": plain_data(dict(evaluation.run or {})),
    }
    read = zip(evaluation.rows, found_in(evaluation.rows), lesions_in(evaluation.rows), strict=True)
    rows = [{**row, "found": found, "lesions": lesions} for row, found, lesions in read]
    every = [*rows, *evaluation.skipped]
    write_detections(folder / "predictions.csv", every, list(evaluation.classes), evaluation.threshold, evaluation.unit)
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    figures = {name: png_bytes(figure, DPI) for name, figure in _figures(evaluation, metrics).items()}
    for name, png in figures.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / "report.html").write_text(_page(evaluation, metrics, figures), encoding="utf-8")
    return metrics


def _figures(evaluation: DetectionEvaluation, metrics: Mapping[str, Any]) -> dict[str, Figure]:
    """By the name of their files."""
    found, lesions, classes = found_in(evaluation.rows), lesions_in(evaluation.rows), evaluation.classes
    baseline = evaluation.baseline and [Detections(**row) for row in evaluation.baseline["rows"]]
    figures = {
        "froc": froc_figure(found, lesions, classes, metrics, evaluation.unit, baseline or None),
        "precision_recall": precision_recall_figure(found, lesions, classes, metrics, baseline or None),
    }
    if metrics["sizes"] and metrics["num_lesions"] and metrics["threshold"] is not None:
        figures["size"] = size_figure(metrics["sizes"])
    if evaluation.history:
        figures["history"] = history_figure(evaluation.history, evaluation.key_metric)
    return figures


def _page(evaluation: DetectionEvaluation, metrics: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """The page; one entry here and one block of the templates per section, left out if it is None or empty."""
    history, key_metric = evaluation.history, evaluation.key_metric
    per = per_unit(evaluation.unit, len(evaluation.classes))
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ("hit", "miss", "false_alarm")}
    for picture in sources(evaluation.pictures):
        by_kind[picture["kind"]].append(picture)
    return page_template("detection.html.j2").render(
        title=evaluation.title,
        classes=evaluation.classes,
        unit=evaluation.unit,
        summary=metrics,
        data=metrics["splits"],
        audit=metrics["audit"],
        metrics=detection_words(evaluation.unit, RATES, len(evaluation.classes)),
        groups={
            "point": ["sensitivity", "false_positives_per_image"],
            "froc": ["cpm", *(f"sensitivity_at_{rate:g}" for rate in RATES)],
            "ap": ["ap50", "ap75", "ap"],
            "image": ["image_roc_auc"],
        },
        band_words=band_words,
        colors=BOX_COLORS,
        volumes=any(
            len(box) == 6 for row in evaluation.rows for part in ("found", "lesions") for box in row[part]["boxes"]
        ),
        per=per,
        chosen=rule_words(evaluation.threshold_by, per),
        figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
        pictures=by_kind,
        shown_kinds=[kind for kind, shown in by_kind.items() if shown],
        history={"best": best_epoch(history, key_metric), "key_metric": key_metric} if history else None,
        run=run_once(metrics["run"]),
        command=metrics["run"].get("command"),
    )
