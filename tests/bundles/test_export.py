"""Exported networks: `export` itself compares each file with its network, at two sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from monai.data import load_net_with_metadata
from torch import Tensor, nn

from monai_pipelines import load_chain, load_run
from monai_pipelines.data import PrepareImages
from monai_pipelines.declared import list_declared
from monai_pipelines.detection.boxes import select
from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.model import Model
from monai_pipelines.runs import Trained
from monai_pipelines.runs import export as exporting
from monai_pipelines.runs.checkpoint import save_checkpoint
from tests.bundles.conftest import Bundle, Demo, bundle_of, demo_of
from tests.new_process import run_module

BEFORE = {"monai_mil": ["end_to_end"], "mc_dropout": ["head"]}
OVERLAYS = [
    pytest.param(
        (name, *(other for other in BEFORE.get(overlay, []) if other in bundle_of(name).overlays), overlay),
        marks=pytest.mark.xdist_group(name),
    )
    for name in list_declared("bundles")
    for overlay in ("inference", *bundle_of(name).overlays)
]


def _trained(model: Model, folder: Path) -> Trained:
    content = {"model": model.network.state_dict(), "classes": list(model.classes), "chain": model.chain.describe()}
    save_checkpoint({**content, "epoch": 1, "temperature": 1.5, "threshold": 0.25}, folder / "best.pt")
    return Trained(model, folder / "best.pt")


@pytest.mark.slow
@pytest.mark.parametrize("names", OVERLAYS, ids="-".join)
def test_every_overlay(names: tuple[str, ...], tmp_path: Path) -> None:
    bundle = bundle_of(names[0])
    configs = dict.fromkeys(["inference", *(["demo"] if bundle.detects else []), *names[1:]])
    trained = _trained(bundle.parser(*configs).get_parsed_content("model"), tmp_path)
    for file in ("model.ts", "model.onnx"):
        described = exporting.export(trained, tmp_path / file)
        assert (tmp_path / file).is_file()
    assert described["task"] == ("detection" if bundle.detects else "classification")


def _run_onnx(file: Path) -> Callable[[Tensor], list[Tensor]]:
    session = onnxruntime.InferenceSession(file)
    name = session.get_inputs()[0].name
    return lambda images: [torch.tensor(values) for values in session.run(None, {name: images.numpy()})]


def _run_torchscript(file: Path) -> Callable[[Tensor], list[Tensor]]:
    network = torch.jit.load(file)
    return lambda images: [result] if isinstance(result := network(images), Tensor) else list(result)


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
def test_a_runs_network_by_the_command_line(bundle: Bundle, demo: Demo, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / "files" / f"model{suffix}"
    result = run_module("monai_pipelines", "export", str(demo.run), str(file), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"wrote {file}" in result.stdout

    checkpoint = torch.load(demo.run / "best.pt", weights_only=True)
    network = bundle.parser("inference", "demo").get_parsed_content("network_def").eval()
    network.load_state_dict(checkpoint["model"])
    weight = next(network.parameters())
    shape = [5, 7, weight.shape[1]] if weight.ndim == 2 else [5, weight.shape[1], 48, 80, 56][: weight.ndim]
    images = torch.rand(shape)
    if bundle.detects:
        network.select = {**network.select, "min_score": 0.0}  # one epoch may find nothing in noise
    outputs = (_run_torchscript if suffix == ".ts" else _run_onnx)(file)(images)
    with torch.no_grad():
        wanted = network(images)
    if bundle.detects:
        for boxes, scores, found in zip(*outputs, wanted, strict=True):
            chosen = select(boxes, scores, images.shape[2:], **network.select)
            assert len(found.boxes) > 0
            torch.testing.assert_close(chosen.scores, found.scores, rtol=1e-3, atol=1e-4)
            distance = torch.cdist(found.boxes, chosen.boxes, p=torch.inf).amin(dim=1)
            assert (distance < 0.1).float().mean() > 0.95  # boxes of nearly equal scores change places
    else:
        torch.testing.assert_close(outputs[0], wanted, rtol=1e-4, atol=1e-5)

    if suffix == ".ts":
        described = load_net_with_metadata(str(file))[1]
    else:
        described = {prop.key: json.loads(prop.value) for prop in onnx.load(file).metadata_props}
    assert described["classes"] == checkpoint["classes"]
    assert described["threshold"] == checkpoint["threshold"]
    assert described["temperature"] == checkpoint["temperature"]
    assert described["chain"] == json.loads(json.dumps(checkpoint["chain"]))
    (given,) = described["inputs"].values()
    assert [n for n in given if isinstance(n, int)] == [weight.shape[1]]
    assert f"input {next(iter(described['inputs']))}: batch, " in result.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_monais_commands(bundle: Bundle, demo: Demo, tmp_path: Path) -> None:
    network = bundle.parser("inference", "demo").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(demo.run / "best.pt", weights_only=True)["model"])
    weight = next(network.parameters())
    images = torch.rand([2, *([8] if weight.ndim == 2 else []), weight.shape[1], 64, 64, 64][: max(3, weight.ndim)])
    options = {
        "ckpt_file": str(demo.run / "best.pt"),
        "meta_file": str(bundle.root / "configs" / "metadata.json"),
        "config_file": bundle.config("inference", "demo"),
        "key_in_ckpt": "model",
        "input_shape": list(images.shape),
    }
    ckpt_export("network_def", filepath=str(tmp_path / "model.ts"), use_trace=bundle.detects, **options)
    legacy = {"dynamo": False, "opset_version": 20}
    onnx_export(
        "network_def", filepath=str(tmp_path / "model.onnx"), use_trace=True, converter_kwargs=legacy, **options
    )
    with torch.no_grad():
        wanted = network.candidates(images) if bundle.detects else [network(images)]
    for run in (_run_torchscript(tmp_path / "model.ts"), _run_onnx(tmp_path / "model.onnx")):
        for got, one in zip(run(images), wanted, strict=True):
            torch.testing.assert_close(got, one, rtol=1e-3, atol=1e-4)


class _FixedSize(nn.Module):
    """Takes images of 40 x 48 only."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(1, 3, 8, stride=8)
        self.head = nn.Linear(3 * 5 * 6, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cells(images).flatten(1))


def _fixed(folder: Path) -> Trained:
    chain, device = load_chain("xray", size=[40, 48]), torch.device("cpu")
    model = Model(_FixedSize(), chain, ["a", "b"], device, AutocastInferer(), PrepareImages())
    return _trained(model, folder)


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
def test_a_network_of_one_size(suffix: str, tmp_path: Path) -> None:
    described = exporting.export(_fixed(tmp_path), tmp_path / f"model{suffix}", size=[40, 48])
    assert described["inputs"] == {"image": ["batch", 1, 40, 48]}
    with pytest.raises(ValueError, match="size must be"):
        exporting.export(_fixed(tmp_path), tmp_path / f"other{suffix}", size=[40, 48, 8])
    with pytest.raises(ValueError, match=r"does not take \(2, 1, 64, 64\).*--size"):
        exporting.export(_fixed(tmp_path), tmp_path / f"other{suffix}")
    assert not list(tmp_path.glob("other*"))


@pytest.mark.xdist_group("medmnist_classification")
def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = demo_of("medmnist_classification")
    with pytest.raises(ValueError, match=r"wanted a file that ends with \.onnx, or with \.ts"):
        load_run(demo.run).export(tmp_path / "model.pt")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("best.pt", "run.json"):
        (other / name).write_bytes((demo.run / name).read_bytes())
    (other / "configs").symlink_to(demo.run / "configs")
    with pytest.raises(ValueError, match="got an ensemble"):
        load_run([demo.run, other]).export(tmp_path / "model.ts")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install onnx onnxruntime"):
        load_run(demo.run).export(tmp_path / "model.onnx")


def test_a_file_that_gives_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_session", lambda file: lambda trial: torch.zeros(len(trial), 2))
    with pytest.raises(ValueError, match="not kept, as it does not give what the network gives"):
        exporting.export(_fixed(tmp_path), tmp_path / "model.onnx", size=[40, 48])
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]
