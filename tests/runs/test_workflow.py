"""Runs that are started in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow, create_workflow
from monai.utils import set_determinism

from monai_pipelines.runs import inference_config

Start = Callable[..., ConfigWorkflow]


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Start:
    """start(*configs, **override): a workflow that only records."""

    def start(*configs: str, **override: Any) -> ConfigWorkflow:
        files = [str(bundle / "configs" / f"{name}.yaml") for name in configs]
        record = {"_target_": "monai_pipelines.runs.record_run", "output_dir": "@output_dir", "model": "@model",
                  "bundle_root": "@bundle_root", "cohort": "@cohort", "augmentation": None,
                  "source": "@dataset_dir"}  # fmt: skip
        item = {"name": "a", "patient": "a", "label": 0}
        cohort = {"_target_": "monai_pipelines.data.Cohort", "train": [item], "validation": [item], "test": [],
                  "classes": []}  # fmt: skip
        settings = {"bundle_root": str(bundle), "output_dir": str(tmp_path / "run"), "cohort": cohort, "run": [record]}
        flow = ConfigWorkflow(files, logging_file=False, **{**settings, **override})
        flow.initialize()
        set_determinism(None)
        return flow

    return start


def test_files_overrides_and_numbers_are_recorded(start: Start, tmp_path: Path) -> None:
    overrides = {"max_epochs": 3, "network_def::widen_factor": 0.25, "masking": "channel"}
    start("train", "demo", **overrides).run()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["config_files"] == ["train.yaml", "demo.yaml"]
    assert overrides.items() <= run["overrides"].items()
    assert run["overrides"].keys() == {*overrides, "bundle_root", "output_dir", "cohort", "run"}
    wanted = {"max_epochs": 3, "overlays": "demo", "network": "ResNet", "size": "64, 64, 64", "masking": "channel"}
    assert wanted.items() <= run["settings"].items()
    config = inference_config(tmp_path / "run")
    assert (config["size"], config["network_def"]["widen_factor"]) == ([64, 64, 64], 0.25)


def test_an_overlay_from_elsewhere_is_recorded_as_overrides(start: Start, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("learning_rate: 0.5\nmine: 7\nmax_epochs: '@mine'\n")
    start("train", str(tmp_path / "mine")).run()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["config_files"] == ["train.yaml"]
    assert {"learning_rate": 0.5, "mine": 7, "max_epochs": "@mine"}.items() <= run["overrides"].items()


@pytest.mark.parametrize("name", ["max_epoch", "patiense"])
def test_a_misspelt_override_is_refused(start: Start, name: str) -> None:
    with pytest.raises(SystemExit, match=f"--{name}: nothing in the configs is called '{name}' .did you mean"):
        start("train", **{name: 3})


def test_a_list_is_wanted(start: Start) -> None:
    with pytest.raises(SystemExit, match=r"--size 64: wanted a list, such as \"\[64,64,64\]\""):
        start("train", size=64)


def test_monais_function_records_alike(bundle: Path, tmp_path: Path) -> None:
    files = [str(bundle / "configs" / "train.yaml")]
    with pytest.warns(UserWarning, match="parsing config_file"), pytest.raises(SystemExit, match="max_epoch"):
        create_workflow(config_file=files, bundle_root=str(bundle), logging_file=False, max_epoch=3)
