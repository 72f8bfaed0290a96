"""Gradient checkpointing for classifiers: activations are recomputed in the backward pass instead of being stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn
from torch.nn import functional

from monai_pipelines.networks.classifier import ImageClassifier
from monai_pipelines.networks.recompute import recomputed

STEM_PARTS = 4  # into which the channels of the stem are divided

N = TypeVar("N", bound=nn.Module)


def checkpointed(network: N, enabled: bool = True) -> N:
    """Change a network in place so that it recomputes the activations of its stages in the backward pass.

    Weights, their names and the results stay the same. The stem, whose feature maps are by far the largest, is computed
    a quarter of its channels at a time.

    Args:
        network: MONAI's ResNet or DenseNet, or an `ImageClassifier` of one.
        enabled: if False, the network is returned unchanged.

    Raises:
        TypeError: another network.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> network = checkpointed(resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2))
        >>> network(torch.zeros(2, 1, 32, 32, 32)).shape
        torch.Size([2, 2])

    Reference: Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174, 2016.
    """
    if not enabled:
        return network
    if isinstance(network, ResNet):
        _recompute_blocks(network)
        network.__class__ = _ResNet  # type: ignore[assignment]
    elif isinstance(network, DenseNet):
        network.features = _Features(_recompute_blocks(network.features))
    elif isinstance(network, ImageClassifier):
        holder, name = (
            (network.backbone, "features") if hasattr(network.backbone, "features") else (network, "backbone")
        )
        setattr(holder, name, _Features(_recompute_blocks(holder.get_submodule(name))))
    else:
        raise TypeError(
            "checkpointed: wanted MONAI's ResNet or DenseNet, or an ImageClassifier, got "
            f"{type(network).__name__} (set checkpointing to false)"
        )
    return network


class _Blocks(nn.Sequential):
    """A stage."""

    def forward(self, features: Tensor) -> Tensor:
        for block in self:
            features = recomputed(block, features)
        return features


class _Features(nn.Sequential):
    """A stem and stages."""

    def forward(self, images: Tensor) -> Tensor:
        return _stem_and_stages(list(self), images)


class _ResNet(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        pool = [] if self.no_max_pool else [self.maxpool]
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        features = self.avgpool(_stem_and_stages([self.conv1, self.bn1, self.act, *pool, *stages], x)).flatten(1)
        return features if self.fc is None else self.fc(features)


_ResNet.__name__ = ResNet.__name__  # for checkpoints and messages


def _recompute_blocks(network: nn.Module) -> OrderedDict[str, nn.Module]:
    """Replace each layer that is a sequence of blocks by a recomputing one; returns all layers."""
    for name, layer in network.named_children():
        if isinstance(layer, nn.Sequential) and all(any(block.children()) for block in layer):
            setattr(network, name, _Blocks(OrderedDict(layer.named_children())))
    return OrderedDict(network.named_children())


def _stem_and_stages(layers: Sequence[nn.Module], images: Tensor) -> Tensor:
    first = next(n for n, layer in enumerate(layers) if isinstance(layer, _Blocks))
    features = _stem(layers[:first], images)
    for layer in layers[first:]:
        features = layer(features) if isinstance(layer, _Blocks) else recomputed(layer, features)
    return features


def _stem(layers: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Convolution, batch normalization, activation and pooling; in training, computed some channels at a time.

    This is possible since their channels are independent. With other kinds of norms, activations are stored as usual.
    """
    convolution: Any
    norm: Any
    convolution, norm, *others = layers
    plain = isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) and norm.track_running_stats and norm.momentum is not None
    if not (plain and norm.training and torch.is_grad_enabled()):
        return nn.Sequential(*layers)(images)
    norm.num_batches_tracked.add_(1)

    def part(images: Tensor, channels: slice) -> Tensor:
        values = (norm.weight, norm.bias, convolution.weight, convolution.bias)
        scale, shift, weight, bias = (None if value is None else value[channels] for value in values)
        averages = norm.running_mean[channels], norm.running_var[channels]
        maps = convolution._conv_forward(images, weight, bias)
        maps = functional.batch_norm(maps, *averages, scale, shift, True, norm.momentum, norm.eps)
        return nn.Sequential(*others)(maps)

    step = -(-norm.num_features // STEM_PARTS)
    starts = range(0, norm.num_features, step)
    return torch.cat([recomputed(norm, images, slice(n, n + step), forward=part) for n in starts], 1)
