"""What follows a training, on one bundle: decisions stored in the checkpoint, ensembles, pages, comparison."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from monai_pipelines.declared import declared_path
from monai_pipelines.report import rebuild_report
from monai_pipelines.report.comparison import compare_runs
from tests.bundles.conftest import CASES, check_metrics, demo_of

NAME = "fundus_classification"
ROOT = declared_path("bundles") / NAME

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group(NAME)]


@pytest.fixture(autouse=True)
def _random_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    set_determinism(None)


@pytest.fixture(scope="module")
def data() -> Path:
    return demo_of(NAME).data


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on one split, evaluated."""
    folders = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for folder, rate in zip(folders, (0.003, 0.001), strict=True):
        for run_id in ("run", "evaluate"):
            _run(folder, "train", run_id, dataset_dir=str(data), learning_rate=rate, max_epochs=1)
    return folders


def _run(output: Path, entry: str, run_id: str = "run", **override: Any) -> None:
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in (entry, "demo")]
    settings = {"bundle_root": str(ROOT), "output_dir": str(output), "cache_dir": None, "num_workers": 0}
    kind = "train" if entry == "train" else "infer"
    flow = ConfigWorkflow(
        files, logging_file=False, run_id=run_id, workflow_type=kind, **{**settings, **CASES[NAME].small, **override}
    )
    flow.initialize()
    flow.run()


def _rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def _prob(folder: Path) -> np.ndarray:
    return np.array([float(row["prob_disease"]) for row in _rows(folder).values()])


def test_decisions_of_the_validation_are_those_of_evaluation_and_inference(
    data: Path, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = runs[0]
    card = torch.load(run / "best.pt", weights_only=True)
    metrics = check_metrics(run)
    assert metrics["threshold"] == card["threshold"]
    assert metrics["threshold_by"] == card["threshold_by"] == "youden"
    assert metrics["calibration"]["temperature"] == card["temperature"] != 1

    images = {"dataset_dir": str(data / "disease")}
    _run(tmp_path / "given", "inference", **images, checkpoint=str(run / "best.pt"))
    other = {**card, "temperature": 2 * card["temperature"], "threshold": 0.999999}
    torch.save(other, tmp_path / "other.pt")
    _run(tmp_path / "other", "inference", **images, checkpoint=str(tmp_path / "other.pt"))
    torch.save({k: v for k, v in card.items() if k not in ("temperature", "threshold")}, tmp_path / "without.pt")
    _run(tmp_path / "without", "inference", **images, checkpoint=str(tmp_path / "without.pt"))
    odds = {name: np.log(p / (1 - p)) for name in ("given", "other", "without") for p in [_prob(tmp_path / name)]}
    np.testing.assert_allclose(odds["given"], 2 * odds["other"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(odds["given"], odds["without"] / card["temperature"], rtol=1e-3, atol=1e-5)
    assert {row["predicted_name"] for row in _rows(tmp_path / "other").values()} == {"normal"}


def test_page_is_written_again_from_the_files_alone(runs: tuple[Path, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(runs[0], tmp_path / "moved")
    pages = ("report.html", "metrics.json", "predictions.csv")
    before = {name: (moved / name).read_bytes() for name in pages}
    for name in pages:
        (moved / name).unlink()
    rebuild_report(moved)
    assert {name: (moved / name).read_bytes() for name in pages} == before
    assert b"Grad-CAM" in before["report.html"]
    assert len(list((moved / "explanations").iterdir())) == 6


def test_ensemble_is_the_mean_of_its_members(data: Path, runs: tuple[Path, Path], tmp_path: Path) -> None:
    members = ",".join(map(str, runs))
    _run(tmp_path, "train", "evaluate", dataset_dir=str(data), ensemble=members)
    np.testing.assert_allclose(_prob(tmp_path), np.mean([_prob(run) for run in runs], axis=0), atol=1e-5)
    spread = [float(row["spread"]) for row in _rows(tmp_path).values()]
    np.testing.assert_allclose(spread, np.std([_prob(run) for run in runs], axis=0), atol=1e-5)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [Path(member["file"]) for member in metrics["members"]] == list(runs)
    assert metrics["uncertainty_by_spread"]
    _run(tmp_path / "inference", "inference", dataset_dir=str(data / "disease"), ensemble=members)
    inferred = {name.rpartition("/")[2]: row for name, row in _rows(tmp_path / "inference").items()}
    both = [
        (row, inferred[n])
        for n, row in ((k.rpartition("/")[2], v) for k, v in _rows(tmp_path).items())
        if n in inferred
    ]
    assert both
    for evaluated, predicted in both:
        assert float(predicted["spread"]) == pytest.approx(float(evaluated["spread"]), abs=1e-5)


def test_runs_are_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    result = compare_runs(*runs, tmp_path)
    values = [json.loads((run / "metrics.json").read_text())["metrics"]["roc_auc"] for run in runs]
    assert [result["metrics"]["roc_auc"][name] for name in "ab"] == pytest.approx(values)
    assert {file.name for file in tmp_path.iterdir()} >= {"comparison.html", "comparison.json"}
