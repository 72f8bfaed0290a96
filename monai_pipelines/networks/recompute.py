"""Gradient checkpointing: activations are recomputed in the backward pass instead of being stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_pipelines.networks.precision import SmallConvolutionsInFloat32


def recomputed(network: nn.Module, *inputs: Any, forward: Callable[..., Any] | None = None) -> Any:
    """Run a network; in training, its activations are recomputed in the backward pass instead of being stored.

    Running averages, such as those of batch normalization, are updated by the first pass only. Dropout is the same in
    both passes.

    Args:
        network: any network.
        inputs: of its forward pass.
        forward: called with the inputs; uses the network and returns tensors. None: the network itself.

    Example:
        >>> norm = nn.BatchNorm1d(1, momentum=0.5).train()
        >>> recomputed(norm, torch.tensor([[0.0], [4.0]])).sum().backward()
        >>> norm.running_mean, int(norm.num_batches_tracked)
        (tensor([1.]), 1)

    Reference:
        Chen et al., Training deep nets with sublinear memory cost, 2016. `torch.utils.checkpoint` updates running
        averages twice.
    """
    function = forward or network
    if not (network.training and torch.is_grad_enabled()):
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _repeated(network)))


@contextmanager
def unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Restore buffers, such as running averages, on exit."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)


@contextmanager
def _repeated(network: nn.Module) -> Iterator[None]:
    with unchanged_buffers(network), SmallConvolutionsInFloat32():  # backward passes are outside of `autocast`
        yield
