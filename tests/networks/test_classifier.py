from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DenseNet, ResNet, UNet, resnet18
from monai.networks.utils import convert_to_torchscript
from torch import nn

from monai_pipelines.networks import ImageClassifier, last_linear


def _resnet(spatial_dims: int = 2, **more: object) -> ResNet:
    return ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], spatial_dims, 1, num_classes=5, **more)


def _densenet(spatial_dims: int = 2) -> DenseNet:
    return DenseNet(spatial_dims, 1, 5, init_features=4, growth_rate=2, block_config=(1, 2))


BACKBONES = [_resnet, _densenet, lambda: _resnet(no_max_pool=True), lambda: _resnet(3), lambda: _densenet(3)]


def _images(network: nn.Module) -> torch.Tensor:
    spatial_dims = next(network.parameters()).ndim - 2
    return torch.randn(2, 1, *[40, 72, 36][:spatial_dims], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", BACKBONES)
def test_features_equal_the_backbones(make: type[nn.Module]) -> None:
    backbone = make().eval()
    images, head = _images(backbone), last_linear(backbone)
    with torch.no_grad():
        expected = backbone(images)
        network = ImageClassifier(backbone, num_classes=5).eval()
        last_linear(network).load_state_dict(head.state_dict())
        torch.testing.assert_close(network(images), expected)
    names = {f"backbone.{name}" for name in backbone.state_dict()}
    assert {name for name in network.state_dict() if not name.startswith("head.")} <= names


@pytest.mark.parametrize("make", BACKBONES)
def test_attention_starts_as_the_mean_and_weighs_positions(make: type[nn.Module]) -> None:
    network = ImageClassifier(make(), num_classes=2, attention=True).eval()
    images = _images(network)
    assert network.attention is not None
    with torch.no_grad():
        features = network.backbone(images)
        torch.testing.assert_close(network(images), network.head(features.flatten(2).mean(2)))
        nn.init.normal_(network.attention.weight)
        maps = network.attention_map(images)
        assert maps.shape == (2, 1, *features.shape[2:])
        torch.testing.assert_close(maps.flatten(1).sum(1), torch.ones(2))
        scores = torch.einsum("nf...,f->n...", features, network.attention.weight.flatten())
        torch.testing.assert_close(
            maps[:, 0], scores.exp() / scores.exp().flatten(1).sum(1).reshape(2, *[1] * (maps.ndim - 2))
        )
        expected = torch.stack([(f * m).flatten(1).sum(1) for f, m in zip(features, maps, strict=True)])
        torch.testing.assert_close(network(images), network.head(expected))
        assert maps.std() > 0
    nn.init.zeros_(network.attention.weight)
    network(images).sum().backward()
    assert network.attention.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("hidden", "dropout", "expected"),
    [
        (None, 0.5, [(nn.Dropout, 0.5), (nn.Linear, (10, 3))]),
        (7, 0.3, [(nn.Linear, (10, 7)), (nn.ReLU, None), (nn.Dropout, 0.3), (nn.Linear, (7, 3))]),
    ],
)
def test_head(hidden: int | None, dropout: float, expected: list[object]) -> None:
    network = ImageClassifier(_resnet(), num_classes=3, dropout=dropout, hidden=hidden)
    layers: list[object] = []
    for layer in network.head:
        size = (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else getattr(layer, "p", None)
        layers.append((type(layer), size))
    assert layers == expected
    assert last_linear(network) is network.head[-1]


def test_one_logit() -> None:
    network = ImageClassifier(_resnet(), num_classes=1)
    assert network(_images(network)).shape == (2, 1)


@pytest.mark.parametrize(("make", "attention", "hidden"), list(itertools.product(BACKBONES, (False, True), (None, 7))))
def test_torchscript(make: type[nn.Module], attention: bool, hidden: int | None, tmp_path: Path) -> None:
    network = ImageClassifier(make(), 2, 0.5, hidden, attention).eval()
    images = _images(network)
    convert_to_torchscript(network, tmp_path / "model.ts", verify=True, inputs=[images])
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(images), network(images))


def test_last_linear_of_plain_networks() -> None:
    resnet, densenet = _resnet(), _densenet()
    assert last_linear(resnet) is resnet.fc
    assert last_linear(densenet) is densenet.class_layers.out


def test_small_stem_resnet18_is_as_published() -> None:
    network = resnet18(
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
        bias_downsample=False,
        num_classes=9,
    )
    assert sum(p.numel() for p in network.parameters()) == 11_173_962 - 513  # CIFAR ResNet-18 has ten classes
    assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    sizes: dict[str, tuple[int, ...]] = {}
    pooled: list[object] = []
    network.maxpool.register_forward_hook(lambda *_: pooled.append(1))
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(lambda *args, n=name: sizes.update({n: args[2].shape[1:]}))
    network(torch.zeros(2, 3, 28, 28))
    assert not pooled
    assert sizes == {
        "conv1": (64, 28, 28),
        "layer1": (64, 28, 28),
        "layer2": (128, 14, 14),
        "layer3": (256, 7, 7),
        "layer4": (512, 4, 4),
    }


def test_errors() -> None:
    for arguments in [{"num_classes": 0}, {"num_classes": 2, "hidden": 0}, {"num_classes": 2, "dropout": 1.5}]:
        with pytest.raises(ValueError, match="num_classes and hidden must be 1 or more and dropout in"):
            ImageClassifier(_resnet(), **arguments)
    for network in (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), UNet(2, 1, 1, (4, 8), (2,))):
        with pytest.raises(TypeError, match=f"must be MONAI's ResNet or DenseNet, got {type(network).__name__}"):
            ImageClassifier(network, 2)
    with pytest.raises(ValueError, match="UNet has no linear layer"):
        last_linear(UNet(2, 1, 1, (4, 8), (2,)))
    with pytest.raises(ValueError, match="ResNet has no linear layer"):
        ImageClassifier(_resnet(feed_forward=False), 2)
    with pytest.raises(ValueError, match="no attention map"):
        ImageClassifier(_resnet(), 2).attention_map(torch.zeros(1, 1, 32, 32))
