"""An anchor-free grid detector for 2D and 3D images: one box for every cell of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_pipelines.detection.boxes import Target, box_centers, box_sizes, contains
from monai_pipelines.detection.detector import Detector, flat
from monai_pipelines.detection.losses import distance_iou, focal_loss
from monai_pipelines.detection.pyramid import FeaturePyramid

_PRIOR = -4.6  # logit of 0.01
_MAX_LOG = 5.0


class GridDetector(Detector):
    """One-stage detector without anchors, in the manner of YOLO: each cell gives an objectness, classes and one box.

    A cell's box has the center ``(cell + 0.5 + t) * stride`` and the sides ``size_cells * stride * exp(s)``. A lesion
    is learned on the level whose cells fit its size best, by the cells whose centers lie in it and within ``reach``
    cells of its center, at least the nearest one. The score is the product of objectness and class.

    Args:
        pyramid: of the feature maps.
        num_classes: C.
        size_cells: usual sides of a lesion in cells of its level.
        reach: cells around a lesion's center that learn it, along each axis.
        depth: layers of the head before its outputs.
        select: arguments of `monai_pipelines.detection.boxes.select`.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> backbone = resnet10(spatial_dims=2, n_input_channels=3, conv1_t_stride=2)
        >>> detector = GridDetector(FeaturePyramid(backbone, 32, stages=(1, 2, 3)), num_classes=2).eval()
        >>> [found] = detector(torch.zeros(1, 3, 64, 64))
        >>> len(found.boxes)
        0

    Reference: Redmon et al., You only look once, CVPR 2016; Tian et al., FCOS, ICCV 2019; Zheng et al., Distance-IoU
    loss, AAAI 2020.
    """

    def __init__(
        self,
        pyramid: FeaturePyramid,
        num_classes: int,
        size_cells: float = 3.0,
        reach: float = 1.5,
        depth: int = 2,
        select: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pyramid, num_classes, select)
        if size_cells <= 0 or reach <= 0 or depth < 0:
            raise ValueError(
                "GridDetector: size_cells and reach must be above 0 and depth 0 or more, "
                f"got {size_cells}, {reach} and {depth}"
            )
        self.size_cells, self.reach = size_cells, reach
        conv, channels = Conv[Conv.CONV, self.spatial_dims], pyramid.out_channels
        layers = [
            layer
            for _ in range(depth)
            for layer in (conv(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU())
        ]
        self.channels = 1 + num_classes + 2 * self.spatial_dims
        output = conv(channels, self.channels, 3, padding=1)
        nn.init.normal_(output.weight, std=0.01)
        nn.init.zeros_(output.bias)
        nn.init.constant_(output.bias[:1], _PRIOR)
        self.head = nn.Sequential(*layers, output)

    def _outputs(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness (B, M), class logits (B, M, C) and boxes (B, M, 2 d)."""
        raw = flat([self.head(level) for level in maps], self.channels)
        objectness, classes, codes = raw.split((1, self.num_classes, 2 * self.spatial_dims), dim=-1)
        centers, strides = self._cells(maps)
        shift, log_size = codes.float().split(self.spatial_dims, dim=-1)
        middle = centers + shift * strides
        half = self.size_cells / 2 * strides * log_size.clamp(-_MAX_LOG, _MAX_LOG).exp()
        return objectness.squeeze(-1), classes, torch.cat([middle - half, middle + half], dim=-1)

    def _cells(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Centers (M, d) and strides (M, 1) of all cells, in pixels of the image."""
        centers, strides = [], []
        for level, stride in zip(maps, self.pyramid.strides, strict=True):
            axes = [(torch.arange(n, device=level.device) + 0.5) * stride for n in level.shape[2:]]
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
            centers.append(grid)
            strides.append(torch.full_like(grid[:, :1], stride))
        return torch.cat(centers), torch.cat(strides)

    def match(self, target: Target, centers: Tensor, strides: Tensor) -> Tensor:
        """Index of the lesion that each cell (M,) learns; -1: background, -2: in an ignored finding.

        A cell in several lesions learns the smallest.
        """
        match = torch.full((len(centers),), -1, device=centers.device)
        if not len(target.boxes):
            return match
        match[contains(target.boxes[target.ignore], centers).any(0)] = -2
        sides = box_sizes(target.boxes).prod(1) ** (1 / self.spatial_dims)
        levels = torch.tensor(self.pyramid.strides, device=centers.device)
        best = levels[(sides[:, None] / self.size_cells / levels).log2().abs().argmin(1)]
        for index in sides.argsort(descending=True).tolist():
            if target.ignore[index]:
                continue
            box = target.boxes[index : index + 1]
            here = strides.squeeze(1) == best[index]
            apart = (centers - box_centers(box)).abs().amax(1)
            match[here & contains(box, centers)[0] & (apart <= self.reach * best[index])] = index
            match[torch.where(here, apart, torch.inf).argmin()] = index
        return match

    def _losses(self, maps: list[Tensor], targets: Sequence[Target], size: torch.Size) -> dict[str, Tensor]:
        objectness, classes, boxes = self._outputs(maps)
        centers, strides = self._cells(maps)
        with torch.no_grad():
            matches = torch.stack([self.match(target, centers, strides) for target in targets])
        positive, learned = matches >= 0, matches != -2
        num = max(1, int(positive.sum()))
        pairs = list(zip(targets, matches, strict=True))
        wanted = torch.cat([target.boxes[match[match >= 0]] for target, match in pairs])
        labels = torch.cat([target.labels[match[match >= 0]] for target, match in pairs])
        truth = torch.zeros_like(classes[positive])
        truth[torch.arange(len(labels)), labels] = 1
        return {
            "object": focal_loss(objectness[learned], positive[learned].to(objectness.dtype)) / num,
            "class": binary_cross_entropy_with_logits(classes[positive], truth, reduction="sum") / num,
            "box": (1 - distance_iou(boxes[positive], wanted)).sum() / num,
        }

    def _candidates(self, maps: list[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        objectness, classes, boxes = self._outputs(maps)
        return boxes, objectness.float().sigmoid()[..., None] * classes.float().sigmoid()
