"""One page that lists several runs."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

from monai_pipelines.report.page import page_template

__all__ = ["write_index"]

_FIGURES = {"roc_auc": "ROC AUC", "accuracy": "Accuracy", "ece": "ECE"}


def write_index(folder: str | PathLike[str]) -> Path:
    """Write ``index.html``: a table of the evaluated runs below a folder, sorted by a click on a column's name.

    Each line links to the report of its run. A run that is not evaluated, or whose files cannot be read, is listed with
    the reason. The page needs no network.

    Args:
        folder: with the folders of runs, at any depth.

    Returns:
        the page.

    Raises:
        FileNotFoundError: no run in the folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> root = Path(mkdtemp())
        >>> (root / "first").mkdir()
        >>> _ = (root / "first" / "run.json").write_text("{}")
        >>> "not evaluated yet" in write_index(root).read_text()
        True
    """
    root = Path(folder)
    folders = sorted({file.parent for name in ("metrics.json", "run.json") for file in root.rglob(name)})
    if not folders:
        raise FileNotFoundError(f"{root}: no run in it, wanted folders with metrics.json")
    runs, broken = [], []
    for own in folders:
        name = own.relative_to(root).as_posix()
        try:
            runs.append({"folder": name, **_read_run(own), "link": quote(f"{name}/report.html")})
        except (OSError, ValueError, KeyError) as error:
            lacking = isinstance(error, KeyError)
            broken.append({"folder": name, "reason": f"metrics.json has no {error}" if lacking else str(error)})
    file = root / "index.html"
    page = page_template("index.html.j2").render(runs=runs, broken=broken, figures=_FIGURES)
    file.write_text(page, encoding="utf-8")
    return file


def _read_run(folder: Path) -> dict[str, Any]:
    if not (folder / "metrics.json").is_file():
        raise ValueError("not evaluated yet")
    metrics = _read(folder / "metrics.json")
    if not (folder / "report.html").is_file():
        raise ValueError("no report.html: run the evaluation again")
    shortcut = metrics["shortcut"] or {}
    return {
        "title": _read(folder / "evaluation.json").get("title", folder.name),
        "networks": len(metrics.get("members") or [None]),
        "threshold": metrics["threshold"],
        "bundle": _read(folder / "configs" / "metadata.json").get("name", ""),
        "seed": metrics["run"].get("seed"),
        "fingerprint": metrics["run"].get("fingerprint"),
        "num_scans": metrics["num_scans"],
        "num_patients": metrics["num_patients"],
        "metrics": {name: metrics["metrics"].get(name) for name in _FIGURES},
        "intervals": metrics["intervals"],
        "shortcut": shortcut.get("roc_auc"),
    }


def _read(file: Path) -> dict[str, Any]:
    """The mapping of a JSON file, empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file.name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name}: wanted a mapping, got {type(content).__name__}")
    return content
