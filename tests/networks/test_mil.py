from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import ResNet
from monai.networks.utils import convert_to_torchscript
from torch import Tensor, nn

from monai_pipelines.handlers.collect import CollectFeatures
from monai_pipelines.networks import AttentionMIL, TileBackbone, last_linear

OPTIONS = [(pooling, branches) for pooling in ("gated", "attention") for branches in (1, 3)] + [("mean", 1), ("max", 1)]
WITH_ATTENTION = OPTIONS[:4]
SIZES = (9, 1, 30, 17, 2, 30, 5, 12)


def _network(pooling: str, branches: int = 1, **more: object) -> AttentionMIL:
    torch.manual_seed(0)
    sizes = {"in_features": 6, "num_classes": 3, "hidden": 8, "attention": 5}
    network = AttentionMIL(**{**sizes, **more}, pooling=pooling, branches=branches)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # attention far from uniform
    return network.eval()


def _bags(scattered: bool = False) -> tuple[list[Tensor], Tensor, Tensor]:
    """Bags, and their batch, padded with NaN; `scattered`: padding between tiles."""
    generator = torch.Generator().manual_seed(0)
    bags = [torch.randn(size, 6, generator=generator) for size in SIZES]
    mask = torch.arange(max(SIZES)) < torch.tensor(SIZES)[:, None]
    if scattered:
        mask = mask[:, torch.randperm(max(SIZES), generator=generator)]
    batch = torch.full((*mask.shape, 6), torch.nan)
    batch[mask] = torch.cat(bags)
    return bags, batch, mask


def _reference_mil(network: AttentionMIL, x: Tensor, pooling: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits and attention (branches, N) of one bag by the paper's formulas, in float64."""
    p = {name: value.numpy().astype(float) for name, value in network.state_dict().items()}
    h = np.maximum(x.numpy().astype(float) @ p["embed.0.weight"].T + p["embed.0.bias"], 0)
    if pooling in ("mean", "max"):
        z = h.mean(0) if pooling == "mean" else h.max(0)
        return p["head.weight"] @ z + p["head.bias"], None
    rows = p["attend.score.weight"].shape[1]
    v, u = p["attend.project.weight"][:rows], p["attend.project.weight"][rows:]
    content = np.tanh(h @ v.T + p["attend.project.bias"][:rows])
    if pooling == "gated":
        content = content / (1 + np.exp(-(h @ u.T + p["attend.project.bias"][rows:])))
    a = np.exp(content @ p["attend.score.weight"].T)
    a = (a / a.sum(0)).T
    z = a @ h  # (branches, hidden)
    vector = [z[c if len(z) > 1 else 0] for c in range(3)]
    return np.array([p["head.weight"][c] @ vector[c] + p["head.bias"][c] for c in range(3)]), a


@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_formulas(pooling: str, branches: int) -> None:
    network = _network(pooling, branches)
    for bag in _bags()[0]:
        logits, attention = _reference_mil(network, bag, pooling)
        with torch.no_grad():
            np.testing.assert_allclose(network(bag[None])[0], logits, atol=1e-5)
        if attention is None:
            assert network.attention_weights is None
        else:
            assert network.attention_weights is not None
            np.testing.assert_allclose(network.attention_weights[0], attention, atol=1e-6)


@pytest.mark.parametrize(("pooling", "branches", "scattered"), [(*o, s) for o in OPTIONS for s in (False, True)])
def test_bag_alone_equals_bag_in_a_batch(pooling: str, branches: int, scattered: bool) -> None:
    network = _network(pooling, branches)
    bags, batch, mask = _bags(scattered)
    with torch.no_grad():
        together = network(batch, mask)
        attention = network.attention_weights
        assert together.dtype == torch.float32
        for i, bag in enumerate(bags):
            torch.testing.assert_close(network(bag[None])[0], together[i], atol=1e-5, rtol=0)
            if attention is not None and network.attention_weights is not None:
                torch.testing.assert_close(network.attention_weights[0], attention[i][:, mask[i]], atol=1e-5, rtol=0)
    if attention is not None:
        assert attention.shape == (8, branches, 30)
        assert (attention.transpose(1, 2)[~mask] == 0).all()
        torch.testing.assert_close(attention.sum(2), torch.ones(8, branches))


@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_order_of_tiles_does_not_matter(pooling: str, branches: int) -> None:
    network = _network(pooling, branches)
    bag = _bags()[0][2]
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, attention = network(bag[None]), network.attention_weights
        torch.testing.assert_close(network(bag[order][None]), before)
    if attention is not None:
        torch.testing.assert_close(network.attention_weights, attention[:, :, order])
        assert attention.std() > 0.001


@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_no_gradient_reaches_padding(pooling: str, branches: int) -> None:
    network = _network(pooling, branches).train()
    _, batch, mask = _bags(scattered=True)
    batch.requires_grad_()
    network(batch, mask).square().sum().backward()
    assert batch.grad is not None
    assert (batch.grad[~mask] == 0).all()
    reached = batch.grad[mask].abs().sum(1)
    assert (reached > 0).float().mean() > (0.2 if pooling == "max" else 0.9)
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients)


class _Tiles(nn.Module):
    """A tile network that counts the tiles of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.conv = nn.Conv2d(3, 6, 2)

    def forward(self, tiles: Tensor) -> Tensor:
        self.calls.append(len(tiles))
        return self.conv(tiles).amax((2, 3))


@pytest.mark.parametrize("pooling", ["gated", "mean"])
def test_end_to_end(pooling: str) -> None:
    backbone = _Tiles()
    network = _network(pooling, backbone=backbone)
    mask = _bags(scattered=True)[2]
    tiles = torch.rand(*mask.shape, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    tiles[~mask] = torch.nan
    with torch.no_grad():
        features = torch.full((*mask.shape, 6), torch.nan)
        features[mask] = backbone(tiles[mask])
        on_features = copy.deepcopy(network)
        on_features.backbone = None
        torch.testing.assert_close(network(tiles, mask), on_features(features, mask))
        full = tiles[2:3]
        torch.testing.assert_close(network(full), network(full, mask[2:3]))
    assert backbone.calls == [sum(SIZES), sum(SIZES), 30, 30]
    tiles.requires_grad_()
    network.train()(tiles, mask).sum().backward()
    assert tiles.grad is not None
    assert (tiles.grad[~mask] == 0).all()
    assert backbone.conv.weight.grad.abs().max() > 0


def test_checkpointing_keeps_gradients() -> None:
    tiles = torch.rand(2, 70, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    plain = _network("gated", dropout=0, backbone=_Tiles()).train()
    networks = [plain, copy.deepcopy(plain)]
    networks[1].checkpoint_backbone = True
    for network in networks:
        network(tiles).square().sum().backward()
    for once, twice in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(once.grad, twice.grad)
    assert networks[0].backbone.calls == [140]
    assert sorted(networks[1].backbone.calls) == [12, 12, 64, 64, 64, 64]
    networks[1].backbone.calls.clear()
    networks[1].eval()(tiles)
    assert networks[1].backbone.calls == [140]


def test_attention_is_returned_and_stored() -> None:
    network = _network("gated")
    _, batch, mask = _bags()
    assert network.attention_weights is None
    logits, attention = network(batch, mask, return_attention=True)
    assert network.attention_weights is not None
    assert torch.equal(logits, network(batch, mask))
    assert torch.equal(attention, network.attention_weights)
    assert not network.attention_weights.requires_grad
    network.train()(batch, mask)
    assert network.attention_weights.requires_grad
    copied, pickled = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    assert copied.attention_weights is pickled.attention_weights is None
    assert network.attention_weights is not None
    network.eval()
    assert torch.equal(pickled.eval()(batch, mask), network(batch, mask))
    other = AttentionMIL(6, 3, hidden=8, attention=5).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(batch, mask), network(batch, mask))


def test_dropout_precedes_pooling() -> None:
    network = _network("mean", dropout=0.5)
    ones = torch.ones(4000, 6)
    with torch.no_grad():
        full, dropped = network.embed(ones), network.train().embed(ones)
    assert ((full > 0) & (dropped == 0)).float().sum() / (full > 0).float().sum() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(dropped.mean(0), full.mean(0), rtol=0.1, atol=0)


@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_bf16(pooling: str, branches: int) -> None:
    network = _network(pooling, branches)
    _, batch, mask = _bags()
    with torch.no_grad():
        expected, exact = network(batch, mask), network.attention_weights
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch, mask)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.05)
    if exact is not None and network.attention_weights is not None:
        assert network.attention_weights.dtype == torch.float32
        torch.testing.assert_close(network.attention_weights.sum(2), torch.ones(8, branches))
        torch.testing.assert_close(network.attention_weights, exact, atol=0.05, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_cuda(pooling: str, branches: int) -> None:
    network = _network(pooling, branches)
    _, batch, mask = _bags(scattered=True)
    expected, attention = network(batch, mask), network.attention_weights
    on_gpu = network.cuda()(batch.cuda(), mask.cuda()).cpu()
    torch.testing.assert_close(on_gpu, expected, atol=1e-3, rtol=0)
    if attention is not None and network.attention_weights is not None:
        torch.testing.assert_close(network.attention_weights.cpu(), attention, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_torchscript_takes_bags_of_any_length(pooling: str, branches: int, tmp_path: Path) -> None:
    network = _network(pooling, branches)
    bags, batch, mask = _bags()
    convert_to_torchscript(network, tmp_path / "model.ts", verify=True, inputs=[bags[0][None]])
    exported = torch.jit.load(tmp_path / "model.ts")
    torch.testing.assert_close(exported(bags[2][None]), network(bags[2][None]))
    torch.testing.assert_close(exported(batch, mask), network(batch, mask))
    if (pooling, branches) in WITH_ATTENTION:
        torch.testing.assert_close(exported(batch, mask, True), network(batch, mask, True))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_a_trace_takes_a_mask(pooling: str, branches: int) -> None:
    network = _network(pooling, branches=branches).eval()
    _, batch, mask = _bags()
    traced = torch.jit.trace(network, (batch, mask), check_trace=False)
    torch.testing.assert_close(traced(batch, mask), network(batch, mask))
    torch.testing.assert_close(traced(batch[:1, :9], mask[:1, :9]), network(batch[:1, :9], mask[:1, :9]))


def test_torchscript_end_to_end() -> None:
    resnet = ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], 2, 3, num_classes=5)
    network = _network("gated", in_features=10, backbone=TileBackbone(resnet), checkpoint_backbone=True)
    tiles = torch.randint(0, 256, (1, 3, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(torch.jit.script(network)(tiles), network(tiles))


def _head_inputs(network: AttentionMIL, batch: Tensor, mask: Tensor) -> Iterator[np.ndarray]:
    for _ in range(2):
        collected: list[Tensor] = []
        hook = last_linear(network).register_forward_pre_hook(lambda _, inputs, c=collected: c.append(inputs[0]))
        with torch.no_grad():
            network(batch, mask)
        hook.remove()
        yield torch.cat(collected).numpy()


@pytest.mark.parametrize(("pooling", "branches"), OPTIONS)
def test_last_linear_layer_gets_one_vector_per_bag(pooling: str, branches: int) -> None:
    network = _network(pooling, branches)
    assert CollectFeatures(network)._layer is network.head
    _, batch, mask = _bags()
    first, second = _head_inputs(network, batch, mask)
    assert first.shape == (8, 8 * branches)
    np.testing.assert_array_equal(first, second)


def test_arguments() -> None:
    for arguments in [*({name: 0} for name in ("in_features", "num_classes", "hidden", "attention")), {"dropout": 1.5}]:
        with pytest.raises(ValueError, match="must be 1 or more and dropout in"):
            _network("gated", **arguments)
    with pytest.raises(ValueError, match="pooling must be one of gated, attention, mean, max, got 'sum'"):
        _network("sum")
    with pytest.raises(ValueError, match=r"branches must be 1 or num_classes \(3\), got 2"):
        _network("gated", branches=2)
    with pytest.raises(ValueError, match=r"pooling 'max' has no attention to branch \(set branches to 1\)"):
        _network("max", branches=3)
    with pytest.raises(ValueError, match="checkpoint_backbone needs a backbone"):
        _network("gated", checkpoint_backbone=True)


def test_bags() -> None:
    network, (_, batch, mask) = _network("gated"), _bags()
    with pytest.raises(ValueError, match=r"wanted bags \(B, N, 6\), got \(30, 6\)"):
        network(batch[0])
    with pytest.raises(ValueError, match=r"wanted bags \(B, N, 6\), got \(8, 30, 4\)"):
        network(batch[..., :4])
    with pytest.raises(ValueError, match=r"wanted a bool mask \(8, 30\), got torch.float32 \(8, 30\)"):
        network(batch, mask.float())
    with pytest.raises(ValueError, match=r"wanted a bool mask \(8, 30\), got torch.bool \(8, 29\)"):
        network(batch, mask[:, 1:])
    empty = mask.clone()
    empty[3] = False
    with pytest.raises(ValueError, match="wanted tiles in each bag, got an empty one"):
        network(batch, empty)
    with pytest.raises(ValueError, match="wanted tiles in each bag, got an empty one"):
        network(batch[:, :0])
    with pytest.raises(ValueError, match="pooling 'mean' has no attention"):
        _network("mean")(batch, mask, return_attention=True)
    with pytest.raises(ValueError, match=r"wanted bags of tiles \(B, N, 3, H, W\), got \(8, 30, 6\)"):
        _network("gated", backbone=nn.Flatten())(batch, mask)
