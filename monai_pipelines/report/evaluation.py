"""The end of an evaluation: predictions beside the shortcut baseline, written as a report."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from monai_pipelines.data import PreparedDataset
from monai_pipelines.metrics import shortcut_baseline
from monai_pipelines.report.page import read_history, write_predictions, write_report

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4


def report_evaluation(
    output_dir: str | PathLike[str],
    title: str,
    rows: Sequence[dict[str, Any]],
    train: PreparedDataset,
    validation: PreparedDataset,
    test: PreparedDataset,
    classes: Sequence[str],
    key_metric: str = "roc_auc",
) -> dict[str, Any]:
    """Write the report of predictions on ``test``, with the shortcut baseline fitted on ``train``.

    Args:
        output_dir: folder of the run; its ``history.json`` and ``run.json`` are used where they are there.
        title: of the page.
        rows: of `CollectPredictions`, in the order of ``test``.
        train, validation, test: the datasets; their ``shortcut`` holds the features of the baseline.
        classes: class names by index.
        key_metric: validation figure that chose the best epoch.

    Returns:
        the content of ``metrics.json``.
    """
    features = [
        np.stack([np.asarray(dataset[i]["shortcut"]) for i in range(len(dataset))]) for dataset in (train, test)
    ]
    baseline = shortcut_baseline(features[0], [item["label"] for item in train.data], features[1], len(classes))
    scored: list[dict[str, Any]] = [
        {**row, "split": "test", "shortcut_prob": prob} for row, prob in zip(rows, baseline.tolist(), strict=True)
    ]
    splits = {"train": train, "validation": validation, "test": test}
    skipped = [{**row, "split": split} for split, dataset in splits.items() for row in _skipped(dataset)]
    folder = Path(output_dir)
    history, run = folder / "history.json", folder / "run.json"
    samples = [(f"{test.data[i]['name']} ({classes[test.data[i]['label']]})", test[i]["image"]) for i in _spread(test)]
    metrics = write_report(
        folder,
        title=title,
        rows=[*scored, *skipped],
        class_names=classes,
        history=read_history(history) if history.is_file() else None,
        key_metric=key_metric,
        run=_told(json.loads(run.read_text())) if run.is_file() else None,
        samples=samples,
    )
    _print_beside(metrics)
    return metrics


def write_inference(
    output_dir: str | PathLike[str], rows: Sequence[dict[str, Any]], dataset: PreparedDataset, classes: Sequence[str]
) -> Path:
    """Write ``predictions.csv`` of an inference: a line for each scan, skipped ones with their reason.

    Args:
        output_dir: folder, made if missing.
        rows: of `CollectPredictions`.
        dataset: what was predicted; tells the skipped scans.
        classes: class names by index.

    Returns:
        the file.
    """
    file = Path(output_dir) / "predictions.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(file, [*rows, *_skipped(dataset)], classes)
    logger.info("%d scans predicted, %d skipped: %s", len(rows), len(dataset.skipped), file)
    return file


def _told(run: dict[str, Any]) -> dict[str, Any]:
    """``run.json`` for the page: of the chains their knobs, of the table its name; the rest stands in the file."""
    chains = {name: run[name] and {k: v for k, v in run[name]["knobs"].items() if k != "keys"}
              for name in ("chain", "augmentation")}  # fmt: skip
    return {**run, **chains, "table": Path(run["table"]).name}


def _skipped(dataset: PreparedDataset) -> list[dict[str, Any]]:
    kept = ("patient", "label", "skipped")
    return [{"image": i["name"], "prob": None, **{k: i[k] for k in kept if k in i}} for i in dataset.skipped]


def _spread(dataset: PreparedDataset) -> list[int]:
    """A few items, classes in turn."""
    by_class: dict[int, list[int]] = {}
    for index, item in enumerate(dataset.data):
        by_class.setdefault(item["label"], []).append(index)
    turns = [i for turn in zip(*by_class.values(), strict=False) for i in turn]
    return turns[:NUM_SAMPLES]


def _print_beside(metrics: dict[str, Any]) -> None:
    table = Table("", "network", "shortcut", title=f"{metrics['num_scans']} scans, {metrics['num_patients']} patients")
    for name, value in metrics["metrics"].items():
        table.add_row(name, *("n/a" if v is None else f"{v:.3f}" for v in (value, metrics["shortcut"][name])))
    Console().print(table)
