"""Trainings that are killed at any moment and resumed leave the bytes of one that is not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundles.conftest import bundle_of, demo_of, options
from tests.new_process import run_module

NAMES = (
    *("lung_ct_classification", "chest_xray_classification", "histology_slide_classification"),
    "lung_nodule_ct_detection",
)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _while_saving(folder: Path, saves: int) -> Callable[[], bool]:
    """When the temporary file of the n-th checkpoint from now on appears."""
    seen: set[str] = set()

    def now() -> bool:
        seen.update(file.name for file in folder.glob("*.pt.*.part"))
        return len(seen) >= saves

    return now


@pytest.mark.parametrize(
    ("name", "num_kills"),
    [
        pytest.param("medmnist_classification", 2, marks=pytest.mark.xdist_group("medmnist_classification")),
        *(pytest.param(name, 10, marks=[pytest.mark.xdist_group(name), pytest.mark.nightly]) for name in NAMES),
    ],
)
def test_killed_and_resumed(name: str, num_kills: int, tmp_path: Path) -> None:
    bundle, demo = bundle_of(name), demo_of(name)
    epochs = 2 + num_kills // 3
    folders = [name for name in ("cache", "features") if (demo.run / name).is_dir()]
    prepared = [part for name in folders for part in (f"--{name}_dir", str(demo.run / name))]

    def train(folder: Path, *more: str, kill_when: Callable[[], bool] | None = None) -> int:
        arguments = ["run", "--config_file", str(bundle.config("train", "demo")), "--bundle_root", str(bundle.root)]
        arguments += [*options(bundle, demo.data, folder), *prepared, "--max_epochs", str(epochs)]
        arguments += ["--precision", "fp32", *more]  # the choice of "auto" is a measurement
        result = run_module("monai.bundle", *arguments, cwd=tmp_path, kill_when=kill_when)
        assert result.returncode in (0, -9), result.stderr[-3000:]
        return result.returncode

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.monotonic()
    train(whole)
    seconds = time.monotonic() - start
    moments, statuses = random.Random(name), []
    for number in range(num_kills):
        kill = _while_saving(killed, moments.choice((1, 2, 3))) if number % 2 else _after(moments.uniform(0, seconds))
        statuses.append(train(killed, "--resume", "True", "--checkpoint_every", "1", kill_when=kill))
    assert -9 in statuses
    train(killed, "--resume", "True", "--checkpoint_every", "1")
    for file in ("best.pt", "history.json"):
        assert (whole / file).read_bytes() == (killed / file).read_bytes(), file
