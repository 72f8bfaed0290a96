"""The report of an evaluated run, written again from its files."""

from __future__ import annotations

import logging
from os import PathLike
from typing import Any

from monai_pipelines.report.detection_page import DetectionEvaluation, write_detection_report
from monai_pipelines.report.page import write_report
from monai_pipelines.report.results import plain_data
from monai_pipelines.report.saved import Evaluation
from monai_pipelines.runs.folder import RunFolder

logger = logging.getLogger(__name__)


def rebuild_report(output_dir: str | PathLike[str]) -> dict[str, Any]:
    """Write the report of an evaluated run again, from ``evaluation.json`` and its pictures.

    If the folder was trained again since, the page stays that of the evaluation, and a warning says so.

    Args:
        output_dir: folder of the run.

    Returns:
        the content of ``metrics.json``.

    Raises:
        ValueError: no run, not evaluated, a file that is not JSON, or a picture that is missing.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> rows = [{"image": f"{k}.nii", "label": k, "prob": [1.0 - k, float(k)]} for k in (0, 1)]
        >>> Evaluation("Demo", rows, ["healthy", "ill"]).save(folder)
        >>> rebuild_report(folder)["metrics"]["accuracy"]
        1.0
    """
    task = (RunFolder(output_dir).evaluation or {}).get("task")
    kind: type[Evaluation | DetectionEvaluation] = (
        DetectionEvaluation if task == DetectionEvaluation.task else Evaluation
    )
    evaluation = kind.read(output_dir)
    now = evaluation.after_training(output_dir)
    if any(plain_data(getattr(now, name)) not in (None, getattr(evaluation, name)) for name in ("history", "run")):
        logger.warning("%s: trained again since the evaluation: the report shows the earlier training", output_dir)
    if isinstance(evaluation, DetectionEvaluation):
        return write_detection_report(output_dir, evaluation)
    return write_report(output_dir, evaluation)
