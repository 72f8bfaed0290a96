from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DenseNet121, resnet10, resnet18, resnet34, resnet50
from torch import Tensor, nn

from monai_pipelines.networks import ImageClassifier, imagenet, load_imagenet

Shapes = dict[str, tuple[int, ...]]


def _norm(name: str, channels: int, counted: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()} if counted else shapes


def _torchvision_resnet(blocks: tuple[int, ...], bottleneck: bool) -> Shapes:
    """Names and shapes of torchvision's ResNets, from their architecture."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    before = 64
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        after = width * (4 if bottleneck else 1)
        for block in range(number):
            name = f"layer{stage + 1}.{block}"
            if bottleneck:
                kernels = [(width, before, 1), (width, width, 3), (after, width, 1)]
            else:
                kernels = [(width, before, 3), (width, width, 3)]
            for i, (out, into, size) in enumerate(kernels, start=1):
                shapes |= {f"{name}.conv{i}.weight": (out, into, size, size), **_norm(f"{name}.bn{i}", out)}
            if block == 0 and before != after:
                shapes |= {f"{name}.downsample.0.weight": (after, before, 1, 1), **_norm(f"{name}.downsample.1", after)}
            before = after
    return {**shapes, "fc.weight": (1000, before), "fc.bias": (1000,)}


def _torchvision_densenet(dot: str, counted: bool) -> Shapes:
    """Names and shapes of torchvision's DenseNet-121; its published file has the old names, with a dot."""
    shapes: Shapes = {"features.conv0.weight": (64, 3, 7, 7), **_norm("features.norm0", 64, counted)}
    channels = 64
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            shapes |= _norm(f"{name}.norm{dot}1", channels, counted)
            shapes |= {f"{name}.conv{dot}1.weight": (128, channels, 1, 1)}
            shapes |= _norm(f"{name}.norm{dot}2", 128, counted)
            shapes |= {f"{name}.conv{dot}2.weight": (32, 128, 3, 3)}
            channels += 32
        if block < 4:
            shapes |= _norm(f"features.transition{block}.norm", channels, counted)
            shapes |= {f"features.transition{block}.conv.weight": (channels // 2, channels, 1, 1)}
            channels //= 2
    return {
        **shapes,
        **_norm("features.norm5", channels, counted),
        "classifier.weight": (1000, channels),
        "classifier.bias": (1000,),
    }


def _resnet(make: Callable[..., nn.Module], channels: int = 3, **more: object) -> nn.Module:
    arguments = {"spatial_dims": 2, "conv1_t_stride": 2, "bias_downsample": False, "num_classes": 4, **more}
    return make(n_input_channels=channels, **arguments)


def _densenet(channels: int = 3) -> nn.Module:
    return DenseNet121(spatial_dims=2, in_channels=channels, out_channels=4)


CASES = {  # network, torchvision's shapes, published number of parameters
    "resnet18": (lambda n=3: _resnet(resnet18, n), _torchvision_resnet((2, 2, 2, 2), False), 11_689_512),
    "resnet34": (lambda n=3: _resnet(resnet34, n), _torchvision_resnet((3, 4, 6, 3), False), 21_797_672),
    "resnet50": (lambda n=3: _resnet(resnet50, n), _torchvision_resnet((3, 4, 6, 3), True), 25_557_032),
    "densenet121": (_densenet, _torchvision_densenet("", True), 7_978_856),
    "densenet121, as published": (_densenet, _torchvision_densenet(".", False), 7_978_856),
}


def _random(shapes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator) * 0.1 if shape else torch.tensor(7)
        for name, shape in shapes.items()
    }


def _expected_name(name: str) -> str:
    """The same tensor in MONAI's network: dense layers have theirs in `layers`, without the dot."""
    parts = name.split(".")
    if len(parts) > 3 and parts[2].startswith("denselayer"):
        rest = parts[3:] if parts[3][-1] in "12" else [parts[3] + parts[4], *parts[5:]]
        parts = [*parts[:3], "layers", *rest]
    return ".".join(parts)


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.save(_random(CASES[request.param][1]), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.parametrize(("case", "file"), [(case, case) for case in CASES], indirect=["file"])
def test_every_tensor_is_loaded(case: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, shapes, num_parameters = CASES[case]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(torch.Size(s).numel() for n, s in shapes.items() if not n.endswith(buffers)) == num_parameters
    weights = torch.load(file, weights_only=True)
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with caplog.at_level(logging.INFO):
        assert load_imagenet(network, file) is network
    after = network.state_dict()
    loaded = set()
    for name, value in weights.items():
        if not name.startswith(("fc.", "classifier.")):
            assert torch.equal(after[_expected_name(name)], value), name
            loaded.add(_expected_name(name))
    unchanged = after.keys() - loaded
    assert all(torch.equal(after[name], before[name]) for name in unchanged)
    head = {"class_layers.out.weight", "class_layers.out.bias"} if "dense" in case else {"fc.weight", "fc.bias"}
    assert {name for name in unchanged if not name.endswith("num_batches_tracked")} == head
    assert f"{len(loaded)} tensors loaded; the head stays" in caplog.text


@pytest.mark.parametrize(("case", "file"), [("resnet18", "resnet18"), ("densenet121",) * 2], indirect=["file"])
def test_one_channel_equals_three_equal_ones(case: str, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    make = CASES[case][0]
    with caplog.at_level(logging.INFO):
        color, gray = load_imagenet(make(3), file), load_imagenet(make(1), file)
    assert caplog.text.count("first convolution summed over its 3 channels") == 1
    stems = [n.get_submodule("features.conv0" if "dense" in case else "conv1") for n in (color, gray)]
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(stems[0](image.expand(-1, 3, -1, -1)), stems[1](image))
    assert stems[1].weight.shape == (64, 1, 7, 7)


@pytest.mark.parametrize(("case", "file"), [("resnet18", "resnet18"), ("densenet121",) * 2], indirect=["file"])
def test_image_classifier(case: str, file: Path) -> None:
    make = CASES[case][0]
    plain = load_imagenet(make(), file)
    network = ImageClassifier(make(), num_classes=1, hidden=8, attention=True)
    assert load_imagenet(network, file) is network
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_from_scratch() -> None:
    network = nn.Linear(2, 2)
    assert load_imagenet(network) is network


@pytest.mark.parametrize("file", ["resnet18"], indirect=True)
def test_mismatches_are_listed(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    def problems(network: nn.Module) -> list[str]:
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with pytest.raises(ValueError, match=r"weights\.pth does not fit ResNet \(another depth\?") as error:
            load_imagenet(network, file)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        return str(error.value).split("\n  - ")[1:]

    stages = (2, 3, 4)
    assert problems(_resnet(resnet18, bias_downsample=True)) == [
        f"missing: layer{n}.0.downsample.0.bias" for n in stages
    ]
    assert problems(_resnet(resnet18, conv1_t_size=3)) == [
        "shape: conv1.weight is (64, 3, 7, 7), the network's (64, 3, 3, 3)"
    ]
    shallow = problems(_resnet(resnet10))
    assert len(shallow) == 4 * 12
    assert all(re.fullmatch(r"unexpected: layer[1-4]\.1\..*", line) for line in shallow)
    assert "missing: layer1.2.bn1.bias" in problems(_resnet(resnet34))
    with caplog.at_level(logging.INFO):
        load_imagenet(_resnet(resnet18, conv1_t_stride=1), file)
    assert "first convolution has stride (1, 1), the weights were trained with (2, 2)" in caplog.text


@pytest.mark.parametrize("file", ["resnet18"], indirect=True)
def test_errors(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the network takes 2 channels, ImageNet weights 1 or 3"):
        load_imagenet(_resnet(resnet18, 2), file)
    with pytest.raises(ValueError, match=r"wanted MONAI's 2D ResNet or DenseNet.*got Linear$"):
        load_imagenet(nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match="got ResNet in 3D"):
        load_imagenet(_resnet(resnet18, spatial_dims=3), file)
    with pytest.raises(ValueError, match="got ImageClassifier in 3D"):
        load_imagenet(ImageClassifier(_resnet(resnet18, spatial_dims=3), 2), file)
    with pytest.raises(ValueError, match="does not fit ImageClassifier"):
        load_imagenet(ImageClassifier(_resnet(resnet10), 2), file)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth \(a torchvision checkpoint"):
        load_imagenet(_resnet(resnet18), tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth is not a torch checkpoint, .*wanted .* from http"):
        load_imagenet(_resnet(resnet18), tmp_path / "text.pth")
    network, whole = _resnet(resnet18), file.read_bytes()
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    for part in (b"", whole[:20], whole[:-9], whole[: len(whole) // 2], *(old[:n] for n in range(0, len(old), 7))):
        (tmp_path / "cut.pth").write_bytes(part)
        with pytest.raises(ValueError, match=r"cut\.pth is not a torch checkpoint, or truncated"):
            load_imagenet(network, tmp_path / "cut.pth")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds no weights; wanted a torchvision checkpoint"):
        load_imagenet(_resnet(resnet18), tmp_path / "other.pth")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the server, and an empty hub folder."""
    (tmp_path / "server").mkdir()
    monkeypatch.setattr(imagenet, "DOWNLOAD_URL", (tmp_path / "server").as_uri() + "/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "server"


@pytest.mark.parametrize("case", ["resnet18", "resnet34", "resnet50", "densenet121, as published"])
def test_download(case: str, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shapes, _ = CASES[case]
    key = next(key for key, file in imagenet.PUBLISHED.items() if file.startswith(case.split(",")[0] + "-"))
    torch.save(_random(shapes), mirror / "weights.pth")
    digest = hashlib.sha256((mirror / "weights.pth").read_bytes()).hexdigest()
    published = (mirror / "weights.pth").rename(mirror / f"weights-{digest[:8]}.pth")
    monkeypatch.setitem(imagenet.PUBLISHED, key, published.name)
    network = load_imagenet(make(), "download")
    name = next(iter(shapes))
    assert torch.equal(network.state_dict()[name], _random(shapes)[name])
    assert (mirror.parent / "torch" / "hub" / "checkpoints" / published.name).is_file()


def test_download_errors(mirror: Path) -> None:
    with pytest.raises(
        ConnectionError, match=r"could not download .*resnet18-f37072fd\.pth .* or place it in .*checkpoints"
    ):
        load_imagenet(_resnet(resnet18), "download")
    torch.save(_random(CASES["resnet18"][1]), mirror / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match=r"resnet18-f37072fd\.pth is damaged \(invalid hash .*download it again"):
        load_imagenet(_resnet(resnet18), "download")
    hub = mirror.parent / "torch" / "hub" / "checkpoints"
    assert not list(hub.iterdir()), "a damaged download is not kept"
    (hub / "resnet18-f37072fd.pth").write_bytes((mirror / "resnet18-f37072fd.pth").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"checkpoints/resnet18-f37072fd\.pth is damaged .*delete it and download"):
        load_imagenet(_resnet(resnet18), "download")
    with pytest.raises(ValueError, match="published for resnet18, resnet34, resnet50, densenet121, not for this"):
        load_imagenet(_resnet(resnet10), "download")
