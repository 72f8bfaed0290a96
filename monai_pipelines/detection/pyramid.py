"""Feature maps of several resolutions from MONAI's ResNet or DenseNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn

from monai_pipelines.networks.recompute import recomputed

_PROBE = 64  # pixels


class FeaturePyramid(nn.Module):
    """A feature pyramid on the stages of a backbone, by MONAI's `FeaturePyramidNetwork`, without torchvision.

    Args:
        backbone: MONAI's ResNet or DenseNet, 2D or 3D; its head is not used.
        out_channels: of every map.
        stages: of the backbone that get a level, 1 to 4, rising.
        checkpointing: compute the backbone's stages again in the backward pass instead of keeping them in memory.

    Attributes:
        strides: pixels along a cell of each level.
        out_channels, spatial_dims: of the maps.

    Raises:
        TypeError: another network.
        ValueError: stages that do not rise within 1..4.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> backbone = resnet10(spatial_dims=3, n_input_channels=1, conv1_t_stride=2)
        >>> pyramid = FeaturePyramid(backbone, out_channels=32, stages=(1, 2))
        >>> pyramid.strides, [tuple(level.shape) for level in pyramid(torch.zeros(1, 1, 32, 32, 32))]
        ((4, 8), [(1, 32, 8, 8, 8), (1, 32, 4, 4, 4)])

    Reference: Lin et al., Feature pyramid networks for object detection, CVPR 2017.
    """

    def __init__(
        self,
        backbone: ResNet | DenseNet,
        out_channels: int = 64,
        stages: Sequence[int] = (1, 2, 3),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if list(stages) != sorted({*stages}) or not stages or stages[0] < 1 or stages[-1] > 4:
            raise ValueError(f"FeaturePyramid: stages must rise within 1..4, got {list(stages)}")
        if not isinstance(backbone, ResNet | DenseNet):
            raise TypeError(
                f"FeaturePyramid: backbone must be MONAI's ResNet or DenseNet, got {type(backbone).__name__}"
            )
        parts = _resnet_stages(backbone) if isinstance(backbone, ResNet) else _densenet_stages(backbone)
        self.stages = nn.ModuleList(parts[: stages[-1]])
        self.levels, self.checkpointing, self.out_channels = tuple(stages), checkpointing, out_channels
        weight = next(backbone.parameters())
        self.spatial_dims = weight.ndim - 2
        with torch.no_grad():
            training = backbone.training
            maps = self.eval()._maps(torch.zeros(1, weight.shape[1], *[_PROBE] * self.spatial_dims))
            self.train(training)
        self.strides = tuple(_PROBE // level.shape[2] for level in maps)
        self.pyramid = FeaturePyramidNetwork(self.spatial_dims, [level.shape[1] for level in maps], out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of images (B, C, *size), finest first."""
        maps = self._maps(images)
        return list(self.pyramid(OrderedDict((str(k), level) for k, level in enumerate(maps))).values())

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps, features = [], images
        for number, stage in enumerate(self.stages, start=1):
            features = recomputed(stage, features) if self.checkpointing else stage(features)
            if number in self.levels:
                maps.append(features)
        return maps


def _resnet_stages(net: ResNet) -> list[nn.Module]:
    stem = [net.conv1, net.bn1, net.act, *([] if net.no_max_pool else [net.maxpool])]
    return [nn.Sequential(*stem, net.layer1), net.layer2, net.layer3, net.layer4]


def _densenet_stages(net: DenseNet) -> list[nn.Module]:
    """Each ends with a dense block; the transition before it belongs to the next."""
    stages: list[nn.Module] = []
    pending: list[nn.Module] = []
    for name, module in net.features.named_children():
        pending.append(module)
        if name.startswith("denseblock"):
            stages.append(nn.Sequential(*pending))
            pending = []
    return stages
