"""The folder of a run, read in one place."""

from __future__ import annotations

import csv
import json
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

_CHECKPOINTS = ("best.pt", "last.pt", "previous.pt")
_EVALUATION = (
    *("report.html", "metrics.json", "evaluation.json", "predictions.csv", "pictures", "tensorboard/evaluation"),
    *("explanations", "attention", "attention.csv", "geojson", "label_maps", "classes.png", "roc.png", "froc.png"),
    *("precision_recall.png", "calibration.png", "risk_coverage.png", "confusion_matrix.png", "decision_curve.png"),
    *("size.png", "subgroups_*.png", "embedding_*.png"),
)
_OF_THE_MACHINE = ("checkpoint", "device", "num_workers", "on_error")


class RunFolder:
    """What a training and its evaluation left. Files are read when asked for; what is not there is None.

    Args:
        path: the ``output_dir`` of the training.

    Raises:
        ValueError: later, a file that is not the JSON it should be.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def run(self) -> dict[str, Any] | None:
        """``run.json``, see `monai_pipelines.runs.record_run`."""
        return self._json("run.json", dict)

    @property
    def history(self) -> list[dict[str, Any]] | None:
        """``history.json``: ``{"epoch": 1, "lr": 0.001, "train": {"loss": 0.7, ...}, "val": {...}}`` per epoch."""
        return self._json("history.json", list)

    @property
    def metrics(self) -> dict[str, Any] | None:
        """``metrics.json`` of the evaluation."""
        return self._json("metrics.json", dict)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """``evaluation.json``, from which the report is rendered."""
        return self._json("evaluation.json", dict)

    @property
    def bundle(self) -> str:
        """Name of the bundle that was trained, empty if unknown."""
        return (self._json("configs/metadata.json", dict) or {}).get("name", "")

    @property
    def configs(self) -> dict[str, str]:
        """Text of the config files that the training named, by name."""
        names = (self.run or {}).get("config_files", [])
        return {name: (self.path / "configs" / name).read_text("utf-8") for name in names}

    def predictions(self) -> list[dict[str, str]]:
        """Rows of ``predictions.csv``."""
        with (self.path / "predictions.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def clear(self, resumed: bool) -> None:
        """Remove what a training that starts would contradict: an evaluation, and unless resumed the checkpoints."""
        for name in _EVALUATION if resumed else (*_EVALUATION, *_CHECKPOINTS):
            for path in self.path.glob(name):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _json(self, name: str, kind: type) -> Any:
        file = self.path / name
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: no JSON ({error}): run the training or evaluation again") from error
        if not isinstance(content, kind):
            raise ValueError(f"{file}: wanted a {kind.__name__}, got a {type(content).__name__}")
        return content


def claim_folder(output_dir: str | PathLike[str], resume: bool = False, overwrite: bool = False) -> None:
    """Check that a training does not replace another one by accident.

    Args:
        output_dir: folder of the run.
        resume: whether the training goes on from its ``last.pt``.
        overwrite: whether it may replace what is there.

    Raises:
        FileExistsError: the folder holds checkpoints.
        ValueError: several processes that do not train together.
    """
    from monai_pipelines import processes  # torch, without which a report is written

    if processes.started_processes() > processes.num_processes():
        raise ValueError("started by torchrun without configs/multi_gpu.yaml: add it to --config_file")
    if not processes.is_main():
        return
    found = [name for name in _CHECKPOINTS if (Path(output_dir) / name).is_file()]
    if found and not (resume or overwrite):
        raise FileExistsError(
            f"{output_dir}: holds a trained run ({found[0]}); name another --output_dir, continue it with "
            "--resume true, or replace it with --overwrite true"
        )


def check_no_run(output_dir: str | PathLike[str]) -> None:
    """Check that results of other data do not replace those of a run.

    Raises:
        FileExistsError: the folder is that of a training.
    """
    if RunFolder(output_dir).run is not None:
        raise FileExistsError(
            f"{output_dir}: the folder of a training, whose evaluation would be replaced; name another, such as "
            f"{Path(output_dir, 'inference')}"
        )


def is_place(name: str) -> bool:
    """Whether an entry of a config says where things are, or depends on the machine."""
    return name in _OF_THE_MACHINE or name.endswith(("_dir", "_root"))
