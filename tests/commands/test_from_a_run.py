"""predict, evaluate, explain and compare by the command line, on real images, without repeating a knob."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monai_pipelines.declared import declared_path
from tests.bundles.conftest import run_command

app = import_module("monai_pipelines.__main__").app

BUNDLE = declared_path("bundles") / "chest_xray_classification"
Command = Callable[..., str]


@pytest.fixture
def command() -> Command:
    """What ``python -m monai_pipelines ARGUMENTS`` prints."""

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"}, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def _copied(source: Path, target: Path, num: int) -> None:
    target.mkdir(parents=True)
    for file in sorted(source.iterdir())[:num]:
        shutil.copy(file, target)


@pytest.mark.slow
def test_the_whole_way_on_real_images(shared_data: Path, tmp_path: Path, command: Command) -> None:
    """Trained for an epoch on X-rays, evaluated on others whose folders have other names."""
    names = {"NORMAL": "healthy", "PNEUMONIA": "ill"}
    for theirs, ours in names.items():
        _copied(shared_data / "chest_xray" / "train" / theirs, tmp_path / "data" / ours, 12)
        _copied(shared_data / "chest_xray" / "test" / theirs, tmp_path / "other" / theirs, 4)
    run, small = tmp_path / "run", ["--size", "[48,48]", "--max_epochs", "1", "--num_workers", "0"]
    arguments = ["--dataset_dir", str(tmp_path / "data"), "--output_dir", str(run), "--classes", "['healthy','ill']"]
    configs = "['configs/train.yaml','configs/demo.yaml']"
    trained = run_command(BUNDLE, "run", "--config_file", configs, "--subgroups", "[]", *arguments, *small)
    assert f"wrote {run}: best.pt, last.pt" in trained.stdout

    mapped = ["--map", ",".join(f"{theirs}={ours}" for theirs, ours in names.items())]
    printed = command("evaluate", run, tmp_path / "other", "--out", tmp_path / "a", *mapped)
    assert printed.splitlines()[-1] == f"wrote {tmp_path / 'a'}: report.html, metrics.json, predictions.csv"
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert {name: count["num_images"] for name, count in metrics["classes"].items()} == {"healthy": 4, "ill": 4}
    assert metrics["threshold"] is not None

    printed = command("predict", run, tmp_path / "other", "--out", tmp_path / "predicted")
    assert f"8 predicted, 0 skipped: wrote {tmp_path / 'predicted' / 'predictions.csv'}" in printed
    with (tmp_path / "predicted" / "predictions.csv").open() as file:
        predicted = {row["image"]: row for row in csv.DictReader(file)}
    with (tmp_path / "a" / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            assert float(row["prob_ill"]) == pytest.approx(float(predicted[row["image"]]["prob_ill"]), abs=1e-4)
            assert float(row["threshold"]) == metrics["threshold"]
            assert (row["reached"] == "1") == (row["predicted_name"] == "ill")
            assert row["unit"] == "image"

    command("explain", run, tmp_path / "other", "--out", tmp_path / "why")
    assert len([*(tmp_path / "why").rglob("explanation.png")]) == 8

    command("evaluate", run, tmp_path / "other", "--out", tmp_path / "b", *mapped, "--knob", "threshold=0.99")
    printed = command("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "compared")
    assert "8 images in common" in printed


def test_a_map_that_is_none_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path), str(tmp_path), "--map", "NORMAL"])
    assert result.exit_code == 2
    assert "--map wants THEIRS=YOURS" in result.output


def test_no_run_is_an_error(tmp_path: Path) -> None:
    for name in ("predict", "evaluate"):
        with pytest.raises(ValueError, match=r"no run: wanted the output_dir of a training, which has a run\.json"):
            CliRunner().invoke(app, [name, str(tmp_path), str(tmp_path)], catch_exceptions=False)
