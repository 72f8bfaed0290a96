"""Stages of networks: their names, sizes and the centers of their cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, resnet10, resnet18
from torch import Tensor, nn

from monai_pipelines.explain.stages import Stage, default_stage, stages
from monai_pipelines.networks import ImageClassifier

RESNET = {"n_input_channels": 1, "conv1_t_stride": 2, "bias_downsample": False, "widen_factor": 0.125}
DENSE = {"in_channels": 1, "out_channels": 2, "init_features": 4, "growth_rate": 2, "block_config": (1, 1, 1, 1)}


def _names_and_cells(network: nn.Module, image: Tensor) -> list[tuple[str, int]]:
    found = stages(network, image)
    assert [stage.name for stage in found] == sorted(
        (stage.name for stage in found), key=[name for name, _ in network.named_modules()].index
    )
    return [(stage.name, stage.cells[0]) for stage in found]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_resnet(spatial_dims: int) -> None:
    network = resnet10(spatial_dims=spatial_dims, **RESNET)
    image = torch.zeros(1, 1, *[64] * spatial_dims)
    resnet = [("act", 32), ("layer1", 16), ("layer2", 8), ("layer3", 4), ("layer4", 2)]
    assert _names_and_cells(network, image) == resnet
    wrapped = ImageClassifier(network, num_classes=2, attention=True)
    assert _names_and_cells(wrapped, image) == [(f"backbone.{name}", cells) for name, cells in resnet]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_densenet(spatial_dims: int) -> None:
    network = DenseNet(spatial_dims=spatial_dims, **DENSE)
    image = torch.zeros(1, 1, *[64] * spatial_dims)
    relus = [("features.relu0", 32), *((f"features.transition{k}.relu", 2 ** (5 - k)) for k in (1, 2, 3))]
    assert _names_and_cells(network, image) == [*relus, ("class_layers.relu", 2)]
    wrapped = ImageClassifier(network, num_classes=1, hidden=4)
    assert _names_and_cells(wrapped, image) == [
        *((f"backbone.{name}", cells) for name, cells in relus),
        ("backbone.relu", 2),
    ]


def test_small_stem() -> None:
    network = resnet18(spatial_dims=2, **RESNET | {"conv1_t_stride": 1}, conv1_t_size=3, no_max_pool=True)
    found = stages(network, torch.zeros(1, 1, 28, 28))
    assert [(stage.name, stage.cells) for stage in found] == [
        ("layer1", (28, 28)),
        ("layer2", (14, 14)),
        ("layer3", (7, 7)),
        ("layer4", (4, 4)),
    ]
    assert default_stage(found).name == "layer3"


def _center(network: nn.Module, stage: Stage, cell: tuple[int, ...], size: tuple[int, ...]) -> list[float]:
    """Center of the pixels that a cell depends on, by the gradient of a linear network."""
    image = torch.zeros(1, 1, *size, requires_grad=True)
    outputs: list[Tensor] = []
    hook = network.get_submodule(stage.name).register_forward_hook(lambda m, i, output: outputs.append(output))
    network(image)
    hook.remove()
    (gradient,) = torch.autograd.grad(outputs[0][(0, slice(None), *cell)].sum(), image)
    weight = gradient[0, 0].double()
    return [float((weight.sum([a for a in range(weight.ndim) if a != d]) * torch.arange(n)).sum() / weight.sum())
            for d, n in enumerate(size)]  # fmt: skip


def _linear(network: nn.Module) -> nn.Module:
    """The same geometry with equal weights, average for max pooling and no non-linearity."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.01 if isinstance(module, nn.Conv2d) else 1)
        if isinstance(module, nn.MaxPool2d):
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            network.set_submodule(name, pool)
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, nn.Hardtanh(-1e9, 1e9))
    return network.eval()


@pytest.mark.parametrize(
    "network",
    [
        resnet10(spatial_dims=2, **RESNET),
        DenseNet(spatial_dims=2, **DENSE),
        nn.Sequential(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.Conv2d(2, 2, 4, 3, dilation=2), nn.ReLU(), nn.AvgPool2d(2),
                      nn.Conv2d(2, 2, 3, padding="same"), nn.ReLU()),
    ],
    ids=["resnet", "densenet", "unpadded"],
)  # fmt: skip
def test_cells_are_centered_where_the_stage_says(network: nn.Module) -> None:
    size = (160, 96)
    network = _linear(network)
    found = stages(network, torch.zeros(1, 1, *size))
    assert len(found) >= 3
    for stage in found:
        cell = tuple(n // 2 for n in stage.cells)
        if 9 * max(stage.step_px) > min(size):  # its receptive field extends beyond the image
            continue
        expected = np.array(stage.first_px) + np.array(cell) * stage.step_px
        np.testing.assert_allclose(_center(network, stage, cell, size), expected, atol=0.1)


def test_other_reductions_divide_the_image_evenly() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d((4, 8)), nn.ReLU())
    (_, stage) = stages(nn.Sequential(nn.ReLU(), network), torch.zeros(1, 1, 16, 16))
    assert stage[1:] == ((4, 8), (4.0, 2.0), (1.5, 0.5))


def test_network_is_left_unchanged() -> None:
    network = DenseNet(spatial_dims=2, **DENSE).train()
    network.features.norm5.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stages(network, torch.rand(1, 1, 32, 32))
    assert network.training
    assert not network.features.norm5.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not [module for module in network.modules() if module._forward_hooks]


def test_layer_used_twice_is_not_a_stage() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.act = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()

        def forward(self, image: Tensor) -> Tensor:
            return self.act(self.convolution(self.act(self.convolution(image)))).mean((2, 3))

    assert stages(Twice(), torch.zeros(1, 1, 8, 8)) == []


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([(32, 32), (16, 16), (8, 8), (4, 4)], (8, 8)),
        ([(112, 112), (56, 56), (14, 14), (7, 7)], (7, 7)),
        ([(64, 8), (32, 4)], (64, 8)),
        ([(6, 6, 6), (3, 3, 3)], (6, 6, 6)),
    ],
)
def test_default_is_the_deepest_stage_with_enough_cells(
    cells: list[tuple[int, ...]], expected: tuple[int, ...]
) -> None:
    assert default_stage([Stage("", size, (1,), (0,)) for size in cells]).cells == expected
