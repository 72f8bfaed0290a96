"""A bundle from any folder, and what is refused before it runs, by the real command line."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines import phantoms
from tests.new_process import run_module

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("run")]

BUNDLE = "fundus_classification"
SMALL = ["--size", "[32,32]", "--batch_size", "4", "--max_epochs", "1", "--num_workers", "0", "--cache_dir", "null"]
CONFIGS = "['configs/train.yaml','configs/demo.yaml']"


def _run(cwd: Path, *arguments: Any, bundle: str = BUNDLE, configs: str = CONFIGS) -> subprocess.CompletedProcess[str]:
    named = ["--bundle_root", bundle, "--config_file", configs, *arguments]
    return run_module("monai_pipelines", "run", *map(str, named), cwd=cwd)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms.write_fundus_cohort(
        tmp_path_factory.mktemp("data") / "fundus", 16, size=64, num_workers=1, progress=False
    )


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    """A working directory with a run that was trained, with another key metric, and evaluated without it."""
    options = ["--dataset_dir", data, *SMALL]
    for more in (["--key_metric", "accuracy"], ["--run_id", "evaluate"]):
        result = _run(data.parent, *options, *more)
        assert result.returncode == 0, result.stderr[-3000:]
    return data.parent


def test_outputs_go_to_the_working_directory_and_say_what_was_run(folder: Path) -> None:
    run = json.loads((folder / "output" / "run.json").read_text())
    assert run["command"].startswith("python -m monai_pipelines run --bundle_root fundus_classification")
    assert run["config_files"] == ["train.yaml", "demo.yaml"]
    wanted = {"network": "ResNet", "overlays": "demo", "batch_size": 4, "max_epochs": 1, "key_metric": "accuracy"}
    assert wanted.items() <= run["settings"].items()
    assert run["settings"]["num_parameters"] > 1e6


def test_the_evaluation_remembers_the_key_metric(folder: Path) -> None:
    assert json.loads((folder / "output" / "evaluation.json").read_text())["key_metric"] == "accuracy"


def test_another_training_is_refused_and_replaces_an_evaluation_only_on_request(folder: Path, data: Path) -> None:
    output = folder / "output"
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*")}
    refused = _run(folder, "--dataset_dir", data, *SMALL)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: output: holds a trained run (best.pt)")
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*")} == before
    replaced = _run(folder, "--dataset_dir", data, *SMALL, "--overwrite", "true")
    assert replaced.returncode == 0, replaced.stderr[-3000:]
    assert {file.name for file in output.iterdir()} == {
        *("best.pt", "last.pt", "configs", "history.json", "history.png", "run.json", "tensorboard")
    }


WRONG = {
    "evaluated first": (["--run_id", "evaluate"], r"new.best\.pt: no such checkpoint; train first"),
    "explain": (["--explain", "gradcamm"], r"one of gradcam, gradcam\+\+, occlusion, got 'gradcamm'"),
    "column": (["--subgroups", "['site']"], "error: subgroups: no column site; there are "),
    "size": (["--size", "64"], re.escape('--size 64: wanted a list, such as "[64,64]"')),
    "separator": (["--classes", "normal;disease"], "wanted a list, such as .*'normal','disease'"),
    "folders": (["--classes", "['healthy','ill']"], r"add --classes \"\['normal','disease'\]\""),
    "misspelt": (["--max_epoch", "1"], r"--max_epoch: .* \(did you mean 'max_epochs'\?\)"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_found_before_anything_is_trained(
    data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    options = ["--dataset_dir", data, "--output_dir", tmp_path / "new", *SMALL]
    result = _run(tmp_path, *options, *arguments)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr)
    assert not (tmp_path / "new" / "best.pt").exists()


def test_configs_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    slides = _run(tmp_path, bundle="histology_slide_classification", configs="configs/train.yaml")
    assert "error: no weights for the tile network: name them with --backbone_weights" in slides.stderr
    options = ["--flag", "organmnist3d", "--dataset_dir", tmp_path]
    volumes = _run(tmp_path, *options, bundle="medmnist_classification", configs="configs/train.yaml")
    assert "organmnist3d: its images are 3D, the network takes 2D; add the overlay volume.yaml" in volumes.stderr
    flag = _run(tmp_path, "--flag", "pathmnis", bundle="medmnist_classification", configs="configs/train.yaml")
    assert "\nerror: no MedMNIST set 'pathmnis' (did you mean 'pathmnist'?)" in "\n" + flag.stderr
    alone = _run(tmp_path, configs="configs/demo.yaml")
    assert "demo.yaml: changes train.yaml or inference.yaml and does not run alone" in alone.stderr
