"""Windows of volumes (`patches.yaml`), from training to the exported network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export

from monai_pipelines import load_run
from monai_pipelines.networks import AttentionMIL, WindowClassifier
from tests.bundles.conftest import Start, bundle_of, check_metrics, demo_of, options, read_rows, run_command

NAME = "lung_ct_classification"
NAMES = ("train", "demo", "patches")

pytestmark = pytest.mark.xdist_group(NAME)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
@pytest.mark.parametrize(("size", "window"), [([128, 160, 96], [64, 64, 48]), ([64, 64, 64], [32, 32, 32])])
def test_windows_around_any_network(pooling: str, size: list[int], window: list[int]) -> None:
    for other in ("demo", "densenet121"):
        parser = bundle_of(NAME).parser("train", other, "patches", size=size, pooling=pooling)
        network = parser.get_parsed_content("network")
        assert isinstance(network, WindowClassifier)
        assert (network.window, network.stride) == (window, [n // 2 for n in window])
        assert network.chunk * np.prod(window) <= 2**21
        assert isinstance(network.attention, AttentionMIL) == (pooling == "attention")
        assert type(network.backbone) is type(bundle_of(NAME).parser("train", other).get_parsed_content("network_def"))


@pytest.mark.slow
def test_a_run(start: Start, tmp_path: Path) -> None:
    bundle, demo, run = bundle_of(NAME), demo_of(NAME), tmp_path / "run"
    configs, knobs = str(bundle.config(*NAMES)), {"pooling": "attention", "num_train_windows": 3}
    arguments = [part for name, value in knobs.items() for part in (f"--{name}", str(value))]
    arguments += ["--config_file", configs, "--bundle_root", str(bundle.root), "--max_epochs", "1"]
    run_command(tmp_path, "run", *arguments, *options(bundle, demo.data, run))
    start(bundle, *NAMES, run_id="evaluate", dataset_dir=str(demo.data), output_dir=str(run), **knobs).run()
    check_metrics(run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert [part["results"]["method"] for part in evaluation["explanations"]] == ["gradcam"]
    assert (run / "explanations" / "1.png").is_file()
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    assert any(name.startswith("attention.") for name in checkpoint["model"])

    scans = demo.data / "scans"
    settings = {"dataset_dir": str(scans), "checkpoint": str(run / "best.pt"), "pooling": "attention"}
    start(bundle, "inference", *NAMES[1:], workflow_type="infer", output_dir=str(tmp_path / "new"), **settings).run()
    by_configs = {row["image"]: float(row["prob_disease"]) for row in read_rows(tmp_path / "new" / "predictions.csv")}
    load_run(run).predict(scans, tmp_path / "of_run")
    of_run = {row["image"]: float(row["prob_disease"]) for row in read_rows(tmp_path / "of_run" / "predictions.csv")}
    assert len(of_run) == len(list(scans.iterdir()))
    assert by_configs == pytest.approx(of_run, abs=1e-5)

    load_run(run).export(tmp_path / "model.onnx")
    volume = torch.rand(2, 2, 48, 40, 16)
    network = bundle.parser(*NAMES, pooling="attention", size=[32, 32, 32]).get_parsed_content("network").eval()
    network.load_state_dict(checkpoint["model"])
    with torch.no_grad():
        wanted = network(volume)
    given = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"image": volume.numpy()})[0]
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5)
    metadata, windows = str(bundle.root / "configs" / "metadata.json"), bundle.config("inference", *NAMES[1:])
    ckpt_export(
        *("windows_def", str(tmp_path / "monai.ts"), str(run / "best.pt"), metadata, windows),
        key_in_ckpt="model",
        size=[32, 32, 32],
        pooling="attention",
    )
    torch.testing.assert_close(torch.jit.load(tmp_path / "monai.ts")(volume), wanted, rtol=1e-4, atol=1e-5)
