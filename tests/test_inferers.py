from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_pipelines.heads import probabilities
from monai_pipelines.inferers import AutocastInferer, TestTimeInferer


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
        assert torch.equal(network.seen[0], images)
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
