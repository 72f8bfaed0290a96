"""A page that lists several runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

from monai_pipelines.report.page import page_template
from monai_pipelines.runs.folder import RunFolder, is_place

_METRICS = {  # of each task; the last is that of the baseline
    "classification": {"roc_auc": "ROC AUC", "accuracy": "Accuracy", "ece": "ECE", "shortcut": "Shortcut"},
    "detection": {
        **{"cpm": "CPM", "ap50": "AP50", "image_roc_auc": "Image ROC AUC"},
        **{"sensitivity": "Sensitivity", "false_positives_per_image": "False positives", "baseline": "Baseline CPM"},
    },
}
_SETTINGS = {  # of run.json, by which runs differ
    **{"network": "Architecture", "num_parameters": "Parameters", "overlays": "Overlays", "max_epochs": "Epochs"},
    **{"batch_size": "Batch", "learning_rate": "Learning rate", "inferer": "Inferer", "data": "Data"},
}
_SEEDS = ("seed", "split_seed")


def write_index(folder: str | PathLike[str]) -> Path:
    """Write ``index.html``: a table of the evaluated runs below a folder, and one of runs that are repetitions.

    Each run links to its report; runs that are not evaluated or cannot be read are listed with the reason. Runs of the
    same bundle, data, chain, configs and settings are summarized over their seeds and, in a cross-validation, their
    folds. The page is self-contained.

    Args:
        folder: contains the run folders, at any depth.

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
    for path in folders:
        name = path.relative_to(root).as_posix()
        try:
            runs.append({"folder": name, **_read_run(path), "link": quote(f"{name}/report.html")})
        except (OSError, ValueError, KeyError) as error:
            reason = f"metrics.json has no {error}: evaluate again" if isinstance(error, KeyError) else str(error)
            broken.append({"folder": name, "reason": reason})
    file = root / "index.html"
    groups = _groups(runs)
    tasks = [
        {
            "task": task,
            "names": names,
            "settings": {name: _SETTINGS[name] for name in _SETTINGS if any(name in run["settings"] for run in runs)},
            "runs": [run for run in runs if run["task"] == task],
            "groups": [group for group in groups if group["task"] == task],
        }
        for task, names in _METRICS.items()
    ]
    page = page_template("index.html.j2").render(
        runs=runs,
        folds=any(run["fold"] for run in runs),
        groups=groups,
        tasks=[part for part in tasks if part["runs"]],
        broken=broken,
    )
    file.write_text(page, encoding="utf-8")
    return file


def _read_run(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    metrics = folder.metrics
    if metrics is None:
        raise ValueError("not evaluated yet")
    if not (path / "report.html").is_file():
        raise ValueError("no report.html: run the evaluation again")
    run, task = metrics["run"], metrics.get("task", "classification")
    *names, simple = _METRICS[task]
    baseline = metrics["shortcut"] if task == "classification" else (metrics["baseline"] or {}).get("metrics")
    threshold = metrics["threshold"]
    return {
        "task": task,
        "title": (folder.evaluation or {}).get("title", path.name),
        "networks": len(metrics.get("members") or [None]),
        "threshold": threshold[0] if isinstance(threshold, list) and len(threshold) == 1 else threshold,
        "bundle": folder.bundle,
        "seeds": [run.get(name) for name in _SEEDS],
        "fold": _fold(run)[0],
        "fingerprint": run.get("fingerprint"),
        "settings": run.get("settings", {}),
        "num_images": metrics["num_images"],
        "num_patients": metrics["num_patients"],
        "metrics": {
            **{name: metrics["metrics"].get(name) for name in names},
            simple: (baseline or {}).get(names[0]),
        },
        "intervals": metrics["intervals"],
        "group": _group(folder, metrics),
    }


def _group(folder: RunFolder, metrics: Mapping[str, Any]) -> str | None:
    """All that defines a run but its seeds and fold, as text; None if unknown, or if it was trained again since."""
    run = folder.run or {}
    if "settings" not in run or run["command"] != metrics["run"].get("command"):
        return None
    num_folds = _fold(run)[1]
    repeated = (*_SEEDS, "split_fractions") if num_folds else _SEEDS
    numbers: list[Any] = [
        {name: value for name, value in run[part].items() if name not in repeated and not is_place(name)}
        for part in ("settings", "overrides")
    ]
    same = [num_folds, *(run[name] for name in ("config_files", "data_sha256", "fingerprint"))]
    evaluation = [len(metrics.get("members") or []), metrics.get("threshold_by")]
    return json.dumps([folder.bundle, same, evaluation, numbers], sort_keys=True, default=str)


def _fold(run: Mapping[str, Any]) -> tuple[int | None, int]:
    """The fold of a run, and the number of folds; (None, 0) where there are none."""
    fractions = run.get("split_fractions") or []
    return (int(fractions[0]), int(fractions[1])) if len(fractions) == 2 else (None, 0)


def _groups(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean, standard deviation and range of runs that differ only in seed and fold, where there are several."""
    by_group: dict[str, dict[tuple[Any, ...], Mapping[str, Any]]] = {}
    for run in runs:
        if run["group"] is not None:
            by_group.setdefault(run["group"], {})[(*run["seeds"], run["fold"])] = run
    return [
        {
            "task": next(iter(members.values()))["task"],
            "folders": [run["folder"] for run in members.values()],
            "bundle": next(iter(members.values()))["bundle"],
            "num_runs": len(members),
            "num_seeds": len({seed for seed, *_ in members}),
            "num_folds": len({fold for *_, fold in members if fold is not None}),
            "same_split": len({split for _, split, _ in members}) == 1,
            "metrics": {
                name: _spread([run["metrics"][name] for run in members.values()])
                for name in next(iter(members.values()))["metrics"]
            },
        }
        for members in by_group.values()
        if len(members) > 1
    ]


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.stdev(defined) if len(defined) > 1 else None,
        "range": [min(defined), max(defined)] if defined else None,
        "num_runs": len(defined),
    }
