"""RetinaNet for 2D and 3D images, of MONAI's parts but without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNetClassificationHead, RetinaNetRegressionHead
from monai.apps.detection.utils.anchor_utils import AnchorGenerator
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_pair_giou
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from monai_pipelines.detection.boxes import Target, box_centers, contains
from monai_pipelines.detection.detector import Detector, flat
from monai_pipelines.detection.losses import focal_loss, hard_negatives
from monai_pipelines.detection.pyramid import FeaturePyramid

NEGATIVE, NEITHER = -1, -2


class AnchorHead(nn.Module):
    """Scores and boxes relative to anchors at every position of a feature pyramid.

    Args:
        pyramid: of the feature maps.
        num_classes: C.
        sizes: sides of the anchors of each level, pixels; one tuple for each level.
        shapes: sides of an anchor relative to its size, one tuple of d numbers for each shape.
        num_candidates: positions of each level and box that the ATSS matcher looks at.
        class_loss: "focal" (alpha 0.25, gamma 2) over all anchors, or "hard negatives" (cross-entropy).
        box_loss: "smooth_l1" of MONAI's box code, or "giou".
        negative_ratio, negative_pool, min_negatives: of `hard_negatives`.

    Raises:
        ValueError: not one tuple of sizes for each level, sizes or shapes that are not above 0.
    """

    def __init__(
        self,
        pyramid: FeaturePyramid,
        num_classes: int,
        sizes: Sequence[Sequence[float]],
        shapes: Sequence[Sequence[float]] | None = None,
        num_candidates: int = 4,
        class_loss: Literal["focal", "hard negatives"] = "hard negatives",
        box_loss: Literal["smooth_l1", "giou"] = "smooth_l1",
        negative_ratio: float = 3.0,
        negative_pool: float = 20.0,
        min_negatives: int = 16,
    ) -> None:
        super().__init__()
        dims = pyramid.spatial_dims
        shapes = [[1.0] * dims] if shapes is None else shapes
        if len(sizes) != len(pyramid.strides) or len({len(level) for level in sizes}) != 1:
            raise ValueError(
                f"sizes: wanted equally many anchor sizes for each of {len(pyramid.strides)} levels, got {list(sizes)}"
            )
        if min(size for level in sizes for size in level) <= 0 or any(len(s) != dims or min(s) <= 0 for s in shapes):
            raise ValueError(f"sizes and shapes must be above 0, and shapes have {dims} numbers, got {list(shapes)}")
        if class_loss not in ("focal", "hard negatives") or box_loss not in ("smooth_l1", "giou"):
            raise ValueError(
                f"losses: wanted focal or 'hard negatives', smooth_l1 or giou, got {class_loss}, {box_loss}"
            )
        self.strides, self.num_classes = pyramid.strides, num_classes
        self.num_anchors = len(sizes[0]) * len(shapes)
        channels = pyramid.out_channels
        self.score = RetinaNetClassificationHead(channels, self.num_anchors, num_classes, dims)
        self.box = RetinaNetRegressionHead(channels, self.num_anchors, dims)
        one = [1.0] if dims == 2 else [[1.0, 1.0]]
        self.anchors = AnchorGenerator([[1]] * len(sizes), [one] * len(sizes))
        sides = [torch.tensor([[s * r for r in shape] for s in level for shape in shapes]) for level in sizes]
        # set here, as AnchorGenerator rounds the sides and knows ratios of them only
        self.anchors.cell_anchors = [torch.cat([-level, level], dim=1) / 2 for level in sides]
        self.coder, self.matcher = BoxCoder([1.0] * 2 * dims), ATSSMatcher(num_candidates, center_in_gt=False)
        self.class_loss, self.box_loss = class_loss, box_loss
        self.negatives = (negative_ratio, negative_pool, min_negatives)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, M, C) and box codes (B, M, 2 d) of all anchors."""
        return flat(self.score(maps), self.num_classes), flat(self.box(maps), 2 * (maps[0].ndim - 2))

    def grid(self, maps: list[Tensor]) -> list[Tensor]:
        """Anchors of each level, in pixels of the image."""
        device = maps[0].device
        self.anchors.set_cell_anchors(torch.float32, device)
        sizes = [list(level.shape[2:]) for level in maps]
        strides = [[torch.tensor(stride, device=device)] * len(sizes[0]) for stride in self.strides]
        return self.anchors.grid_anchors(sizes, strides)

    def match(self, target: Target, levels: list[Tensor]) -> Tensor:
        """Index of the box that each anchor (M,) has to find; -1: background, -2: not learned.

        Anchors whose centers lie in an ignored finding are not learned as background.
        """
        anchors = torch.cat(levels)
        known = torch.nonzero(~target.ignore).squeeze(1)
        per_level = [len(level) // self.num_anchors for level in levels]
        _, matched = self.matcher(target.boxes[known], anchors, per_level, self.num_anchors)
        matched = matched.to(anchors.device)
        matched[matched >= 0] = known[matched[matched >= 0]]
        ignored = contains(target.boxes[target.ignore], box_centers(anchors)).any(0)
        return torch.where(ignored & (matched == NEGATIVE), NEITHER, matched)

    def losses(self, maps: list[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses "class" and "box", finite without a lesion.

        Sums over the anchors, divided by the number of positive ones, or, with hard negatives, of those learned.
        """
        logits, codes = self(maps)
        levels = self.grid(maps)
        anchors = torch.cat(levels)
        with torch.no_grad():
            matches = [self.match(target, levels) for target in targets]
        positive = torch.stack(matches) >= 0
        num = max(1, int(positive.sum()))
        wanted = torch.zeros_like(logits)
        for k, (target, match) in enumerate(zip(targets, matches, strict=True)):
            at = torch.nonzero(positive[k]).squeeze(1)
            wanted[k, at, target.labels[match[at]]] = 1
        if self.class_loss == "focal":
            learned = torch.stack([match != NEITHER for match in matches])
            loss = focal_loss(logits[learned], wanted[learned]) / num
        else:
            prob = logits.detach().float().sigmoid().amax(-1)
            learned = torch.stack(
                [hard_negatives(_signs(match), p, *self.negatives) for match, p in zip(matches, prob, strict=True)]
            )
            loss = binary_cross_entropy_with_logits(logits[learned], wanted[learned], reduction="sum")
            loss = loss / max(1, int(learned.sum()))
        boxes = torch.cat([target.boxes[match[match >= 0]] for target, match in zip(targets, matches, strict=True)])
        found, at = codes[positive], anchors.expand(len(codes), -1, -1)[positive]
        if self.box_loss == "giou":
            decoded = self.coder.decode_single(found, at)
            box = (1 - box_pair_giou(decoded, boxes)).sum() if len(boxes) else found.sum()
        else:
            box = smooth_l1_loss(found, self.coder.encode_single(boxes, at), beta=1 / 9, reduction="sum")
        return {"class": loss, "box": box / num}

    def decoded(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (B, M, 2 d) and probabilities (B, M, C)."""
        logits, codes = self(maps)
        of_anchors = codes.float().transpose(0, 1).flatten(1)  # (M, B * 2 d)
        boxes = self.coder.decode_single(of_anchors, torch.cat(self.grid(maps))).unflatten(1, (-1, codes.shape[2]))
        return boxes.transpose(0, 1), logits.float().sigmoid()


class RetinaNet(Detector):
    """One-stage detector: a score and a box for every anchor of a feature pyramid.

    MONAI's heads, anchors, box code, ATSS matcher and hard negative sampler; differs from its `RetinaNetDetector`,
    which cannot be trained without torchvision: images without boxes are learned, and findings can be ignored.

    Args:
        pyramid: of the feature maps.
        num_classes: C.
        sizes: sides of the anchors of each level, pixels; one tuple for each level.
        select: arguments of `monai_pipelines.detection.boxes.select`.
        head: further arguments of `AnchorHead`.

    Raises:
        ValueError: as `AnchorHead`.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> backbone = resnet10(spatial_dims=2, n_input_channels=1, conv1_t_stride=2)
        >>> detector = RetinaNet(FeaturePyramid(backbone, 32, stages=(1, 2)), 1, sizes=((12,), (24,))).eval()
        >>> [found] = detector(torch.zeros(1, 1, 64, 64))
        >>> target = Target(torch.tensor([[10.0, 10, 22, 22]]), torch.tensor([0]), torch.tensor([False]))
        >>> sorted(detector(torch.zeros(1, 1, 64, 64), [target]))
        ['box', 'class']

    Reference: Lin et al., Focal loss for dense object detection, ICCV 2017; Zhang et al., Bridging the gap between
    anchor-based and anchor-free detection via adaptive training sample selection, CVPR 2020.
    """

    def __init__(
        self,
        pyramid: FeaturePyramid,
        num_classes: int,
        sizes: Sequence[Sequence[float]],
        select: dict[str, Any] | None = None,
        **head: Any,
    ) -> None:
        super().__init__(pyramid, num_classes, select)
        self.head = AnchorHead(pyramid, num_classes, sizes, **head)

    def _losses(self, maps: list[Tensor], targets: Sequence[Target], size: torch.Size) -> dict[str, Tensor]:
        return self.head.losses(maps, targets)

    def _candidates(self, maps: list[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        return self.head.decoded(maps)


def _signs(match: Tensor) -> Tensor:
    """1 for a positive, 0 for background, -1 for neither."""
    return torch.where(match >= 0, 1, torch.where(match == NEGATIVE, 0, -1))
