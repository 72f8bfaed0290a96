"""The folder of a run, read in one place."""

from __future__ import annotations

import csv
import json
from os import PathLike
from pathlib import Path
from typing import Any

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


def is_place(name: str) -> bool:
    """Whether an entry of a config says where things are, or depends on the machine."""
    return name in _OF_THE_MACHINE or name.endswith(("_dir", "_root"))
