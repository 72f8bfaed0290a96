"""Stages of a convolutional network: its feature maps, their cells, and where in the image each cell is centered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from monai_pipelines.networks import WindowClassifier
from monai_pipelines.networks.classifier import evaluating

MIN_CELLS = 7  # along the shortest side: fewer cannot localize anything

Cells = tuple[int, ...]


class Stage(NamedTuple):
    """Feature maps of one resolution."""

    name: str
    """Of the module that outputs them, as `torch.nn.Module.get_submodule` takes it."""
    cells: Cells
    """Size of the feature maps."""
    step_px: tuple[float, ...]
    """Input pixels from cell to cell."""
    first_px: tuple[float, ...]
    """Input pixel at the center of the first cell."""


def stages(network: nn.Module, image: Tensor) -> list[Stage]:
    """Find the stages of a network that Grad-CAM can use, by one forward pass.

    Of the layers with feature maps of one size, the last block or activation is used. The centers of its cells follow
    from kernels, strides and padding: a convolution of stride 2 with a 3x3 kernel padded by 1 has cell j on pixel 2j,
    not between 2j and 2j + 1, and three more of them shift the cells by half of their size. Other reductions are
    assumed to divide the image evenly. Of a `monai_pipelines.networks.WindowClassifier`, the stages are those of its
    backbone in one window.

    Args:
        network: any network of `torch.nn` modules; left unchanged.
        image: (1, C, H, W) or (1, C, X, Y, Z), the network's input.

    Returns:
        in forward order, without those of a single cell.

    Example:
        >>> import torch
        >>> from monai.networks.nets import resnet10
        >>> network = resnet10(spatial_dims=2, n_input_channels=1, conv1_t_stride=2, bias_downsample=False)
        >>> [(stage.name, stage.cells) for stage in stages(network, torch.zeros(1, 1, 64, 64))]
        [('act', (32, 32)), ('layer1', (16, 16)), ('layer2', (8, 8)), ('layer3', (4, 4)), ('layer4', (2, 2))]
    """
    if isinstance(network, WindowClassifier):
        with evaluating(network):
            window = network.cut(image[0], network.places(image)[0][0])
        return stages(network.backbone, window[None])
    size: Cells = tuple(image.shape[2:])
    places = {size: ((1.0,) * len(size), (0.0,) * len(size))}  # step and first pixel, by size of the feature maps
    names: dict[Cells, list[str]] = {}
    calls = Counter[str]()

    def visit(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != image.ndim:
            return
        cells = tuple(output.shape[2:])
        if cells not in places and hasattr(module, "kernel_size") and tuple(inputs[0].shape[2:]) in places:
            places[cells] = _placed(module, *places[tuple(inputs[0].shape[2:])])
        is_block = next(module.children(), None) is not None
        if name and (is_block or type(module).__module__ == "torch.nn.modules.activation"):
            calls[name] += 1
            names.setdefault(cells, []).append(name)

    hooks = [
        module.register_forward_hook(lambda m, inputs, output, name=name: visit(name, m, inputs, output))
        for name, module in network.named_modules()
    ]
    try:
        with evaluating(network):
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[Stage] = []
    for cells, layers in names.items():
        # a module with an earlier stage inside is (most of) the network, not a stage
        inner = [name for name in layers if not any(stage.name.startswith(f"{name}.") for stage in found)]
        once = [name for name in inner if calls[name] == 1]
        if once and max(cells) > 1:
            even = tuple(n / c for n, c in zip(size, cells, strict=True))
            step, first = places.get(cells) or (even, tuple((s - 1) / 2 for s in even))
            found.append(Stage(once[-1], cells, step, first))
    return found


def default_stage(found: Sequence[Stage]) -> Stage:
    """The deepest stage with at least 7 cells along its shortest side, else the one with the most cells.

    Deeper stages represent the class better and the position worse. On the lung CT demo (64 x 64 x 64 voxels,
    `benchmarks/explanation.py`), Grad-CAM finds the lesion with the 8 cells of the second of four stages, but not with
    the 4 and 2 of deeper ones.

    Args:
        found: from `stages`, not empty.

    Example:
        >>> default_stage([Stage("a", (16, 16), (2, 2), (0, 0)), Stage("b", (4, 4), (8, 8), (0, 0))]).name
        'a'
    """
    fine = [stage for stage in found if min(stage.cells) >= MIN_CELLS]
    return fine[-1] if fine else max(found, key=lambda stage: min(stage.cells))


def _placed(
    module: Any, step: tuple[float, ...], first: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Step and first pixel of the output cells of a convolution or pooling."""
    padding = 0 if module.padding == "valid" else module.padding
    values = (module.kernel_size, module.stride, padding, getattr(module, "dilation", 1), step, first)
    kernel, stride, pad, dilation, before, start = map(np.array, values)
    shift = dilation * (kernel - 1) / 2 - pad
    return tuple((before * stride).tolist()), tuple((start + before * shift).tolist())
