"""Maps against their formulas, on networks with a known answer, which are left unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, resnet10
from monai.visualize import GradCAM, OcclusionSensitivity
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from monai_pipelines.explain import METHODS, explain_class, stages
from monai_pipelines.explain.maps import log_odds
from monai_pipelines.networks import ImageClassifier, WindowClassifier
from monai_pipelines.probabilities import probabilities

RESNET = {"n_input_channels": 1, "conv1_t_stride": 2, "bias_downsample": False, "widen_factor": 0.125}


class Brightest(nn.Module):
    """Logits (N, C): mean brightness of blurred cells, at two resolutions, with in-place activations."""

    def __init__(self, logits: int = 2, spatial_dims: int = 2) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.first = nn.Sequential(conv(1, 2, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.second = nn.Sequential(conv(2, 3, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(3, logits)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)
        nn.init.constant_(self.head.weight[-1:], 1.0)
        if logits == 1:
            nn.init.constant_(self.head.bias, -0.3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.second(self.first(image)).flatten(2).mean(2))


def _spot(size: tuple[int, ...], center: tuple[int, ...], radius: float = 3) -> Tensor:
    grid = np.meshgrid(*map(np.arange, size), indexing="ij")
    near = sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) <= radius**2
    return torch.tensor(near, dtype=torch.float32)[None, None]


@pytest.mark.parametrize(("size", "center"), [((48, 32), (33, 12)), ((24, 32, 28), (8, 21, 16))])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("logits", [1, 2, 3])
def test_map_finds_the_object_of_the_class(
    size: tuple[int, ...], center: tuple[int, ...], method: str, logits: int
) -> None:
    network = Brightest(logits, len(size))
    image = _spot(size, center)
    found = explain_class(network, image, max(1, logits - 1), method, multilabel=False)
    assert found.map.shape == size
    assert found.map.dtype == np.float32
    assert found.map.min() >= 0
    assert found.map.max() == 1
    near = 3 if method != "occlusion" else max(size) / 8
    np.testing.assert_allclose(found.peak, center, atol=near)
    prob = probabilities(network(image))[0, max(1, logits - 1)]
    assert found.prob == pytest.approx(float(prob.detach()), abs=1e-6)


def _reference_gradcam(network: Any, image: Tensor, index: int, plus: bool) -> NDArray[np.float32]:
    """By hand: features and gradients of `second`, log-odds as the score; on the grid of the cells."""
    features = network.second(network.first(image)).detach().requires_grad_()
    logits = network.head(features.flatten(2).mean(2))[0]
    logits = torch.cat([torch.zeros(1), logits]) if len(logits) == 1 else logits
    others = torch.cat([logits[:index], logits[index + 1 :]]).logsumexp(0)
    (gradient,) = torch.autograd.grad(logits[index] - others, features)
    a, g = features.detach().numpy()[0], gradient.numpy()[0]
    axes = tuple(range(1, a.ndim))
    if plus:
        alpha = g**2 / (2 * g**2 + (a * g**3).sum(axes, keepdims=True) + 1e-7)
        weight = (alpha * np.maximum(g, 0)).sum(axes, keepdims=True)
    else:
        weight = g.mean(axes, keepdims=True)
    coarse = np.maximum((weight * a).sum(0), 0)
    return coarse / max(coarse.max(), 1e-30)


@pytest.mark.parametrize("logits", [1, 2, 3])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [(40, 24), (16, 24, 12)])
def test_gradcam_by_its_formula(logits: int, plus: bool, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = Brightest(logits, len(size))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    image = torch.rand(1, 1, *size)
    for index in range(max(2, logits)):
        found = explain_class(network, image, index, "gradcam++" if plus else "gradcam", stage="second")
        assert found.cells == tuple(n // 4 for n in size)
        assert found.cell_px == (4,) * len(size)
        at_cells = found.map[tuple(slice(None, None, 4) for _ in size)]  # cell j is centerd on pixel 4j
        np.testing.assert_allclose(at_cells, _reference_gradcam(network, image, index, plus), atol=1e-5)


def test_maps_are_linear_between_cells() -> None:
    image = torch.rand(1, 1, 32, 24)
    found = explain_class(Brightest(), image, 1, stage="second").map
    columns = np.stack([np.interp(np.arange(32), np.arange(0, 32, 4), column) for column in found[::4].T], 1)
    np.testing.assert_allclose(found, columns, atol=1e-5)


def test_monai_shifts_the_cells() -> None:
    """Why maps are not up-sampled by MONAI (1.6.1)."""
    network, image = Brightest(), _spot((64, 64), (32, 32))
    up_sampled = GradCAM(network, "second")(image, class_idx=1)[0, 0]
    peak = torch.nonzero(up_sampled < 1e-5).float().mean(0)  # MONAI's map is upside down
    np.testing.assert_allclose(peak, 33.5, atol=0.2)
    assert explain_class(network, image, 1, stage="second").peak == (32, 32)


def test_occlusion_by_its_formula() -> None:
    torch.manual_seed(0)
    network, image = Brightest(3), torch.rand(1, 1, 16, 24)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    found = explain_class(network, image, 2, "occlusion")
    assert (found.stage, found.cells, found.cell_px, found.window_px) == (None, (9, 9), (2.0, 3.0), (4, 6))
    base, total, count = log_odds(network(image))[0, 2], torch.zeros(16, 24), torch.zeros(16, 24)
    for top in range(-2, 16, 2):
        for left in range(-3, 24, 3):
            covered = image.clone()
            where = slice(max(top, 0), top + 4), slice(max(left, 0), left + 6)
            covered[0, 0][where] = image.mean()
            total[where] += base - log_odds(network(covered))[0, 2]
            count[where] += 1
    assert count.unique().tolist() == [4], "as many windows on a corner as on the middle"
    expected = (total / count).clamp(min=0).detach().numpy()
    np.testing.assert_allclose(found.map, expected / expected.max(), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_occlusion_equals_monai_except_at_the_border() -> None:
    torch.manual_seed(0)
    network, image = Brightest(1, 3), torch.rand(1, 1, 8, 16, 12).clamp(min=0.25)
    covered = OcclusionSensitivity(network, (2, 4, 3), mode=0.25, overlap=0.5, activate=log_odds, verbose=False)
    fall = (log_odds(network(image))[0, 1] - covered(image)[0][0, 1]).clamp(min=0).detach().numpy()
    ours, inner = explain_class(network, image, 1, "occlusion").map, np.s_[1:-1, 2:-2, 2:-2]
    np.testing.assert_allclose(ours[inner] / ours[inner].max(), fall[inner] / fall[inner].max(), atol=1e-3)


@pytest.mark.parametrize("corner", [(0, 0), (0, 48), (48, 0), (48, 48)])
def test_occlusion_favours_no_corner(corner: tuple[int, int]) -> None:
    """A blob in the middle, and one in a corner with 0.6 times its evidence."""

    class Sum(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.flatten(1).mean(1, keepdim=True)

    image = torch.zeros(1, 1, 64, 64)
    image[..., 24:40, 24:40] = 1
    image[..., corner[0] : corner[0] + 16, corner[1] : corner[1] + 16] = 0.6
    found = explain_class(Sum(), image, 1, "occlusion")
    np.testing.assert_allclose(found.peak, (31.5, 31.5), atol=found.window_px[0] / 2)


def test_occlusion_skips_empty_regions() -> None:
    """Volumes are filled with air, each channel with its minimum."""
    seen: list[Tensor] = []

    class Sum(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return image.flatten(1).sum(1, keepdim=True)

    image = torch.full((1, 2, 8, 8, 8), -1.0)
    image[0, 1] = 5
    image[0, 0, 2, 2, 2] = 1
    found = explain_class(Sum(), image, 1, "occlusion")
    covered = torch.cat(seen[2:])
    assert len(covered) == 8  # of 9 x 9 x 9 places: windows of 2 voxels, moved by 1
    assert covered.unique().tolist() == [-1, 5]
    assert found.peak == (2, 2, 2)


@pytest.mark.parametrize("method", METHODS)
def test_classes_of_one_logit_are_opposites(method: str) -> None:
    torch.manual_seed(1)
    network, image = Brightest(1), _spot((32, 32), (16, 16))
    ill = explain_class(network, image, 1, method)
    healthy = explain_class(network, image, 0, method)
    assert ill.map[16, 16] > 0.5
    assert healthy.map[16, 16] == 0
    assert ill.prob + healthy.prob == pytest.approx(1)
    label = explain_class(network, image, 0, method, multilabel=True)
    np.testing.assert_allclose(label.map, ill.map, atol=1e-6)
    assert label.prob == ill.prob


def test_log_odds_are_those_of_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    for logits in (1, 2, 5):
        for multilabel in (False, True):
            values = torch.randn(7, logits, generator=generator, dtype=torch.float64)
            prob = probabilities(values, multilabel)
            np.testing.assert_allclose(log_odds(values, multilabel), prob.log() - (1 - prob).log(), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_very_confident_network_is_explained(method: str) -> None:
    network = Brightest()
    nn.init.constant_(network.head.weight[-1:], 1e5)
    found = explain_class(network, _spot((32, 32), (20, 12)), 1, method)
    assert found.prob == 1
    np.testing.assert_allclose(found.peak, (20, 12), atol=4)


@pytest.mark.parametrize("method", METHODS)
def test_network_is_left_unchanged(method: str) -> None:
    network = resnet10(spatial_dims=2, num_classes=2, **RESNET).train()
    network.layer1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = explain_class(network, image, 1, method)
    plain = explain_class(network, image, 1, method)
    np.testing.assert_array_equal(found.map, plain.map)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not network.layer1.training
    modules: list[Any] = list(network.modules())
    assert not [m for m in modules if m._forward_hooks or m._backward_hooks or m._forward_pre_hooks]
    assert [m.inplace for m in modules if isinstance(m, nn.ReLU)] == [True] * 5
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not image.requires_grad


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_stage_of_real_networks(spatial_dims: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    dense = DenseNet(spatial_dims, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1, 1))
    networks: list[nn.Module] = [
        resnet10(spatial_dims=spatial_dims, num_classes=2, **RESNET),
        dense,
        ImageClassifier(resnet10(spatial_dims=spatial_dims, **RESNET), 1, hidden=4, attention=True),
    ]
    image = torch.rand(1, 1, *[32] * spatial_dims)
    for network in networks:
        if channels_last:
            network.to(memory_format=torch.channels_last if spatial_dims == 2 else torch.channels_last_3d)
        for stage in stages(network, image):
            for method in ("gradcam", "gradcam++"):
                found = explain_class(network, image, 1, method, stage.name)
                assert (found.stage, found.cells) == (stage.name, stage.cells)
                assert np.isfinite(found.map).all()


def _patients(num: int, seed: int) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Images (N, 1, 64, 64) with a bright disc, label 1 where there is a striped patch too, and the patch's corner."""
    rng = np.random.default_rng(seed)
    images, label = rng.normal(0, 0.1, (num, 1, 64, 64)).astype(np.float32), np.arange(num) % 2
    corners = rng.integers(8, 44, (num, 2))
    stripes = np.where(np.arange(12) // 2 % 2, 1.0, -1.0)[None].repeat(12, 0)
    for image, ill, (top, left) in zip(images[:, 0], label, corners, strict=True):
        image += 2 * _spot((64, 64), ((top + 32) % 64, (left + 26) % 64), 7)[0, 0].numpy()
        image[top : top + 12, left : left + 12] += ill * stripes
    return torch.tensor(images), torch.tensor(label), corners


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    network = resnet10(spatial_dims=2, num_classes=2, **RESNET)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(50):
        images, label, _ = _patients(16, step)
        loss = nn.functional.cross_entropy(network(images), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _hits(network: nn.Module, method: str) -> float:
    """Share of ill patients whose map has its maximum in the patch or up to 4 pixels beside it."""
    images, label, corners = _patients(24, 1000)
    peaks = np.array([explain_class(network, image[None], 1, method).peak for image in images[label == 1]])
    return float((np.abs(peaks - corners[label == 1] - 5.5).max(1) <= 9.5).mean())


@pytest.mark.parametrize("method", METHODS)
def test_map_finds_the_lesion_and_random_weights_do_not(method: str, trained: nn.Module) -> None:
    """Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018."""
    random = []
    for seed in range(1 if method == "occlusion" else 3):
        torch.manual_seed(seed)
        random.append(_hits(resnet10(spatial_dims=2, num_classes=2, **RESNET), method))
    assert _hits(trained, method) >= 0.8
    assert np.mean(random) <= 0.5


def test_no_evidence_for_the_class() -> None:
    found = explain_class(Brightest(), _spot((32, 32), (16, 16)), 0)
    assert not found.map.any()
    assert np.isfinite(found.map).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "cam"}, "method must be one of gradcam, gradcam\\+\\+, occlusion, got 'cam'"),
        ({"image": torch.zeros(2, 1, 8, 8)}, "wanted one image .*got \\(2, 1, 8, 8\\)"),
        ({"image": torch.zeros(1, 8, 8)}, "got \\(1, 8, 8\\)"),
        ({"class_index": 2}, "class_index must lie in 0..1, got 2"),
        ({"class_index": -1}, "got -1"),
        ({"stage": "third"}, "stage must be one of first \\(4 x 4 cells\\), second \\(2 x 2 cells\\), got 'third'"),
        ({"stage": "first", "method": "occlusion"}, "occlusion has no stage"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))}, "no feature maps"),
    ],
)
def test_wrong_arguments_are_refused(changed: dict[str, Any], message: str) -> None:
    settings = {"network": Brightest(), "image": torch.zeros(1, 1, 8, 8), "class_index": 1} | changed
    with pytest.raises(ValueError, match=message):
        explain_class(**settings)


def _reference_window_map(network: WindowClassifier, volume: Tensor, index: int) -> NDArray[np.float32]:
    """By hand, with the gradients of all windows at once; mean of the windows on a voxel."""
    backbone: Any = network.backbone
    (places,) = network.places(volume)
    windows = torch.stack([(volume[0, :1] * volume[0, 1])[:, *place] for place in places])
    features = backbone.second(backbone.first(windows)).detach().requires_grad_()
    odds = log_odds(network.pool(features.flatten(2).mean(2)[None], torch.ones(1, len(places)) > 0))[0, index]
    (gradient,) = torch.autograd.grad(odds, features)
    coarse = (gradient.mean((2, 3, 4), keepdim=True) * features).sum(1).relu().detach().numpy()
    total, count = np.zeros(volume.shape[2:]), np.zeros(volume.shape[2:])
    for place, cells in zip(places, coarse, strict=True):
        at = [np.minimum(np.arange(16) / 4, 3)] * 3  # cell j on voxel 4j, constant beyond the last
        total[place] += RegularGridInterpolator([np.arange(4)] * 3, cells)(
            np.stack(np.meshgrid(*at, indexing="ij"), -1)
        )
        count[place] += 1
    return total / count.clip(1)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
@pytest.mark.parametrize("logits", [1, 2, 3])
def test_maps_of_windows_are_put_together(pooling: Any, logits: int) -> None:
    torch.manual_seed(0)
    network = WindowClassifier(Brightest(logits, 3), 16, 8, pooling=pooling, num_train_windows=2).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    volume = torch.rand(1, 2, 32, 24, 16)
    volume[:, 1] = (torch.arange(32) < 20)[:, None, None]
    assert [stage.cells for stage in stages(network, volume)] == [(8, 8, 8), (4, 4, 4)]
    for index in range(max(2, logits)):
        found = explain_class(network, volume, index, stage="second")
        wanted = _reference_window_map(network.eval(), volume, index)
        np.testing.assert_allclose(found.map, wanted / max(wanted.max(), 1e-30), atol=1e-4)
        assert (found.cells, found.cell_px) == ((4, 4, 4), (4, 4, 4))
        assert found.prob == pytest.approx(probabilities(network(volume))[0, index].item(), abs=1e-5)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("size", [(40, 32, 28), (12, 20, 10)])
def test_windows_find_the_object_of_the_class(size: tuple[int, ...], method: str) -> None:
    """In a volume smaller than a window, too."""
    center = tuple(n // 3 for n in size)
    volume = torch.cat([_spot(size, center), torch.ones(1, 1, *size)], 1)
    network = WindowClassifier(Brightest(2, 3), 16, 8)
    found = explain_class(network, volume, 1, method, stage="second")
    assert found.map.shape == size
    np.testing.assert_allclose(found.peak, center, atol=4)
