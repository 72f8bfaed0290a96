"""What an evaluation and an inference do, from the engine to the files."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from monai_pipelines.engines.evaluator import TrainedSupervisedEvaluator
from monai_pipelines.handlers import CollectFeatures
from monai_pipelines.report.evaluation import report_evaluation, write_inference


def evaluate(
    evaluator: TrainedSupervisedEvaluator,
    datasets: Any,
    output_dir: str | PathLike[str],
    title: str,
    unit: str = "image",
    key_metric: str = "roc_auc",
    subgroups: Sequence[str] = (),
) -> dict[str, Any]:
    """Run an evaluator over the test data and write the report, see `monai_pipelines.report.report_evaluation`.

    Args:
        evaluator: of ``datasets.test``; those of its handlers that have ``results`` and ``pictures`` are reported.
        datasets: ``train``, ``validation`` and ``test``.
        output_dir, title, unit, key_metric, subgroups: of `report_evaluation`.

    Returns:
        the content of ``metrics.json``.
    """
    features = CollectFeatures(evaluator.trained.model.network)
    features.attach(evaluator)
    evaluator.run()
    return report_evaluation(
        output_dir,
        title,
        evaluator.trained,
        evaluator.predictions.rows,
        datasets,
        features=features.features,
        unit=unit,
        key_metric=key_metric,
        subgroups=subgroups,
        explanations=[handler for handler in evaluator.handlers if hasattr(handler, "pictures")],
    )


def predict(evaluator: TrainedSupervisedEvaluator, output_dir: str | PathLike[str]) -> Path:
    """Run an evaluator over unlabelled data and write ``predictions.csv``, see `write_inference`.

    Returns:
        the file.
    """
    evaluator.run()
    return write_inference(output_dir, evaluator.trained, evaluator.predictions.rows, evaluator.dataset)
