"""A bundle through its real command line, trained, evaluated and applied from a server that speaks S3."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.declared import declared_path
from monai_pipelines.phantoms import write_chest_xray_cohort
from tests.remote.servers import BUCKET, Proxy, serving

ROOT = declared_path("bundles") / "chest_xray_classification"
NUM_IMAGES = 200


def run(config: str, dataset_dir: str, output_dir: Path, *arguments: str) -> None:
    files = str([str(ROOT / "configs" / f"{name}.yaml") for name in (config, "demo")])
    command = ["run", "--bundle_root", str(ROOT), "--config_file", files, "--dataset_dir", dataset_dir]
    small = ["--output_dir", str(output_dir), "--size", "[32, 32]", "--max_epochs", "2"]
    small += ["--precision", "fp32"]  # not what is faster today
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *command, *small, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


def results(folder: Path) -> list[Any]:
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    history = json.loads((folder / "history.json").read_text()) if (folder / "history.json").exists() else []
    return [rows, *([epoch["train"]["loss"], epoch["val"]] for epoch in history)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "data"
    table = write_chest_xray_cohort(folder, NUM_IMAGES, size=64, progress=False)
    table.write_text("\n".join(table.read_text().splitlines()[: NUM_IMAGES + 1]))
    return folder


def train_and_evaluate(dataset_dir: str, output_dir: Path, cache_dir: str) -> list[Any]:
    run("train", dataset_dir, output_dir, "--cache_dir", cache_dir)
    run("train", dataset_dir, output_dir, "--cache_dir", cache_dir, "--run_id", "evaluate")
    return results(output_dir)


@pytest.fixture(scope="module")
def wanted(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the same images give on this machine."""
    folder = tmp_path_factory.mktemp("local")
    return train_and_evaluate(str(cohort), folder / "run", str(folder / "cache"))


@pytest.mark.nightly
@pytest.mark.parametrize("every", [0, 10], ids=["whole", "every tenth request fails"])
def test_training_from_a_store(
    every: int,
    put: Any,
    s3_port: int,
    cohort: Path,
    wanted: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = put(cohort, "cohort")
    with ExitStack() as stack:
        proxy = stack.enter_context(serving(Proxy(s3_port, every or 10**9)))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert train_and_evaluate(url, tmp_path / "run", f"s3://{BUCKET}/cache") == wanted
        trained = proxy.count, proxy.spoiled
        run("inference", f"{url}/table.csv", tmp_path / "found", "--checkpoint", str(tmp_path / "run" / "best.pt"))
        print(f"requests {proxy.count} (training and evaluation {trained[0]}), spoiled {proxy.spoiled}")
        assert proxy.spoiled > NUM_IMAGES if every else proxy.spoiled == 0
    assert len(results(tmp_path / "found")[0]) == NUM_IMAGES
