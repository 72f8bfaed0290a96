from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn

from monai_pipelines.networks import ImageClassifier, TileBackbone, last_linear
from monai_pipelines.networks.backbone import description_hash


def _resnet(**more: object) -> ResNet:
    torch.manual_seed(0)
    return ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], 2, 3, **{"num_classes": 5, **more})


def _densenet() -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(2, 3, 5, init_features=4, growth_rate=2, block_config=(1, 2))


def _convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1))


class _Transformer(nn.Module):
    """Like timm's: without a head the last linear layer is that of a block's MLP."""

    def __init__(self, num_classes: int, side: int = 224, pool: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.side, self.pool = side, pool
        self.patches = nn.Conv2d(3, 6, 16, 16)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.head = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] != self.side:
            raise AssertionError(f"Input height ({images.shape[2]}) doesn't match model ({self.side}).")
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.mlp(tokens)
        return self.head(tokens.mean(1)) if self.pool else tokens


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many features
    "resnet": (_resnet, 10),
    "densenet": (_densenet, 7),
    "classifier": (lambda: ImageClassifier(_resnet(), 2), 10),
    "classifier with a hidden layer": (lambda: ImageClassifier(_resnet(), 2, hidden=7), 7),
    "resnet without head": (lambda: _resnet(feed_forward=False), 10),
    "convolutions only": (_convolutions, 6),
    "transformer": (lambda: _Transformer(4), 6),
    "transformer without head": (lambda: _Transformer(0), 6),
}
HEADLESS = ("resnet without head", "convolutions only", "transformer without head")


def _tiles(num: int = 2) -> Tensor:
    return torch.randint(0, 256, (num, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _reference_features(network: nn.Module, images: Tensor, head: bool) -> Tensor:
    """Input of the last linear layer, or output of the network, after normalization in float64."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    channels_last = images.numpy().transpose(0, 2, 3, 1).astype(float) / 255
    normalized = torch.from_numpy(((channels_last - mean) / std).transpose(0, 3, 1, 2)).float()
    seen: list[Tensor] = []
    with torch.no_grad():
        if not head:
            return network(normalized).flatten(1)
        last_linear(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(normalized)
    return seen[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_features(name: str) -> None:
    make, num_features = NETWORKS[name]
    expected = _reference_features(make().eval(), _tiles(), name not in HEADLESS)
    backbone = TileBackbone(make()).eval()
    assert backbone.num_features == num_features
    with torch.no_grad():
        for tiles in (_tiles(), _tiles().float() / 255, _tiles().contiguous(memory_format=torch.channels_last)):
            features = backbone(tiles)
            assert (features.shape, features.dtype) == ((2, num_features), torch.float32)
            torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert backbone(_tiles()).dtype == torch.float32


def test_memory_format_is_preserved() -> None:
    seen: list[Tensor] = []
    backbone = TileBackbone(_resnet())
    backbone.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(_tiles().contiguous(memory_format=torch.channels_last))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_modes_and_gradients_are_preserved() -> None:
    network = _resnet()
    network.bn1.eval()
    before = copy.deepcopy(network.state_dict())
    backbone = TileBackbone(network)
    assert backbone.training
    assert network.layer1.training
    assert not network.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    backbone(_tiles()).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_mean_and_std() -> None:
    class Pixel(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :, 0, 0]

    backbone = TileBackbone(Pixel(), mean=[0.5, 0.25, 0], std=[0.5, 0.25, 1])
    tile = torch.tensor([255, 0, 51], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 2, 2)
    expected = torch.tensor([[1, -1, 0.2]])
    torch.testing.assert_close(backbone(tile), expected)
    torch.testing.assert_close(backbone(tile / 255), expected)
    torch.testing.assert_close(backbone((tile / 255).half()), expected, atol=1e-3, rtol=0)


def _save(content: object, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.parametrize(("name", "run"), [(name, run) for name in NETWORKS for run in (True, False)])
def test_weights(name: str, run: bool, tmp_path: Path) -> None:
    make, _ = NETWORKS[name]
    trained = make().eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.normal_(0, 0.2)
    weights = trained.state_dict()
    file = _save({"model": weights, "classes": ["a"], "epoch": 3} if run else weights, tmp_path)
    backbone = TileBackbone(make(), file).eval()
    expected = _reference_features(trained, _tiles(), name not in HEADLESS)
    with torch.no_grad():
        torch.testing.assert_close(backbone(_tiles()), expected, atol=1e-4, rtol=1e-4)


def test_head_in_a_file_is_ignored(tmp_path: Path) -> None:
    resnet, transformer = _resnet(num_classes=9).state_dict(), _Transformer(9).state_dict()
    for network, weights in [
        (_resnet(), resnet),
        (_resnet(feed_forward=False), resnet),
        (_Transformer(4), transformer),
        (_Transformer(0), transformer),
    ]:
        TileBackbone(network, _save({"model": weights}, tmp_path))


def test_torchvision_names(tmp_path: Path) -> None:
    weights = _densenet().state_dict()
    spelt = {re.sub(r"\.layers\.(norm|conv)(\d)", r".\1.\2", name): value for name, value in weights.items()}
    spelt = {name.replace("class_layers.out", "classifier"): value for name, value in spelt.items()}
    old = {name: value for name, value in spelt.items() if not name.endswith("num_batches_tracked")}
    assert spelt.keys() != weights.keys()
    expected = TileBackbone(_densenet()).eval()(_tiles())
    for content in (spelt, old):
        network = _densenet()
        nn.init.zeros_(network.features.conv0.weight)
        torch.testing.assert_close(TileBackbone(network, _save(content, tmp_path)).eval()(_tiles()), expected)


@pytest.mark.parametrize(
    ("mean", "expected"), [(0.5, [0.5] * 3), ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]), ("imagenet", None)]
)
def test_pixels_are_normalized_as_in_the_run(mean: object, expected: list[float] | None, tmp_path: Path) -> None:
    chain = {"steps": {"normalize": {"mean": mean, "std": "imagenet"}}}
    file = _save({"model": _resnet().state_dict(), "chain": chain}, tmp_path)
    plain = TileBackbone(_resnet()).describe()
    assert TileBackbone(_resnet(), file).describe()["mean"] == pytest.approx(expected or plain["mean"])
    assert TileBackbone(_resnet(), file).describe()["std"] == plain["std"]
    assert TileBackbone(_resnet(), file, mean=[0, 0, 1]).describe()["mean"] == [0, 0, 1]


@pytest.mark.parametrize("name", ["std", pytest.param("sd", id="run of version 0.1")])
def test_standard_deviation_of_the_run(name: str, tmp_path: Path) -> None:
    chain = {"steps": {"normalize": {"mean": 0.5, name: 0.25}}}
    file = _save({"model": _resnet().state_dict(), "chain": chain}, tmp_path)
    assert TileBackbone(_resnet(), file).describe()["std"] == [0.25] * 3


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    weights = _resnet().state_dict()
    weights["conv1.weight"] = weights["conv1.weight"][:, :1]
    weights["extra.bias"] = weights.pop("bn1.bias")
    network = _resnet()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"weights\.pt does not fit ResNet \(made with other arguments\?\):") as error:
        TileBackbone(network, _save(weights, tmp_path))
    assert str(error.value).split("\n  - ")[1:] == [
        "missing: bn1.bias",
        "unexpected: extra.bias",
        "shape: conv1.weight is (4, 1, 7, 7), the network's (4, 3, 7, 7)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"does not fit") as error:
        TileBackbone(_resnet(), _save(_densenet().state_dict(), tmp_path))
    lines = str(error.value).split("\n  - ")
    assert len(lines) == 12
    assert re.fullmatch(r"and \d+ more", lines[-1])


def test_files_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pt \(best\.pt of a run, or a state dict\)"):
        TileBackbone(_resnet(), tmp_path / "none.pt")
    whole = _save(_resnet().state_dict(), tmp_path).read_bytes()
    for part in (b"text", b"", whole[: len(whole) // 2]):
        (tmp_path / "cut.pt").write_bytes(part)
        with pytest.raises(ValueError, match=r"cut\.pt is not a torch checkpoint, or truncated"):
            TileBackbone(_resnet(), tmp_path / "cut.pt")
    for other in ([1, 2], {"state_dict": {}, "epoch": 3}, {"model": {"epoch": 3}}):
        with pytest.raises(ValueError, match=r"holds no weights; wanted best\.pt of a run, or a state dict"):
            TileBackbone(_resnet(), _save(other, tmp_path))


def test_networks_without_vectors() -> None:
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, got function \(call its factory"):
        TileBackbone(_resnet)
    with pytest.raises(ValueError, match=r"_Transformer does not take tiles \(1, 3, 224, 224\).*Input height \(224\)"):
        TileBackbone(_Transformer(4, side=64))
    assert TileBackbone(_Transformer(4, side=64), tile_px=64).num_features == 6
    with pytest.raises(ValueError, match=r"ResNet does not take tiles.*to have 1 channels, but got 3"):
        TileBackbone(ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], 2, 1))
    with pytest.raises(ValueError, match=r"one vector for each tile, \(N, F\), got \(1, 196, 6\) \(pool it"):
        TileBackbone(_Transformer(0, pool=False))
    with pytest.raises(ValueError, match=r"got \(1, 4, 222, 222\)"):
        TileBackbone(nn.Conv2d(3, 4, 3))


def test_arguments_and_tiles() -> None:
    for arguments in ({"mean": [0.5]}, {"std": [0.5, 0.5]}, {"std": [0.5, 0.5, 0]}):
        with pytest.raises(ValueError, match="mean and std are three numbers, std above 0"):
            TileBackbone(_resnet(), **arguments)
    backbone = TileBackbone(_resnet())
    for tiles in (torch.zeros(3, 64, 64), torch.zeros(1, 1, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"wanted tiles \(N, 3, H, W\), uint8 or floating point.*got torch\."):
            backbone(tiles)


def test_description_and_fingerprint(tmp_path: Path) -> None:
    backbone = TileBackbone(_resnet())
    description = backbone.describe()
    digest = hashlib.sha256()
    for name, value in sorted(backbone.network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    assert description == {
        "name": "ResNet",
        "num_features": 10,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "layers": description["layers"],
        "weights": digest.hexdigest()[:16],
    }
    assert re.fullmatch("[0-9a-f]{16}", description_hash(description))
    same = TileBackbone(_resnet(num_classes=9), _save(_resnet().state_dict(), tmp_path))
    same.to(memory_format=torch.channels_last)
    assert same.describe() == backbone.describe()
    named, brighter = TileBackbone(_resnet(), name="small"), TileBackbone(_resnet(), mean=[0.5, 0.456, 0.406])
    changed = TileBackbone(_resnet())
    with torch.no_grad():
        changed.network.layer4[0].conv2.weight[0, 0, 0, 0] += 1
    assert named.describe()["name"] == "small"
    strided = _resnet(conv1_t_stride=2)
    strided.load_state_dict(_resnet().state_dict())
    others = (named, brighter, changed, TileBackbone(strided))
    assert len({description_hash(b.describe()) for b in (backbone, *others)}) == 5


def test_instantiated_by_a_config() -> None:
    shape = {"layers": [1, 1, 1, 1], "block_inplanes": [4, 6, 8, 10], "spatial_dims": 2, "n_input_channels": 3}
    network = {"_target_": "monai.networks.nets.ResNet", "block": "basic", **shape}
    parser = ConfigParser({"backbone": {"_target_": "monai_pipelines.networks.TileBackbone", "network": network}})
    assert parser.get_parsed_content("backbone").num_features == 10


def test_torchscript() -> None:
    backbone = TileBackbone(_resnet()).eval()
    exported = torch.jit.script(backbone)
    torch.testing.assert_close(exported(_tiles()), backbone(_tiles()))
    torch.testing.assert_close(exported(_tiles() / 255), backbone(_tiles()))
