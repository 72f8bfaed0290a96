"""A classifier with options for its head, on the features of a ResNet or DenseNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from monai.networks.layers import Conv
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """The pooled features of MONAI's ResNet or DenseNet under a head with dropout and a hidden layer.

    The last feature map f (N, F, *positions) is averaged, or, with attention, weighted by a trainable map:
    ``sum_x a(x) f(x)`` with ``a = softmax_x(k . f(x))``, k a 1x1 convolution that starts at 0, which
    is the mean.
    The head is ``dropout -> linear`` or ``linear -> ReLU -> dropout -> linear``.

    Args:
        backbone: MONAI's ResNet or DenseNet, 2D or 3D; its layers are used, without its head. Their names get the
            prefix "backbone.".
        num_classes: outputs; 1 is the head with one logit.
        dropout: probability, 0..1.
        hidden: units of the hidden layer; None: no hidden layer.
        attention: pool with the trainable map.

    Raises:
        TypeError: another network.
        ValueError: a number out of range.

    Example:
        >>> from monai.networks.nets import resnet18
        >>> backbone = resnet18(spatial_dims=2, n_input_channels=1, conv1_t_stride=2, bias_downsample=False)
        >>> network = ImageClassifier(backbone, num_classes=1, dropout=0.5, hidden=512, attention=True).eval()
        >>> network(torch.zeros(2, 1, 64, 64)).shape, network.attention_map(torch.zeros(2, 1, 64, 64)).shape
        (torch.Size([2, 1]), torch.Size([2, 1, 2, 2]))
    """

    def __init__(
        self,
        backbone: ResNet | DenseNet,
        num_classes: int,
        dropout: float = 0.0,
        hidden: int | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or not 0 <= dropout <= 1 or (hidden is not None and hidden < 1):
            raise ValueError(
                "ImageClassifier: num_classes and hidden must be 1 or more and dropout in 0..1, "
                f"got num_classes {num_classes}, hidden {hidden}, dropout {dropout}"
            )
        self.backbone = _feature_map(backbone)
        num_features = last_linear(backbone).in_features
        spatial_dims = next(self.backbone.parameters()).ndim - 2
        self.attention = Conv[Conv.CONV, spatial_dims](num_features, 1, 1, bias=False) if attention else None
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)
        drop = nn.Dropout(dropout)
        if hidden is None:
            self.head = nn.Sequential(drop, nn.Linear(num_features, num_classes))
        else:
            self.head = nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(), drop, nn.Linear(hidden, num_classes))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, *size)."""
        features = self.backbone(image)
        flat = features.flatten(2)
        if self.attention is None:
            return self.head(flat.mean(2))
        weight = self.attention(features).flatten(2).softmax(2)
        return self.head((flat * weight).sum(2))

    def attention_map(self, image: Tensor) -> Tensor:
        """Weights of the positions, (N, 1, *positions), which sum to 1.

        Raises:
            ValueError: the network has no attention.
        """
        if self.attention is None:
            raise ValueError("ImageClassifier: no attention map (make the network with attention=True)")
        scores = self.attention(self.backbone(image))
        return scores.flatten(2).softmax(2).reshape(scores.shape)


def last_linear(network: nn.Module) -> nn.Linear:
    """The last linear layer of a classifier: its input is the feature vector, its output the logits.

    Raises:
        ValueError: the network has no linear layer.

    Example:
        >>> last_linear(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        Linear(in_features=3, out_features=2, bias=True)
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"last_linear: {type(network).__name__} has no linear layer (made without its head?)")
    return linear[-1]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; afterwards every layer has the mode that it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _feature_map(backbone: ResNet | DenseNet) -> nn.Sequential:
    """The layers up to the last feature map, under their names."""
    if isinstance(backbone, DenseNet):
        return nn.Sequential(OrderedDict(features=backbone.features, relu=backbone.class_layers.get_submodule("relu")))
    if not isinstance(backbone, ResNet):
        raise TypeError(f"ImageClassifier: backbone must be MONAI's ResNet or DenseNet, got {type(backbone).__name__}")
    head = {"avgpool", "fc"} | ({"maxpool"} if backbone.no_max_pool else set())
    return nn.Sequential(OrderedDict((n, m) for n, m in backbone.named_children() if n not in head))
