"""Every bundle through its real command line."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_pipelines.declared import declared_path
from monai_pipelines.explain.scan import explain_scan

ROOT = declared_path("bundles").parent

pytestmark = pytest.mark.slow


def _run(cwd: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0 or not check, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _options(bundle: Any, dataset_dir: Path, output_dir: Path) -> list[str]:
    small = [part for name, value in bundle.case.small.items() for part in (f"--{name}", str(value))]
    return ["--dataset_dir", str(dataset_dir), "--output_dir", str(output_dir), *small]


def _check_row(row: dict[str, str], threshold: float | None) -> None:
    prob = [float(value) for name, value in row.items() if name.startswith("prob_")]
    assert row["skipped"] == ""
    assert sum(prob) == pytest.approx(1, abs=1e-4)
    wanted = prob.index(max(prob)) if threshold is None else int(prob[1] >= threshold)
    assert row["predicted"] == str(wanted)


@pytest.fixture(scope="module")
def trained(bundle: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the demo network, from the bundle's own folder."""
    output = tmp_path_factory.mktemp("trained")
    configs = "['configs/train.yaml','configs/demo.yaml']"
    _run(bundle.root, "run", "--config_file", configs, "--max_epochs", "1", *_options(bundle, data, output))
    return output


def test_training_leaves_what_is_needed(bundle: Any, data: Path, trained: Path) -> None:
    wanted = {"best.pt", "last.pt", "configs", "history.json", "history.png", "run.json", "tensorboard"}
    assert {file.name for file in trained.iterdir()} - {"cache", "features"} == wanted
    configs = bundle.root / "configs"
    kept = {file.name: file.read_text() for file in (trained / "configs").iterdir()}
    assert kept == {file.name: file.read_text() for file in configs.iterdir() if file.is_file()}
    run = json.loads((trained / "run.json").read_text())
    assert run["command"].startswith("python -m monai.bundle run --config_file ")
    assert "configs/demo.yaml" in run["command"]
    assert run["seed"] == 0
    checkpoint = torch.load(trained / "best.pt", weights_only=True)
    assert run["fingerprint"] == checkpoint["fingerprint"]
    assert run["chain"] == checkpoint["chain"]
    if "size" in bundle.case.small:
        assert run["chain"]["knobs"]["size"] == bundle.case.small["size"]
    assert [len(json.loads((trained / "history.json").read_text())), checkpoint["epoch"]] == [1, 1]
    assert (checkpoint["threshold"] is None) == (bundle.parser("train").get("threshold_by") is None)
    everything = b"".join(file.read_bytes() for file in trained.rglob("*") if file.is_file())
    assert b"phantom-0" not in everything, "a patient"


def test_resume_and_evaluate_from_elsewhere(bundle: Any, data: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    shutil.copytree(trained, output)
    options = ["--bundle_root", str(bundle.root), *_options(bundle, data, output)]
    train = bundle.config("train", "demo")
    resumed = _run(tmp_path, "run", "--config_file", str(train), "--resume", "true", "--max_epochs", "2", *options)
    assert "resumed after epoch 1" in resumed.stdout
    assert [record["epoch"] for record in json.loads((output / "history.json").read_text())] == [1, 2]
    assert torch.load(output / "last.pt", weights_only=True)["epoch"] == 2

    overlays = ["evaluate", "tta"] if "tta" in bundle.overlays else ["evaluate"]
    _run(tmp_path, "run", "--config_file", str([*train, *bundle.config(*overlays)]), *options)
    assert {"metrics.json", "predictions.csv", "report.html", "roc.png", "confusion_matrix.png"} <= {
        file.name for file in output.iterdir()
    }
    metrics = json.loads((output / "metrics.json").read_text())
    rows = _rows(output / "predictions.csv")
    assert {row["split"] for row in rows} == {"test"}
    assert metrics["num_scans"] == len(rows) >= 2
    assert metrics["shortcut"]
    correct = [row["label"] == row["predicted"] for row in rows]
    assert metrics["metrics"]["accuracy"] == pytest.approx(sum(correct) / len(correct))
    threshold = torch.load(output / "best.pt", weights_only=True)["threshold"]
    for row in rows:
        _check_row(row, threshold)
    if "tta" in overlays:
        assert min(float(row["spread"]) for row in rows) >= 0 < max(float(row["spread"]) for row in rows)


def test_inference_lists_bad_images(bundle: Any, data: Path, trained: Path, tmp_path: Path) -> None:
    if bundle.case.spoil is None:
        source, num_good, reasons = next(data.glob("*.npz")), 22, {}
    else:
        source = tmp_path / "images"
        source.mkdir()
        num_good, reasons = bundle.case.spoil(data, source)
    output = tmp_path / "predictions"
    options = ["--checkpoint", str(trained / "best.pt"), *_options(bundle, source, output)]
    configs = str(bundle.config("inference", "demo"))
    told = _run(tmp_path, "run", "--config_file", configs, "--bundle_root", str(bundle.root), *options)
    assert f"{num_good} predicted, {len(reasons)} skipped" in told.stdout
    rows = {row["image"]: row for row in _rows(output / "predictions.csv")}
    assert len(rows) == num_good + len(reasons)
    threshold = torch.load(trained / "best.pt", weights_only=True)["threshold"]
    for name, row in rows.items():
        if name in reasons:
            assert reasons[name] in row["skipped"]
            assert row["predicted"] == ""
        else:
            _check_row(row, threshold)


def test_one_image_is_explained_as_inference_classifies_it(
    bundle: Any, data: Path, trained: Path, tmp_path: Path
) -> None:
    if bundle.case.on_demo:
        with pytest.raises(ValueError, match="a bundle of slides; its inference draws where the network looked"):
            explain_scan(trained, min((data / "slides").iterdir()), tmp_path)
        return
    if bundle.case.spoil is None:
        image = tmp_path / "one.npz"
        with np.load(next(data.glob("*.npz"))) as arrays:
            np.savez(image, images=arrays["test_images"][:1])
    else:
        source = tmp_path / "images"
        source.mkdir()
        _, bad = bundle.case.spoil(data, source)
        image = min(path for path in source.iterdir() if path.name not in bad)
    told = explain_scan(trained, image, tmp_path / "told")
    options = ["--checkpoint", str(trained / "best.pt"), *_options(bundle, image, tmp_path / "inference")]
    configs = str(bundle.config("inference", "demo"))
    _run(tmp_path, "run", "--config_file", configs, "--bundle_root", str(bundle.root), *options)
    (row,) = _rows(tmp_path / "inference" / "predictions.csv")
    for name, prob in told["prob"].items():
        assert prob == pytest.approx(float(row[f"prob_{name}"]), abs=1e-3)
    assert (tmp_path / "told" / told["map"]).is_file()


def test_wrong_bundle_root_is_told_in_one_line(bundle: Any, tmp_path: Path) -> None:
    told = _run(tmp_path, "run", "--config_file", *bundle.config("train"), check=False)
    assert told.returncode == 1
    assert "Traceback" not in told.stderr
    last = told.stderr.splitlines()[-1]
    assert last.startswith("bundle_root '.'")
    assert last.endswith("has no configs/metadata.json: run from the bundle's folder or add --bundle_root FOLDER")


def test_bad_data_are_told_last_with_all_problems(bundle: Any, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image,label\nlost,0\nalso_lost,ill\n")
    options = _options(bundle, tmp_path, tmp_path / "output")[:4]
    told = _run(bundle.root, "run", "--config_file", "configs/train.yaml", *options, check=False)
    assert told.returncode == 1
    _, _, last = told.stderr.rpartition("\nerror: ")
    if bundle.name == "medmnist_classification":
        assert "pathmnist.npz" in last
        assert "--download true" in last
        return
    lines = last.strip().splitlines()
    assert re.fullmatch(r".*table\.csv: \d problem\(s\)", lines[0])
    assert "line 2: lost: no such file or folder" in lines[1]
    assert "line 3: also_lost: no such file or folder" in lines[2]
    assert "line 3: also_lost: unknown label 'ill', wanted one of" in lines[3]


def test_monais_own_checks_pass(bundle: Any, schema: dict[str, Any], tmp_path: Path) -> None:
    metadata = str(bundle.root / "configs" / "metadata.json")
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    verified = _run(tmp_path, "verify_metadata", "--meta_file", metadata, "--filepath", str(file))
    assert "metadata is verified with no error." in verified.stdout + verified.stderr
    given = bundle.metadata["network_data_format"]["inputs"]["image"]
    shape = [64] * len(given["spatial_shape"]) if given["type"] == "image" else given["spatial_shape"]
    small = ["--_meta_#network_data_format#inputs#image#spatial_shape", str(shape)]
    (config,) = bundle.config("train")
    verified = _run(tmp_path, "verify_net_in_out", "network", "--meta_file", metadata, "--config_file", config, *small)
    assert "data shape of network is verified with no error." in verified.stdout + verified.stderr


def test_export_gives_the_same_output(bundle: Any, trained: Path, tmp_path: Path) -> None:
    exported = tmp_path / "model.ts"
    configs, root = bundle.config("inference", "demo"), bundle.root
    options = ["--ckpt_file", str(trained / "best.pt"), "--key_in_ckpt", "model", "--filepath", str(exported)]
    options += ["--meta_file", str(root / "configs" / "metadata.json"), "--config_file", str(configs)]
    _run(tmp_path, "ckpt_export", "network_def", *options)
    network = bundle.parser("inference", "demo").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(trained / "best.pt", weights_only=True)["model"])
    given = bundle.metadata["network_data_format"]["inputs"]["image"]
    shape = [32] * len(given["spatial_shape"]) if given["type"] == "image" else [network.in_features]
    images = torch.rand(2, given["num_channels"], *shape)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(exported)(images), network(images), atol=1e-5)
