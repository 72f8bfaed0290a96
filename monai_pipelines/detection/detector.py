"""What all detectors have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_pipelines.detection.boxes import Target, check_target, select
from monai_pipelines.detection.pyramid import FeaturePyramid


class Detector(nn.Module, ABC):
    """A network that finds boxes in 2D or 3D images.

    Called with targets it returns losses by name, whose sum is trained; without, what it finds in each image. Traced,
    as for TorchScript and ONNX, it returns what it would choose from: boxes (B, M, 2 d) and their scores (B, M, C).

    Args:
        pyramid: gives the feature maps.
        num_classes: of lesions, C; background is none of them.
        select: arguments of `monai_pipelines.detection.boxes.select`.

    Raises:
        ValueError: no class.
    """

    def __init__(self, pyramid: FeaturePyramid, num_classes: int, select: dict[str, Any] | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"{type(self).__name__}: num_classes must be 1 or more, got {num_classes}")
        self.pyramid, self.num_classes, self.select = pyramid, num_classes, select or {}
        self.spatial_dims = pyramid.spatial_dims

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Losses, or what is found.

        Args:
            images: (B, channels, *size).
            targets: of each image, for training; boxes in pixels of the image.

        Returns:
            with targets a dict of scalars; without, a list of `Found`; traced, two tensors.

        Raises:
            ValueError: another number of targets than images, or a target that cannot be learned.
        """
        if images.ndim != 2 + self.spatial_dims:
            axes = ", ".join("XYZ"[: self.spatial_dims])
            raise ValueError(f"{type(self).__name__}: wanted images (B, C, {axes}), got {tuple(images.shape)}")
        size = images.shape[2:]
        if targets is None:
            boxes, scores = self.candidates(images)
            if torch.jit.is_tracing():
                return boxes, scores
            return [select(b, s, size, **self.select) for b, s in zip(boxes, scores, strict=True)]
        if len(targets) != len(images):
            raise ValueError(f"{type(self).__name__}: {len(images)} images want as many targets, got {len(targets)}")
        for target in targets:
            check_target(target, self.num_classes, self.spatial_dims)
        return self._losses(self.pyramid(images), targets, size)

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is found is chosen from: boxes (B, M, 2 d) and scores (B, M, C), below 0 where there is no box."""
        return self._candidates(self.pyramid(images), images.shape[2:])

    @abstractmethod
    def _losses(self, maps: list[Tensor], targets: Sequence[Target], size: torch.Size) -> dict[str, Tensor]: ...

    @abstractmethod
    def _candidates(self, maps: list[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]: ...


def flat(maps: Sequence[Tensor], channels: int) -> Tensor:
    """Maps (B, A * channels, *cells) as (B, positions, channels), in the order of MONAI's anchors."""
    parts = []
    for level in maps:
        split = level.unflatten(1, (-1, channels))  # (B, A, channels, *cells)
        axes = (0, *range(3, split.ndim), 1, 2)
        parts.append(split.permute(axes).flatten(1, -2))
    return torch.cat(parts, dim=1)
