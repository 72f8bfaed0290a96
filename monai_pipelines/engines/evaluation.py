"""What an evaluation and an inference do, from the engine to the files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rich.progress import track

from monai_pipelines.detection import Target
from monai_pipelines.detection.baseline import ThresholdBaseline
from monai_pipelines.engines.evaluator import TrainedSupervisedEvaluator
from monai_pipelines.handlers import CollectFeatures
from monai_pipelines.handlers.detection_metrics import in_source
from monai_pipelines.report.detection import report_detection, thresholds_of
from monai_pipelines.report.detection_results import Thresholds
from monai_pipelines.report.evaluation import report_evaluation, skipped_rows
from monai_pipelines.report.found_boxes import write_detections
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.words import at_threshold
from monai_pipelines.runs import Trained
from monai_pipelines.transforms.boxes import BOX_AFFINE, BOX_KEYS

logger = logging.getLogger(__name__)


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
        return report_detection(output_dir, title, trained, predictions.rows, datasets, baseline=baseline, **options)
    features = CollectFeatures(trained.model.network)
    features.attach(evaluator)
    evaluator.run()
    return report_evaluation(
        *(output_dir, title, trained, predictions.rows, datasets),
        features=features.features,
        explanations=[handler for handler in evaluator.handlers if hasattr(handler, "pictures")],
        evidence_peak=next((h.evidence_peak for h in evaluator.handlers if hasattr(h, "evidence_peak")), None),
        **options,
    )


def predict(evaluator: TrainedSupervisedEvaluator, output_dir: str | PathLike[str]) -> Path:
    """Run an evaluator over unlabelled data and write ``predictions.csv``: skipped images with their reason."""
    evaluator.run()
    file = Path(output_dir) / "predictions.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, dataset, trained = evaluator.predictions.rows, evaluator.dataset, evaluator.trained
    every, model = [*rows, *skipped_rows(dataset)], trained.model
    threshold = trained.decisions.threshold
    if model.detects:
        write_detections(file, every, *_shown(trained))
    else:
        write_predictions(file, every, model.classes, threshold, model.multilabel)
    how = "" if threshold is None else f" {at_threshold(threshold)}"
    logger.info("%d predicted%s, %d skipped: %s", len(rows), how, len(dataset.skipped), file)
    return file


def _shown(trained: Trained) -> tuple[list[str], Thresholds | None]:
    """Classes of a detector, and the scores from which their boxes are shown."""
    classes = list(trained.model.classes)
    return classes, thresholds_of(trained.decisions.threshold, len(classes))


def _baseline(train: Any, test: Any) -> dict[str, Any] | None:
    """What brightness alone finds in the test images, learned from whole training images; None: no lesion to learn."""
    if not any(train.num_lesions):
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
