"""The end of a detector's evaluation: detections beside lesions, written as a report and into TensorBoard."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from monai_pipelines.data import patients_known
from monai_pipelines.data.overlap import audit_splits
from monai_pipelines.metrics.detection import MAIN_METRICS
from monai_pipelines.metrics.froc import RATES
from monai_pipelines.report.detection_page import DetectionEvaluation, write_detection_report
from monai_pipelines.report.detection_pictures import finding_pictures
from monai_pipelines.report.detection_results import AT_THRESHOLD, Thresholds, plain_found, plain_row
from monai_pipelines.report.evaluation import compared_with_training, present_splits
from monai_pipelines.report.tensorboard import log_evaluation
from monai_pipelines.report.words import at_threshold, detection_words
from monai_pipelines.runs import Trained
from monai_pipelines.runs.record import check_subgroups

logger = logging.getLogger(__name__)


def report_detection(
    output_dir: str | PathLike[str],
    title: str,
    trained: Trained,
    rows: Sequence[Mapping[str, Any]],
    datasets: Any,
    unit: str = "scan",
    key_metric: str = "cpm",
    subgroups: Sequence[str] = (),
    baseline: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the report of a detector's findings on the test set, beside those of a simple baseline.

    What was found is kept in ``evaluation.json`` and ``pictures/``, from which `rebuild_report` renders the page again.
    Pictures and curves also go to TensorBoard, ``output_dir/tensorboard/evaluation``.

    Args:
        output_dir: folder of the run; its ``history.json`` and ``run.json`` are used if they exist.
        title: of the page.
        trained: what was evaluated.
        rows: one for each test image, in the order of ``datasets.test``: ``image`` (its name), ``patient``, ``found``
            (`monai_pipelines.metrics.Detections`) and ``lesions`` (`monai_pipelines.metrics.Lesions`), boxes of both in
            coordinates of the source, and ``verdict`` if there is one.
        datasets: ``train``, ``validation`` and ``test``, each with ``data``, ``skipped`` and items that have ``image``
            and ``box_affine``.
        unit: what the page calls an input: image or scan.
        key_metric: validation metric that chose the best epoch, where the checkpoint does not name it.
        subgroups: columns of the table, such as scanner or sex; metrics are reported for each of their values.
        baseline: a simple method on the test images: ``name``, and as ``rows`` the `Detections` in each.

    Returns:
        the content of ``metrics.json``.

    Raises:
        TypeError: subgroups that are text instead of a list.
        ValueError: rows that are not as many as the test images or of another order; a column with more than 12 values.
        KeyError: a column of subgroups that no test image has.
    """
    check_subgroups(subgroups, datasets.test.data)
    test, decisions, classes = datasets.test, trained.decisions, list(trained.model.classes)
    _check_rows(rows, test.data, baseline, unit)
    threshold = thresholds_of(decisions.threshold, len(classes))
    plain = [
        {**plain_row(row), "split": "test", "columns": {column: item.get(column) for column in subgroups}}
        for row, item in zip(rows, test.data, strict=True)
    ]
    splits = present_splits(datasets)
    pictures = [] if threshold is None else finding_pictures(test, plain, classes, threshold)
    evaluation = DetectionEvaluation(
        title=title,
        rows=plain,
        classes=classes,
        unit=unit,
        key_metric=decisions.key_metric or key_metric,
        threshold=threshold,
        threshold_by=decisions.threshold_by,
        epoch=decisions.epoch,
        members=None if decisions.members is None else [member._asdict() for member in decisions.members],
        subgroups=subgroups,
        splits={split: lesion_table(dataset.data, classes) for split, dataset in splits.items()},
        skipped=[
            {"image": item["name"], "split": split, "skipped": item["skipped"]}
            for split, dataset in splits.items()
            for item in dataset.skipped
        ],
        audit=audit_splits(splits) if "train" in splits else None,
        compared=compared_with_training(trained, datasets),
        baseline=baseline and {"name": baseline["name"], "rows": [plain_found(found) for found in baseline["rows"]]},
        pictures=pictures,
    ).after_training(trained.run_folder(output_dir))
    folder = Path(output_dir)
    shutil.rmtree(folder / "pictures", ignore_errors=True)  # of an earlier evaluation
    evaluation.save(folder)
    metrics = write_detection_report(folder, evaluation)
    files = [file for name in ("froc", "precision_recall", "size") if (file := folder / f"{name}.png").is_file()]
    tagged: dict[str, Any] = {f"{file.stem}/test": file.read_bytes() for file in files}
    tagged |= {f"findings/{Path(picture['file']).stem}": picture["content"] for picture in pictures}
    settings = metrics["run"].get("settings")
    shown = {name: metrics["metrics"].get(name) for name in (*MAIN_METRICS, *AT_THRESHOLD)}
    log_evaluation(folder / "tensorboard" / "evaluation", tagged, {}, [], metrics=shown, settings=settings)
    _print_beside(metrics, unit)
    logger.info("report: %s", folder / "report.html")
    return metrics


def thresholds_of(threshold: Any, num_classes: int) -> Thresholds | None:
    """A threshold for each class, of one for all or a list of them; None: there is none.

    Example:
        >>> thresholds_of(0.5, 2)
        [0.5, 0.5]
    """
    if threshold is None:
        return None
    given = list(threshold) if isinstance(threshold, list | tuple | np.ndarray) else [threshold] * num_classes
    return [None if value is None else float(value) for value in given]


def lesion_table(items: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Count images and lesions.

    Args:
        items: of a cohort for detection: with ``box_labels`` and ``box_ignore``.
        classes: C class names.

    Returns:
        ``num_images``, ``num_patients`` (None if unknown), ``num_without_lesions``, ``num_ignored`` (findings),
        ``classes`` (name -> ``num_lesions``, ``num_images``).

    Example:
        >>> items = [{"name": "a", "box_labels": [0, 0], "box_ignore": [False, True]}]
        >>> lesion_table(items, ["mass"])["classes"]
        {'mass': {'num_lesions': 1, 'num_images': 1}}
    """
    counts = np.zeros((len(items), len(classes)), dtype=int)
    for row, item in zip(counts, items, strict=True):
        labels, ignore = np.asarray(item["box_labels"], dtype=int), np.asarray(item["box_ignore"], dtype=bool)
        np.add.at(row, labels[~ignore], 1)
    return {
        "num_images": len(items),
        "num_patients": len({item.get("patient") or item["name"] for item in items}) if patients_known(items) else None,
        "num_without_lesions": int((counts.sum(axis=1) == 0).sum()),
        "num_ignored": sum(int(np.sum(item["box_ignore"])) for item in items),
        "classes": {
            name: {"num_lesions": int(of_class.sum()), "num_images": int((of_class > 0).sum())}
            for name, of_class in zip(classes, counts.T, strict=True)
        },
    }


def _check_rows(
    rows: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any] | None, unit: str
) -> None:
    for name, given in (("a row", rows), *((("a row of the baseline", baseline["rows"]),) if baseline else ())):
        if len(given) != len(items):
            raise ValueError(f"report_detection: wanted {name} for each of {len(items)} test {unit}s, got {len(given)}")
    for row, item in zip(rows, items, strict=True):
        if row["image"] != item["name"]:
            raise ValueError(
                f"report_detection: wanted rows in the order of the test {unit}s, got {row['image']} for {item['name']}"
            )


def _print_beside(metrics: Mapping[str, Any], unit: str) -> None:
    patients = "patients unknown" if metrics["num_patients"] is None else f"{metrics['num_patients']} patients"
    title = f"{metrics['num_images']} {unit}s, {patients}, {metrics['num_lesions']} lesions"
    if shown := [value for value in metrics["threshold"] or () if value is not None]:
        title += f"; {at_threshold(shown)}"
    beside = {metrics["baseline"]["name"]: metrics["baseline"]["metrics"]} if metrics["baseline"] else {}
    table = Table(Column(no_wrap=True), "network", Column("95%", no_wrap=True), *beside, title=title)
    described = detection_words(unit, RATES, len(metrics["classes"]))
    for name, value in metrics["metrics"].items():
        if name not in described and not name.startswith("ap_"):
            continue
        ends = metrics["intervals"].get(name)
        interval = "n/a" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        others = ("" if name not in other else _number(other[name]) for other in beside.values())
        table.add_row(name, _number(value), interval, *others)
    Console().print(table)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
