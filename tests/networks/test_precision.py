"""bf16 autocast on a CPU gives what float32 gives, whatever the size of the image."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from monai_pipelines.networks.precision import SmallConvolutionsInFloat32, autocast

SHAPES = [*product((2, 3), (3, 5), (1, 2), range(1, 7), (torch.contiguous_format, None))]


@pytest.mark.parametrize(("dims", "kernel", "stride", "side", "memory_format"), SHAPES)
def test_convolution_of_a_small_image(
    dims: int, kernel: int, stride: int, side: int, memory_format: torch.memory_format | None
) -> None:
    torch.manual_seed(0)
    layer = (nn.Conv2d, nn.Conv3d)[dims - 2](8, 16, kernel, stride, kernel // 2)
    channels_last = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    layer = layer.to(memory_format=memory_format or channels_last)
    image = torch.randn(2, 8, *[side] * dims, requires_grad=True)

    def results(precision: str) -> list[Tensor]:
        with autocast(precision, "cpu"):
            maps = layer(image)
        return [maps.float(), *torch.autograd.grad(maps.float().square().sum(), [image, layer.weight, layer.bias])]

    for got, wanted in zip(results("bf16"), results("fp32"), strict=True):
        assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_only_small_convolutions_leave_bf16() -> None:
    layer = nn.Conv3d(1, 1, (3, 3, 1))
    with torch.autocast("cpu", torch.bfloat16), SmallConvolutionsInFloat32():
        assert layer(torch.ones(1, 1, 4, 4, 1)).dtype == torch.bfloat16, "a side of 1 under a kernel of 1"
        assert layer(torch.ones(1, 1, 4, 3, 9)).dtype == torch.float32
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with SmallConvolutionsInFloat32():
        assert layer.double()(torch.ones(1, 1, 3, 3, 1).double()).dtype == torch.float64, "no autocast, no change"
