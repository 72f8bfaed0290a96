from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, resnet10
from torch import Tensor, nn

from monai_pipelines.inferers import AutocastInferer, DropoutInferer, EnsembleInferer, TestTimeInferer
from monai_pipelines.networks import AttentionMIL, ImageClassifier
from monai_pipelines.probabilities import probabilities


class _Net(nn.Module):
    """Logits that depend on where the bright voxels are; keeps its inputs."""

    def __init__(self, shape: tuple[int, ...], num_logits: int) -> None:
        super().__init__()
        self.linear = nn.Linear(int(np.prod(shape)), num_logits)
        generator = torch.Generator().manual_seed(0)
        self.linear.weight.data.copy_(torch.randn(self.linear.weight.shape, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.linear(images.flatten(1))


def _reference_views(image: np.ndarray, flips: tuple[int, ...], plane: tuple[int, int] | None) -> list[np.ndarray]:
    """All different views of an image (C, *spatial) without symmetry, by their pixels."""
    views: dict[tuple[float, ...], np.ndarray] = {}
    for mirrored in itertools.product([False, True], repeat=len(flips)):
        view = image
        for axis, mirror in zip(flips, mirrored, strict=True):
            view = np.flip(view, axis + 1) if mirror else view
        for k in range(4 if plane else 1):
            rotated = np.rot90(view, k, [axis + 1 for axis in plane]) if plane else view
            views[tuple(rotated.ravel().tolist())] = rotated
    return list(views.values())


def _reference_mean_and_spread(
    logits: np.ndarray, multilabel: bool, temperatures: Sequence[float | None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """From logits (V, N, C): mean probabilities, and population standard deviation (N,) of the likeliest class."""
    z = np.stack([v / (t or 1) for v, t in zip(logits, temperatures or [None] * len(logits), strict=True)], dtype=float)
    if not multilabel and z.shape[2] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=2)
    exp = np.exp(-z) if multilabel else np.exp(z - z.max(axis=2, keepdims=True))
    prob = 1 / (1 + exp) if multilabel else exp / exp.sum(axis=2, keepdims=True)
    mean = prob.mean(axis=0)
    return mean, np.array([prob[:, i, c].std() for i, c in enumerate(mean.argmax(axis=1))])


CASES = [  # shape of the image, flip axes, rotated plane, number of views
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


@pytest.mark.parametrize(("shape", "flips", "plane", "num_views"), CASES)
@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (3, False), (3, True), (1, True)])
def test_mean_and_spread_over_views(
    shape: tuple[int, ...],
    flips: tuple[int, ...],
    plane: tuple[int, int] | None,
    num_views: int,
    num_logits: int,
    multilabel: bool,
) -> None:
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    network = _Net(shape, num_logits)
    inferer = TestTimeInferer(flips, plane, multilabel, precision="fp32")
    with torch.no_grad():
        logits = inferer(images, network)
        assert len(network.seen) == len(inferer.views) == num_views
        assert torch.equal(network.seen[-1], images), "the last pass is over the images as they are"
        views = [_reference_views(image.numpy(), flips, plane) for image in images]
        assert {len(of_image) for of_image in views} == {num_views}
        single = network.linear(torch.from_numpy(np.array(views)).flatten(2)).transpose(0, 1)
    mean, spread = _reference_mean_and_spread(single.numpy(), multilabel)
    np.testing.assert_allclose(probabilities(logits, multilabel), mean, atol=1e-6)
    assert inferer.spread is not None
    np.testing.assert_allclose(inferer.spread, spread, atol=1e-6)


@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (2, False), (2, True)])
def test_one_view_equals_the_network(num_logits: int, multilabel: bool) -> None:
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


def test_extreme_logits_stay_finite() -> None:
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
    for flips, plane in [([-1], None), ([0], [0]), ([0], [1, 1]), ([0], [0, -1]), ([], [0, 1, 2])]:
        with pytest.raises(
            ValueError, match="must be spatial axes, from 0, and rotate90_axes two of them or None, got"
        ):
            TestTimeInferer(flips, plane)
    with pytest.raises(ValueError, match="precision must be"):
        TestTimeInferer([0], precision="fp16")  # type: ignore[arg-type]
    network = _Net((1, 4, 5), 2)
    with pytest.raises(ValueError, match=r"equal sides, got \(4, 5\) .*set rotate90_axes to null"):
        TestTimeInferer([], [0, 1])(torch.ones(1, 1, 4, 5), network)
    with pytest.raises(ValueError, match=r"wanted images with 3 spatial axes, got shape \(1, 1, 4, 5\)"):
        TestTimeInferer([2])(torch.ones(1, 1, 4, 5), network)


# ---- Monte Carlo dropout


def _dropout_network(num_logits: int, probability: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    drop = nn.Dropout(probability)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), drop, nn.Linear(32, num_logits)).eval()


def _state(network: nn.Module) -> list[tuple[bool, list[Tensor]]]:
    return [(module.training, [value.clone() for value in module.buffers(False)]) for module in network.modules()]


@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (3, False), (3, True)])
def test_mean_and_spread_over_passes(num_logits: int, multilabel: bool) -> None:
    network, images = _dropout_network(num_logits), torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    network.register_forward_hook(lambda module, inputs, result: seen.append(result.detach()))
    before = _state(network)
    inferer = DropoutInferer(num_passes=7, multilabel=multilabel, precision="fp32")
    with torch.no_grad():
        logits = inferer(images, network)
        assert len(seen) == 8
        assert torch.equal(seen[-1], network(images)), "the last pass is without dropout"
    mean, spread = _reference_mean_and_spread(np.stack(seen[:7]), multilabel)
    np.testing.assert_allclose(probabilities(logits, multilabel), mean, atol=1e-6)
    assert inferer.spread is not None
    np.testing.assert_allclose(inferer.spread, spread, atol=1e-6)
    assert spread.min() > 0.01
    for (training, buffers), (training_after, buffers_after) in zip(before, _state(network), strict=True):
        assert (training, training_after) == (False, False)
        assert all(map(torch.equal, buffers, buffers_after)), "batch normalization is unchanged"


def test_many_passes_approach_the_expectation() -> None:
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


def test_reproducible_and_leaves_the_generator_alone() -> None:
    network, images = _dropout_network(2), torch.ones(3, 8)
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
    else:  # its fast path skips dropout layers
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


def test_networks_without_dropout_are_refused() -> None:
    with pytest.raises(ValueError, match="num_passes must be 2 or more, got 1"):
        DropoutInferer(1)
    for network in (nn.Sequential(nn.Linear(8, 2)), _dropout_network(2, probability=0)):
        with pytest.raises(ValueError, match="Sequential has no dropout layer with a probability above 0"):
            DropoutInferer(3)(torch.ones(1, 8), network)


def test_failing_pass_restores_the_network() -> None:
    network = _dropout_network(2)
    with pytest.raises(RuntimeError):
        DropoutInferer(3)(torch.ones(1, 9), network)
    assert not any(module.training for module in network.modules())
    assert torch.backends.mha.get_fastpath_enabled()


# ---- ensembles


class _Member(nn.Module):
    """Returns fixed logits and notes that it was called."""

    def __init__(self, logits: np.ndarray, calls: list[nn.Module]) -> None:
        super().__init__()
        self.logits, self.calls = torch.from_numpy(logits).float(), calls

    def forward(self, images: Tensor, scale: float) -> Tensor:
        self.calls.append(self)
        return self.logits * scale


@pytest.mark.parametrize("temperatures", [[None, None, None], [None, 2.5, 0.5]])
@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (2, False), (4, False), (1, True), (3, True)])
def test_mean_and_spread_over_members(num_logits: int, multilabel: bool, temperatures: list[float | None]) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (3, 6, num_logits)).astype(np.float32)
    logits[0, 0, 0], logits[0, 1, -1] = -700, 700
    calls: list[nn.Module] = []
    inferer = EnsembleInferer(AutocastInferer("fp32"), multilabel)
    inferer.members = [(_Member(member / 4, calls), t) for member, t in zip(logits, temperatures, strict=True)]
    with np.errstate(over="ignore", under="ignore"):
        mean, spread = _reference_mean_and_spread(logits.astype(np.float64), multilabel, temperatures)
    output = inferer(torch.zeros(6, 1), inferer.members[0][0], 4.0)
    assert calls == [member for member, _ in reversed(inferer.members)], "the first member makes the last pass"
    assert (output.dtype, output.shape) == (torch.float64, (6, num_logits))
    positive = mean if multilabel else mean[:, 1:]
    log_odds = np.log(positive) - np.log1p(-positive)
    np.testing.assert_allclose(output, log_odds if multilabel or num_logits == 1 else np.log(mean), rtol=1e-9)
    np.testing.assert_allclose(probabilities(output, multilabel), mean, rtol=1e-12)
    assert inferer.spread is not None
    np.testing.assert_allclose(inferer.spread, spread, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (2, False), (2, True)])
def test_member_with_probability_zero(num_logits: int, multilabel: bool) -> None:
    """Logits beyond +-745 give probabilities of exactly 0 and 1 in float64, also when all members agree."""
    certain = np.full((1, num_logits), 2000.0)
    certain[0, 0] = -2000.0
    for other, expected, spread in ((np.zeros_like(certain), 0.75, 0.25), (certain, 1.0, 0.0)):
        inferer = EnsembleInferer(AutocastInferer("fp32"), multilabel)
        inferer.members = [(_Member(logits, []), None) for logits in (certain, other)]
        output = inferer(torch.zeros(1, 1), inferer.members[0][0], 1.0)
        assert output.isfinite().all()
        prob = probabilities(output, multilabel)[0]
        assert prob.max().item() == pytest.approx(expected)
        assert prob.min().item() == pytest.approx(1 - expected)
        assert inferer.spread is not None
        assert inferer.spread.tolist() == pytest.approx([spread])


def test_ensemble_without_members() -> None:
    with pytest.raises(ValueError, match="wanted members, got none"):
        EnsembleInferer(AutocastInferer())(torch.zeros(1, 2), nn.Linear(2, 2))
