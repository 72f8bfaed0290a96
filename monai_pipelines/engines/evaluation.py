"""What an evaluation and an inference do, from the engine to the files."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any

from monai_pipelines.engines.evaluator import TrainedSupervisedEvaluator
from monai_pipelines.handlers import CollectFeatures
from monai_pipelines.report.evaluation import report_evaluation, skipped_rows
from monai_pipelines.report.predictions import write_predictions
from monai_pipelines.report.words import at_threshold

logger = logging.getLogger(__name__)


def evaluate(
    evaluator: TrainedSupervisedEvaluator, datasets: Any, output_dir: str | PathLike[str], title: str, **options: Any
) -> dict[str, Any]:
    """Run an evaluator over the test data and write the report, see `report_evaluation`.

    Args:
        evaluator: of ``datasets.test``; those of its handlers that have ``results`` and ``pictures`` are reported.
        datasets: ``train``, ``validation`` and ``test``.
        output_dir, title, options: of `monai_pipelines.report.evaluation.report_evaluation`; of the options ``unit``,
            ``key_metric`` and ``subgroups``.

    Returns:
        the content of ``metrics.json``.
    """
    features = CollectFeatures(evaluator.trained.model.network)
    features.attach(evaluator)
    evaluator.run()
    return report_evaluation(
        *(output_dir, title, evaluator.trained, evaluator.predictions.rows, datasets),
        features=features.features,
        explanations=[handler for handler in evaluator.handlers if hasattr(handler, "pictures")],
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
    write_predictions(file, every, model.classes, threshold, model.multilabel)
    how = "" if threshold is None else f" {at_threshold(threshold)}"
    logger.info("%d predicted%s, %d skipped: %s", len(rows), how, len(dataset.skipped), file)
    return file
