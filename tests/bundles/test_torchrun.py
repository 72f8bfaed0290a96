"""Every bundle trained by several processes, which torchrun starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from monai_pipelines.declared import declared_path, list_declared
from tests.bundles.conftest import Bundle, bundle_of, demo_of, options

ONE = "chest_xray_detection"
OVERLAYS = {"lung_nodule_ct_detection": "faster_rcnn", "lung_ct_classification": "patches"}


def _start(bundle: Bundle, folder: Path, *more: str, overlays: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    demo = demo_of(bundle.name)
    configs = str(bundle.config("train", "demo", *overlays, "multi_gpu"))
    arguments = ["--config_file", configs, "--bundle_root", str(bundle.root), *options(bundle, demo.data, folder)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
    environment = {**os.environ, "PYTHONPATH": str(declared_path("bundles").parent), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments, *more], env=environment, cwd=folder.parent, **pipes)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xdist_group(name), *([] if name == ONE else [pytest.mark.nightly])])
        for name in list_declared("bundles")
    ],
)
@pytest.mark.parametrize("overlay", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_two_processes(name: str, overlay: bool, tmp_path: Path) -> None:
    if overlay and name not in OVERLAYS:
        pytest.skip("no overlay of this bundle is tried")
    bundle, folder = bundle_of(name), tmp_path / "run"
    overlays = (OVERLAYS[name],) if overlay else ()
    small = ("--max_epochs", "2", "--batch_size", "2", "--checkpoint_every", "1")
    run = _start(bundle, folder, *small, overlays=overlays)
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert "2 processes: batch_size 2 in each, 4 in all; learning rate" in output, output
    assert [epoch["epoch"] for epoch in json.loads((folder / "history.json").read_text())] == [1, 2], output
    assert len(re.findall("epoch 2/2", output)) == 1  # by the main process only
    validation = demo_of(name).trained["best.pt"]
    assert torch.load(folder / "best.pt", weights_only=True)["num_validation"] == _num_validation(validation, tmp_path)
    assert json.loads((folder / "run.json").read_text())["settings"]["num_processes"] == 2


def _num_validation(checkpoint: bytes, folder: Path) -> int:
    (folder / "single.pt").write_bytes(checkpoint)
    return torch.load(folder / "single.pt", weights_only=True)["num_validation"]


@pytest.mark.nightly
@pytest.mark.xdist_group("chest_xray_classification")
def test_a_killed_process_ends_the_run_which_is_resumed_exactly(tmp_path: Path) -> None:
    bundle = bundle_of("chest_xray_classification")
    small = ("--max_epochs", "4", "--batch_size", "2", "--checkpoint_every", "1", "--precision", "fp32")
    _start(bundle, tmp_path / "whole", *small).communicate()
    folder = tmp_path / "killed"
    last = folder / "last.pt"
    for victim in (0, 1):
        run = _start(bundle, folder, *small, "--resume", "True")
        before = last.stat().st_mtime_ns if last.exists() else 0
        while not last.exists() or last.stat().st_mtime_ns == before:
            time.sleep(0.01)
        children = [int(line) for line in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        os.kill(children[victim], signal.SIGKILL)
        output, _ = run.communicate(timeout=120)
        assert run.returncode != 0
        assert "SIGKILL" in output
    run = _start(bundle, folder, *small, "--resume", "True")
    run.communicate()
    assert run.returncode == 0
    for file in ("best.pt", "history.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.nightly
@pytest.mark.xdist_group(ONE)
def test_torchrun_without_the_overlay(tmp_path: Path) -> None:
    bundle = bundle_of(ONE)
    configs = str(bundle.config("train", "demo"))
    run = _start(bundle, tmp_path / "run", "--config_file", configs)
    output, _ = run.communicate()
    assert run.returncode != 0
    assert "started by torchrun without configs/multi_gpu.yaml: add it to --config_file" in output
