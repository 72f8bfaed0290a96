"""An evaluation kept as files, from which its page can be written again without the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from monai_pipelines.report.page import png_bytes, read_history, write_report
from monai_pipelines.report.pictures import slices_figure, thumbnail
from monai_pipelines.report.results import plain_data

logger = logging.getLogger(__name__)

__all__ = ["rebuild_report", "save_evaluation", "save_picture"]


def save_picture(folder: str | PathLike[str], name: str, caption: str, image: Any, side: int = 192) -> dict[str, Any]:
    """Write an image for the page as ``pictures/<name>.png`` or ``.jpeg``.

    Args:
        folder: of the run.
        name: of the file; may hold no patient.
        caption: below the picture.
        image: 2D (C, H, W), as :func:`monai_pipelines.report.images_figure` takes it, or a volume (C, X, Y, Z), drawn
            as three slices.
        side: a 2D image's longest side in pixels, at most.

    Returns:
        the picture as :func:`monai_pipelines.report.write_report` takes it: ``caption``, ``file`` (relative to the
        folder), ``volume``, ``anatomical`` (a volume that is known to lie in RAS), ``small`` (shown pixel by pixel).

    Example:
        >>> from tempfile import mkdtemp
        >>> import numpy as np
        >>> save_picture(mkdtemp(), "sample-0", "healthy", np.zeros((1, 28, 28), np.uint8))["file"]
        'pictures/sample-0.png'
    """
    volume = len(image.shape) == 4
    kind, content = ("png", png_bytes(slices_figure([image], [""]), dpi=110)) if volume else thumbnail(image, side)
    file = Path("pictures") / f"{name}.{kind}"
    (Path(folder) / file).parent.mkdir(parents=True, exist_ok=True)
    (Path(folder) / file).write_bytes(content)
    return {
        "caption": caption,
        "file": file.as_posix(),
        "volume": volume,
        "anatomical": volume and hasattr(image, "affine"),
        "small": kind == "png" and not volume,
    }


def save_evaluation(folder: str | PathLike[str], content: Mapping[str, Any]) -> None:
    """Write ``evaluation.json``, from which :func:`rebuild_report` makes the page.

    It also keeps the run's ``history.json`` and, as far as the page tells it, ``run.json``: a later training in the
    same folder writes others.

    Args:
        folder: of the run.
        content: the arguments of :func:`monai_pipelines.report.write_report` but ``output_dir``, ``history`` and
            ``run``.
    """
    file = Path(folder) / "evaluation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {**content, **_training(Path(folder))}
    file.write_text(json.dumps(plain_data(content), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def rebuild_report(folder: str | PathLike[str]) -> dict[str, Any]:
    """Write the report of an evaluated run from ``evaluation.json`` and its pictures.

    Where the folder was trained again since, the page stays that of the evaluation, and a warning says so.

    Args:
        folder: of the run.

    Returns:
        the content of ``metrics.json``.

    Raises:
        ValueError: no run, not evaluated, a file that is no JSON, or a picture that is gone.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> rows = [{"image": f"{k}.nii", "label": k, "prob": [1.0 - k, float(k)]} for k in (0, 1)]
        >>> save_evaluation(folder, {"title": "Demo", "rows": rows, "class_names": ["healthy", "ill"]})
        >>> rebuild_report(folder)["metrics"]["accuracy"]
        1.0
    """
    root = Path(folder)
    evaluation = root / "evaluation.json"
    if not evaluation.is_file():
        if not (root / "run.json").is_file():
            raise ValueError(f"{root}: no run: wanted the output_dir of a training or evaluation")
        raise ValueError(f"{root}: not evaluated yet, there is no evaluation.json: run train.yaml with evaluate.yaml")
    now = plain_data(_training(root))
    content = {**now, **_read(evaluation)}
    if any(now[name] not in (None, content[name]) for name in now):
        logger.warning("%s: trained again since it was evaluated: the report tells the training before", root)
    try:
        return write_report(root, **content)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: the picture is gone: run the evaluation again") from error


def _training(folder: Path) -> dict[str, Any]:
    """``history`` and ``run`` of the files in a folder, None where there is none."""
    history, run = folder / "history.json", folder / "run.json"
    return {
        "history": read_history(history) if history.is_file() else None,
        "run": _told(_read(run)) if run.is_file() else None,
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: no JSON ({error}): run the evaluation again") from error
    return content


def _told(run: dict[str, Any]) -> dict[str, Any]:
    """``run.json`` for the page: of the chains their knobs, of the source its name; the rest stands in the file.

    Overrides are in the command.
    """
    chains = {name: run[name] and {k: v for k, v in run[name]["knobs"].items() if k != "keys"}
              for name in ("chain", "augmentation")}  # fmt: skip
    told = {**run, **chains, "source": Path(run["source"]).name}
    return {name: value for name, value in told.items() if name != "overrides"}
