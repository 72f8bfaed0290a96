"""Windows of volumes against loops over them."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.networks.nets import DenseNet, ResNet
from monai.networks.utils import convert_to_torchscript
from torch import Tensor, nn

from monai_pipelines.networks import AttentionMIL, ImageClassifier, WindowClassifier

POOLINGS = ("mean", "max", "attention")


def _resnet(num_classes: int = 2) -> ResNet:
    return ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], 3, 1, conv1_t_stride=2, num_classes=num_classes)


def _network(num_classes: int = 2, backbone: nn.Module | None = None, **options: Any) -> WindowClassifier:
    torch.manual_seed(0)
    network = WindowClassifier(backbone or _resnet(num_classes), **{"window": 32, "stride": 16, **options})
    for parameter in network.parameters():  # windows that differ
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def _volumes(*size: int, lungs: tuple[int, ...] = (40, 9)) -> Tensor:
    """A volume for each lung, which has that many slices from the second on; blurred, as after augmentation."""
    volumes = torch.rand(len(lungs), 2, *size, generator=torch.Generator().manual_seed(1))
    for volume, end in zip(volumes, lungs, strict=True):
        volume[1] *= 0.3
        volume[1, 1 : 1 + end, 4:-4] += 0.6
    return volumes


def _in_lungs(volume: Tensor) -> Tensor:
    """Air outside the lungs, and the mask."""
    return torch.stack([torch.where(volume[1] > 0.5, volume[0], 0), volume[1]])


def _reference_windows(volume: Tensor, window: int, stride: int, min_lung: float) -> list[Tensor]:
    """Cut by MONAI; volumes that are smaller get air at their end."""
    size = [max(window, n) for n in volume.shape[1:]]
    padded = torch.zeros(2, *size)
    padded[:, : volume.shape[1], : volume.shape[2], : volume.shape[3]] = _in_lungs(volume)
    found = [padded[:, *place] for place in dense_patch_slices(size, [window] * 3, [stride] * 3)]
    share = [np.mean(part[1].numpy() > 0.5) for part in found]
    enough = [part[:1] for part, lung in zip(found, share, strict=True) if lung >= min_lung]
    return enough or [found[int(np.argmax(share))][:1]]


def _reference_logits(network: WindowClassifier, volume: Tensor, window: int, stride: int, min_lung: float) -> Any:
    """Probabilities of one volume for the mean, logits for the others."""
    parts = _reference_windows(volume, window, stride, min_lung)
    features = torch.cat([network.backbone(part[None]) for part in parts])
    if network.attention is not None:
        return network.attention(features[None])[0]
    outputs = network.head(features)
    if network.pooling == "max":
        return torch.tensor([max(column) for column in outputs.T.tolist()])
    return outputs.mean(0)


SIZES = [(64, 48, 32), (70, 41, 33), (50, 20, 32), (20, 25, 17)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("min_lung", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_pooled_windows(size: tuple[int, ...], pooling: str, min_lung: float) -> None:
    """Of two volumes with different numbers of windows."""
    network, volumes = _network(pooling=pooling, min_lung=min_lung), _volumes(*size)
    if min_lung == 0.3 and size[0] >= 64:
        assert len({len(places) for places in network.places(volumes)}) == 2
    logits = network(volumes)
    assert logits.shape == (2, 2)
    for one, volume in zip(logits, volumes, strict=True):
        torch.testing.assert_close(one, _reference_logits(network, volume, 32, 16, min_lung), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_classes", [1, 2, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_every_head(num_classes: int, pooling: str) -> None:
    network = _network(num_classes, pooling=pooling)
    volumes = _volumes(64, 48, 32)
    logits = network(volumes)
    for one, volume in zip(logits, volumes, strict=True):
        torch.testing.assert_close(one, _reference_logits(network, volume, 32, 16, 0.1), rtol=1e-4, atol=1e-5)


def test_a_lesion_in_one_of_two_windows() -> None:
    """The mean of both logits is 0, the largest that of the lesion."""
    features, keep = torch.tensor([-50.0, 50.0, 0.0])[None, :, None].repeat(1, 1, 10), torch.tensor([[1, 1, 0]]) > 0
    for pooling, wanted in (("mean", 0), ("max", 50)):
        network = _network(1, pooling=pooling)
        nn.init.constant_(network.head.weight, 0.1)
        nn.init.zeros_(network.head.bias)
        assert network.pool(features, keep).item() == pytest.approx(wanted, abs=1e-4)


def test_the_backbones_head_and_features() -> None:
    """With one window, the network is its backbone."""
    backbone = _resnet(3).eval()
    volume = _volumes(32, 32, 32)
    with torch.no_grad():
        wanted = backbone(torch.stack([*map(_in_lungs, volume)])[:, :1])
        network = WindowClassifier(backbone, window=32).eval()
        torch.testing.assert_close(network(volume).softmax(1), wanted.softmax(1))
        torch.testing.assert_close(network.head(network.features), wanted)
    several = _volumes(64, 48, 32)
    network.min_lung = 0.3
    network(several)
    for mean, volume in zip(network.features, several, strict=True):
        parts = torch.stack(_reference_windows(volume, 32, 16, 0.3))
        torch.testing.assert_close(mean, network.backbone(parts).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_chunks_change_nothing(pooling: str) -> None:
    network, volumes = _network(pooling=pooling), _volumes(64, 48, 32)
    expected = network(volumes)
    for chunk in (1, 3, 100):
        network.chunk = chunk
        torch.testing.assert_close(network(volumes), expected, rtol=1e-4, atol=1e-5)


def test_windows_in_training_are_drawn_from_the_seed() -> None:
    network, volumes = _network(num_train_windows=2, min_lung=0.3), _volumes(64, 48, 48, lungs=(60, 1))
    every = network.places(volumes)
    assert [len(of_volume) for of_volume in every] == [12, 1]
    network.train()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append([network.places(volumes) for _ in range(40)])
    assert draws[0] == draws[1] != draws[2]
    for places in draws[0]:
        assert [len(of_volume) for of_volume in places] == [2, 1]
        assert places[0][0] != places[0][1]
    seen = {str(place) for places in draws[0] for place in places[0]}
    assert seen == {str(place) for place in every[0]}
    network.num_train_windows = None
    assert sorted(map(str, network.places(volumes)[0])) == sorted(map(str, every[0]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_checkpointing_keeps_gradients_and_running_averages(pooling: str) -> None:
    plain = _network(backbone=ImageClassifier(_resnet(), 2, dropout=0.3), pooling=pooling, chunk=3).train()
    networks = [plain, copy.deepcopy(plain)]
    plain.checkpointing = False
    volumes = _volumes(64, 48, 32)
    logits = []
    for network in networks:
        torch.manual_seed(3)
        logits.append(network(volumes))
        nn.functional.cross_entropy(logits[-1], torch.tensor([0, 1])).backward()
    torch.testing.assert_close(*logits)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        if one.grad is None:
            assert other.grad is None
        else:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert sum(p.grad is not None for p in plain.parameters()) >= 20
    for one, other in zip(*(network.buffers() for network in networks), strict=True):
        torch.testing.assert_close(one, other)
    counts = {int(value) for name, value in networks[1].state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {-(-sum(map(len, plain.places(volumes))) // 3)}


def test_no_chunk_of_one_is_left_over() -> None:
    """Batch normalization in training takes no single window of 32 voxels, whose last feature map is one cell."""
    network = _network(num_train_windows=3, chunk=2).train()
    sizes: list[int] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    network.chunk = 5
    network(_volumes(64, 48, 32, lungs=(60, 50)))
    assert sizes == [3, 3]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the number of classes is a constant
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "backbone", [_resnet, lambda: DenseNet(3, 1, 2, init_features=4, growth_rate=2, block_config=(1, 2))]
)
def test_exported_for_volumes_of_any_size(pooling: str, backbone: Any, tmp_path: Path) -> None:
    network, volumes = _network(backbone=backbone(), pooling=pooling), _volumes(*SIZES[0])
    convert_to_torchscript(network, tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    traced = torch.jit.trace(network, volumes, check_trace=False)
    for size, lungs in product(SIZES, [(40, 9, 1), (30,)]):
        others = _volumes(*size, lungs=lungs)
        with torch.no_grad():
            expected = network(others)
            torch.testing.assert_close(scripted(others), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(traced(others), expected, rtol=1e-4, atol=1e-5)


def test_attention_replaces_the_last_linear_layer() -> None:
    for backbone in (_resnet(), ImageClassifier(_resnet(), 3, hidden=7), DenseNet(3, 1, 3, 4, 2, (1, 2))):
        network = _network(3, backbone, pooling="attention")
        assert isinstance(network.attention, AttentionMIL)
        assert network(_volumes(64, 48, 32)).shape == (2, 3 if not isinstance(backbone, ResNet) else 2)
        assert network.attention.attention_weights is not None


def test_errors() -> None:
    for options, message in [
        ({"window": [32, 32]}, r"window must be \(X, Y, Z\) in voxels"),
        ({"window": 32, "stride": [32, 33, 32]}, "stride must be at most the window"),
        ({"pooling": "median"}, "pooling must be one of mean, max, attention, got 'median'"),
        ({"min_lung": 10}, "min_lung must lie in 0..1"),
        ({"chunk": 0}, "chunk and num_train_windows be 1 or more"),
        ({"num_train_windows": 0}, "chunk and num_train_windows be 1 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            _network(**options)
    with pytest.raises(ValueError, match="no linear layer"):
        WindowClassifier(nn.Conv3d(1, 2, 3), pooling="attention")
    for shape in [(1, 1, 32, 32, 32), (2, 32, 32, 32)]:
        with pytest.raises(ValueError, match=r"lung mask as second channel, got .* \(set masking to channel\)"):
            _network()(torch.zeros(*shape))
