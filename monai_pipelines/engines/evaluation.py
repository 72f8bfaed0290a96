"""What an evaluation and an inference do, from the engine to the files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Any

from rich.progress import track

from monai_pipelines.detection import Target
from monai_pipelines.detection.baseline import ThresholdBaseline
from monai_pipelines.engines.evaluator import TrainedSupervisedEvaluator
from monai_pipelines.handlers import CollectFeatures
from monai_pipelines.handlers.detection_metrics import in_source
from monai_pipelines.metrics import predicted_classes
from monai_pipelines.report.detection import report_detection, thresholds_of
from monai_pipelines.report.detection_results import Thresholds
from monai_pipelines.report.evaluation import report_evaluation, skipped_rows
from monai_pipelines.report.found_boxes import write_detections
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.words import at_threshold, decision_words
from monai_pipelines.runs import Trained
from monai_pipelines.transforms.boxes import BOX_AFFINE, BOX_KEYS

logger = logging.getLogger(__name__)

_NUM_LOGGED = 20  # rows
_OF_HANDLERS = ("explanations", "attention", "attention.csv", "geojson", "label_maps")


def evaluate(
    evaluator: TrainedSupervisedEvaluator, datasets: Any, output_dir: str | PathLike[str], title: str, **options: Any
) -> dict[str, Any]:
    """Run an evaluator over the test data and write the report, see `report_evaluation` and `report_detection`.

    Args:
        evaluator: of ``datasets.test``; those of its handlers that have ``results`` and ``pictures`` are reported.
        datasets: ``train``, ``validation`` and ``test``.
        output_dir, title, options: of `monai_pipelines.report.evaluation.report_evaluation`; of the options ``unit``,
            ``key_metric`` and ``subgroups``.

    Returns:
        the content of ``metrics.json``.
    """
    trained, predictions = evaluator.trained, evaluator.predictions
    if trained.model.detects:
        evaluator.run()
        baseline = _baseline(getattr(datasets.train, "dataset", datasets.train), datasets.test)
        metrics = report_detection(output_dir, title, trained, predictions.rows, datasets, baseline=baseline, **options)
    else:
        features = CollectFeatures(trained.model.network)
        features.attach(evaluator)
        evaluator.run()
        metrics = report_evaluation(
            *(output_dir, title, trained, predictions.rows, datasets),
            features=features.features,
            explanations=[handler for handler in evaluator.handlers if hasattr(handler, "pictures")],
            evidence_peak=next((h.evidence_peak for h in evaluator.handlers if hasattr(h, "evidence_peak")), None),
            **options,
        )
    _log_written(output_dir, "report.html", "metrics.json", "predictions.csv", *_OF_HANDLERS)
    return metrics


def predict(
    evaluator: TrainedSupervisedEvaluator, output_dir: str | PathLike[str] | None, unit: str = "image"
) -> list[dict[str, Any]]:
    """Run an evaluator over unlabelled data and write ``predictions.csv``: skipped images with their reason.

    Args:
        evaluator: of the data.
        output_dir: folder, made if missing; None: nothing is written.
        unit: what an input is called: image, scan or slide.

    Returns:
        a row for each input, as `monai_pipelines.engines.Run.predict` returns them.
    """
    evaluator.run()
    rows, dataset, trained = evaluator.predictions.rows, evaluator.dataset, evaluator.trained
    every, model = [*rows, *skipped_rows(dataset)], trained.model
    threshold = trained.decisions.threshold
    if output_dir is not None:
        file = Path(output_dir) / "predictions.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        if model.detects:
            write_detections(file, every, *_shown(trained), unit)
        else:
            write_predictions(file, every, model.classes, threshold, model.multilabel, unit)
    how = "" if threshold is None else f" {at_threshold(threshold)}"
    results = [_found(row, *_shown(trained)) if model.detects else _decided(row, trained) for row in every]
    for row in results[:_NUM_LOGGED]:
        logger.info("%s: %s", row["image"], row.get("words", "skipped"))
    logger.info("%d predicted%s, %d skipped", len(rows), how, len(dataset.skipped))
    if output_dir is not None:
        _log_written(output_dir, "predictions.csv", *_OF_HANDLERS)
    return results


def _log_written(folder: str | PathLike[str], *names: str) -> None:
    """Log which of these files and folders there are in a folder."""
    logger.info("wrote %s: %s", folder, ", ".join(name for name in names if (Path(folder) / name).exists()))


def _decided(row: Mapping[str, Any], trained: Trained) -> dict[str, Any]:
    """A row in words and by class."""
    if row.get("skipped"):
        return {"image": row["image"], "skipped": row["skipped"]}
    classes, multilabel, threshold = trained.model.classes, trained.model.multilabel, trained.decisions.threshold
    predicted = predicted_classes([row["prob"]], threshold, multilabel)[0]
    names = [name for name, yes in zip(classes, predicted, strict=True) if yes] if multilabel else classes[predicted]
    return {
        "image": row["image"],
        "prob": dict(zip(classes, row["prob"], strict=True)),
        "threshold": threshold,
        "predicted": names,
        "words": decision_words(row["prob"], classes, threshold, multilabel, row.get("spread")),
        **{key: row[key] for key in ("spread", "verdict") if key in row},
    }


def _found(row: Mapping[str, Any], classes: Sequence[str], threshold: Thresholds | None) -> dict[str, Any]:
    """A row with its boxes."""
    if row.get("skipped"):
        return {"image": row["image"], "skipped": row["skipped"]}
    found, cuts = row["found"], dict(zip(classes, threshold or [None] * len(classes), strict=True))
    boxes = [
        {"class": classes[label], "score": float(score), "box": [float(edge) for edge in box]}
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]
    if threshold is not None:
        for box in boxes:
            cut = cuts[box["class"]]
            box["shown"] = cut is not None and box["score"] >= cut
    top = max(boxes, key=itemgetter("score"), default=None)
    shown = sum(box.get("shown", True) for box in boxes)
    words = f"{shown} of {len(boxes)} boxes shown" + (
        f", highest score {top['class']} {top['score']:.2f}" if top else ""
    )
    verdict = {"verdict": row["verdict"]} if "verdict" in row else {}
    return {"image": row["image"], "boxes": boxes, "threshold": cuts, "words": words, **verdict}


def _shown(trained: Trained) -> tuple[list[str], Thresholds | None]:
    """Classes of a detector, and the scores from which their boxes are shown."""
    classes = list(trained.model.classes)
    return classes, thresholds_of(trained.decisions.threshold, len(classes))


def _baseline(train: Any, test: Any) -> dict[str, Any] | None:
    """What brightness alone finds in the test images, learned from whole training images; None: no lesion to learn."""
    if not any(train.num_lesions):  # or no training images
        return None
    targets = [Target(*(item[key] for key in BOX_KEYS)) for item in track(train, "reading training images")]
    spots = ThresholdBaseline().fit(_Images(train), targets)
    rows = []
    for item in track(test, "finding bright spots"):
        rows += in_source([spots.find(item["image"])], {BOX_AFFINE: [item[BOX_AFFINE]]})
    return {"name": "bright spots", "rows": rows}


class _Images(Sequence[Any]):
    """The images of a dataset, loaded when needed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]["image"]
