from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, resnet10
from torch import Tensor, nn

from monai_pipelines.inferers import AutocastInferer, DropoutInferer, TestTimeInferer
from monai_pipelines.networks import AttentionMIL, ImageClassifier
from monai_pipelines.probabilities import probabilities


class _Net(nn.Module):
    """Logits that depend on where the bright voxels are; keeps what it was shown."""

    def __init__(self, shape: tuple[int, ...], num_logits: int) -> None:
        super().__init__()
        self.linear = nn.Linear(int(np.prod(shape)), num_logits)
        generator = torch.Generator().manual_seed(0)
        self.linear.weight.data.copy_(torch.randn(self.linear.weight.shape, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.linear(images.flatten(1))


def _reference_views(image: np.ndarray, flips: tuple[int, ...], turned: tuple[int, int] | None) -> list[np.ndarray]:
    """All different views of an image (C, *spatial) without symmetry, by what they look like."""
    views: dict[tuple[float, ...], np.ndarray] = {}
    for mirrored in itertools.product([False, True], repeat=len(flips)):
        view = image
        for axis, mirror in zip(flips, mirrored, strict=True):
            view = np.flip(view, axis + 1) if mirror else view
        for k in range(4 if turned else 1):
            seen = np.rot90(view, k, [axis + 1 for axis in turned]) if turned else view
            views[tuple(seen.ravel().tolist())] = seen
    return list(views.values())


CASES = [  # shape of the image, flip axes, axes of the turn, number of views
    ((2, 6, 9), (), None, 1),
    ((2, 6, 9), (1,), None, 2),
    ((2, 6, 9), (0, 1), None, 4),
    ((2, 6, 6), (), (0, 1), 4),
    ((2, 6, 6), (1,), (0, 1), 8),
    ((2, 6, 6), (0, 1), (0, 1), 8),
    ((2, 6, 6), (0, 1), (1, 0), 8),
    ((1, 4, 5, 6), (0,), None, 2),
    ((1, 4, 5, 6), (0, 1, 2), None, 8),
    ((1, 4, 5, 4), (0, 1, 2), (0, 2), 16),
    ((1, 5, 4, 4), (), (1, 2), 4),
]


@pytest.mark.parametrize(("shape", "flips", "turned", "num_views"), CASES)
@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (3, False), (3, True), (1, True)])
def test_mean_and_spread_over_views(
    shape: tuple[int, ...],
    flips: tuple[int, ...],
    turned: tuple[int, int] | None,
    num_views: int,
    num_logits: int,
    multilabel: bool,
) -> None:
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    network = _Net(shape, num_logits)
    inferer = TestTimeInferer(flips, turned, multilabel, precision="fp32")
    with torch.no_grad():
        logits = inferer(images, network)
        assert len(network.seen) == len(inferer.views) == num_views
        assert torch.equal(network.seen[-1], images), "the last pass is that of the images as they are"
        for i, image in enumerate(images):
            views = _reference_views(image.numpy(), flips, turned)
            assert len(views) == num_views
            prob = probabilities(network.linear(torch.from_numpy(np.stack(views)).flatten(1)), multilabel).numpy()
            mean = prob.mean(axis=0)
            np.testing.assert_allclose(probabilities(logits[i], multilabel), mean, atol=1e-6)
            assert inferer.spread is not None
            assert inferer.spread.shape == (5,)
            assert inferer.spread[i].item() == pytest.approx(prob[:, mean.argmax()].std(), abs=1e-6)


@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (2, False), (2, True)])
def test_one_view_is_the_network_itself(num_logits: int, multilabel: bool) -> None:
    images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    network = _Net((1, 3, 3), num_logits)
    inferer = TestTimeInferer([], None, multilabel, "fp32")
    with torch.no_grad():
        plain, logits = AutocastInferer("fp32")(images, network), inferer(images, network)
    torch.testing.assert_close(probabilities(logits, multilabel), probabilities(plain, multilabel))
    assert inferer.spread is not None
    assert not inferer.spread.any()


def test_hand_worked_values() -> None:
    """One logit that is 100 at a bright left pixel and -100 at a right one: p is 1 and 0, and 1/2 in the mean."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    network[1].weight.data = torch.tensor([[100.0, -100.0]])
    images = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 0.5]]], [[[3.0, 3.1]]]])
    inferer = TestTimeInferer([1])
    with torch.no_grad():
        logits = inferer(images, network)
    torch.testing.assert_close(logits, torch.zeros(3, 1), atol=1e-4, rtol=0)
    assert inferer.spread is not None
    assert inferer.spread[:2].tolist() == pytest.approx([0.5, 0.0])


def test_far_logits_stay_finite() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    network[1].weight.data = torch.full((2, 4), 300.0) * torch.tensor([[1.0], [-1.0]])
    for multilabel in (False, True):
        with torch.no_grad():
            logits = TestTimeInferer([0, 1], None, multilabel)(torch.ones(1, 1, 2, 2), network)
        assert logits.isfinite().all()
        assert logits[0].argmax() == 0


def test_bf16_gives_float32() -> None:
    inferer = TestTimeInferer([0], precision="bf16")
    assert inferer(torch.ones(1, 1, 2, 2), _Net((1, 2, 2), 2)).dtype == torch.float32


def test_errors() -> None:
    for flips, turned in [([-1], None), ([0], [0]), ([0], [1, 1]), ([0], [0, -1]), ([], [0, 1, 2])]:
        with pytest.raises(ValueError, match="count spatial axes from 0, and rotate90_axes are two"):
            TestTimeInferer(flips, turned)
    with pytest.raises(ValueError, match="precision must be"):
        TestTimeInferer([0], precision="fp16")  # type: ignore[arg-type]
    network = _Net((1, 4, 5), 2)
    with pytest.raises(ValueError, match=r"equal sides, got \(4, 5\) .*set rotate90_axes to null"):
        TestTimeInferer([], [0, 1])(torch.ones(1, 1, 4, 5), network)
    with pytest.raises(ValueError, match=r"wanted images with 3 spatial axes, got shape \(1, 1, 4, 5\)"):
        TestTimeInferer([2])(torch.ones(1, 1, 4, 5), network)


# ---- Monte Carlo dropout


def _dropping(num_logits: int, probability: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    drop = nn.Dropout(probability)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), drop, nn.Linear(32, num_logits)).eval()


def _state(network: nn.Module) -> list[tuple[bool, list[Tensor]]]:
    return [(module.training, [value.clone() for value in module.buffers(False)]) for module in network.modules()]


@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (3, False), (3, True)])
def test_mean_and_spread_over_passes(num_logits: int, multilabel: bool) -> None:
    network, images = _dropping(num_logits), torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    network.register_forward_hook(lambda module, given, result: seen.append(result.detach()))
    before = _state(network)
    inferer = DropoutInferer(num_passes=7, multilabel=multilabel, precision="fp32")
    with torch.no_grad():
        logits = inferer(images, network)
        assert len(seen) == 8
        assert torch.equal(seen[-1], network(images)), "the last pass is that of the network as it is"
    prob = np.stack([probabilities(own, multilabel).numpy() for own in seen[:7]])
    mean = prob.mean(axis=0)
    np.testing.assert_allclose(probabilities(logits, multilabel), mean, atol=1e-6)
    wanted = [prob[:, k, c].std() for k, c in enumerate(mean.argmax(axis=1))]
    assert inferer.spread is not None
    np.testing.assert_allclose(inferer.spread, wanted, atol=1e-6)
    assert min(wanted) > 0.01
    for (training, buffers), (now, kept) in zip(before, _state(network), strict=True):
        assert (training, now) == (False, False)
        assert all(map(torch.equal, buffers, kept)), "batch normalisation stays"


def test_passes_become_the_expectation() -> None:
    """One unit, dropped in a quarter of the passes: p is 1/2 without it, sigmoid(4 / 0.75) with it."""
    network = nn.Sequential(nn.Dropout(0.25), nn.Linear(1, 1, bias=False)).eval()
    network[1].weight.data = torch.tensor([[4.0]])
    inferer = DropoutInferer(num_passes=2000)
    with torch.no_grad():
        prob = probabilities(inferer(torch.ones(1, 1), network))[0, 1].item()
    sure = 1 / (1 + np.exp(-4 / 0.75))
    assert prob == pytest.approx(0.75 * sure + 0.25 * 0.5, abs=0.01)
    assert inferer.spread is not None
    assert inferer.spread.item() == pytest.approx((sure - 0.5) * np.sqrt(0.25 * 0.75), abs=0.01)


def test_the_same_again_and_nothing_else_drawn() -> None:
    network, images = _dropping(2), torch.ones(3, 8)
    torch.manual_seed(5)
    first = DropoutInferer(3)(images, network)
    after = torch.rand(4)
    torch.manual_seed(6)
    assert torch.equal(DropoutInferer(3)(images, network), first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4), after)


@pytest.mark.parametrize("name", ["densenet", "classifier", "bags", "transformer"])
def test_networks_with_dropout(name: str) -> None:
    torch.manual_seed(0)
    image, arguments = torch.rand(2, 1, 32, 32), {}
    if name == "densenet":
        network: nn.Module = DenseNet(2, 1, 3, init_features=4, growth_rate=4, block_config=(2, 2), dropout_prob=0.3)
    elif name == "classifier":
        backbone = resnet10(spatial_dims=2, n_input_channels=1, feed_forward=True)
        network = ImageClassifier(backbone, num_classes=1, dropout=0.5, hidden=8)
    elif name == "bags":
        network = AttentionMIL(8, 2, hidden=16, attention=8)
        image = torch.rand(2, 3, 8)
        arguments = {"mask": torch.tensor([[True] * 3, [True, False, False]])}
    else:  # its fast path passes over dropout layers
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        network, image = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2)), torch.rand(2, 3, 8)
    inferer = DropoutInferer(4, precision="fp32")
    with torch.no_grad():
        plain = network.eval()(image, **arguments)
        attention = getattr(network, "attention_weights", None)
        assert inferer(image, network, **arguments).shape == plain.shape
        assert torch.equal(network(image, **arguments), plain)
    assert inferer.spread is not None
    assert (inferer.spread > 0).all()
    if attention is not None:
        assert torch.equal(network.attention_weights, attention)
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_cannot_drop_is_told() -> None:
    with pytest.raises(ValueError, match="num_passes must be 2 or more, got 1"):
        DropoutInferer(1)
    for network in (nn.Sequential(nn.Linear(8, 2)), _dropping(2, probability=0)):
        with pytest.raises(ValueError, match="Sequential has no dropout layer with a probability above 0"):
            DropoutInferer(3)(torch.ones(1, 8), network)


def test_a_pass_that_fails_leaves_the_network_as_it_was() -> None:
    network = _dropping(2)
    with pytest.raises(RuntimeError):
        DropoutInferer(3)(torch.ones(1, 9), network)
    assert not any(module.training for module in network.modules())
    assert torch.backends.mha.get_fastpath_enabled()
