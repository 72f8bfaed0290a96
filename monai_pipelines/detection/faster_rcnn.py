"""Faster R-CNN for 2D and 3D images: regions are proposed, then classified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_iou
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, smooth_l1_loss

from monai_pipelines.detection.boxes import Target, box_centers, box_sizes, contains, side_lengths
from monai_pipelines.detection.detector import Detector
from monai_pipelines.detection.losses import hard_negatives
from monai_pipelines.detection.pyramid import FeaturePyramid
from monai_pipelines.detection.retinanet import AnchorHead
from monai_pipelines.detection.roi_align import roi_align


class FasterRCNN(Detector):
    """Two-stage detector: anchors propose regions of any class, whose features are classified and refined.

    Args:
        pyramid: of the feature maps.
        num_classes: C.
        sizes: sides of the anchors of each level, pixels, such as 4 to 64; one tuple for each level.
        num_proposals: regions of an image that are classified, at most.
        proposal_iou: overlap above which the lower of two proposals is left out.
        positive_iou: overlap with a lesion from which a region is learned as one.
        cells: along each axis of a region's features.
        hidden: units of the classifier.
        negative_ratio: regions of background learned for each positive one, the most probable of them.
        select: arguments of `monai_pipelines.detection.boxes.select`.
        proposals: further arguments of `AnchorHead`.

    Raises:
        ValueError: as `AnchorHead`, or numbers out of range.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> backbone = resnet10(spatial_dims=3, n_input_channels=1, conv1_t_stride=2)
        >>> detector = FasterRCNN(FeaturePyramid(backbone, 16, stages=(1, 2)), 2, sizes=((6,), (12,)), hidden=32)
        >>> [found] = detector.eval()(torch.zeros(1, 1, 32, 32, 32))
        >>> found.boxes.shape[1]
        6

    Reference: Ren et al., Faster R-CNN, NeurIPS 2015.
    """

    def __init__(
        self,
        pyramid: FeaturePyramid,
        num_classes: int,
        sizes: Sequence[Sequence[float]],
        num_proposals: int = 100,
        proposal_iou: float = 0.7,
        positive_iou: float = 0.4,
        cells: int = 5,
        hidden: int = 256,
        negative_ratio: float = 3.0,
        select: dict[str, Any] | None = None,
        **proposals: Any,
    ) -> None:
        super().__init__(pyramid, num_classes, select)
        if num_proposals < 1 or cells < 1 or hidden < 1 or not 0 < positive_iou < 1 or not 0 < proposal_iou <= 1:
            raise ValueError(
                "FasterRCNN: num_proposals, cells and hidden must be 1 or more, positive_iou and proposal_iou in 0..1, "
                f"got {num_proposals}, {cells}, {hidden}, {positive_iou} and {proposal_iou}"
            )
        dims = pyramid.spatial_dims
        self.head = AnchorHead(pyramid, 1, sizes, **proposals)
        self.num_proposals, self.proposal_iou, self.positive_iou = num_proposals, proposal_iou, positive_iou
        self.cells, self.negative_ratio = cells, negative_ratio
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pyramid.out_channels * cells**dims, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.score, self.box = nn.Linear(hidden, 1 + num_classes), nn.Linear(hidden, 2 * dims)
        self.coder = BoxCoder([10.0] * dims + [5.0] * dims)

    def _losses(self, maps: list[Tensor], targets: Sequence[Target], size: torch.Size) -> dict[str, Tensor]:
        anyone = [target._replace(labels=torch.zeros_like(target.labels)) for target in targets]
        losses = {f"proposal {name}": loss for name, loss in self.head.losses(maps, anyone).items()}
        with torch.no_grad():
            proposed = [boxes[there] for boxes, there in zip(*self._propose(maps, size), strict=True)]
            regions, matches = zip(*map(self._match, proposed, targets), strict=True)
        logits, codes = self._classified(maps, regions)
        labels = torch.cat([_labels(target, match) for target, match in zip(targets, matches, strict=True)])
        background = 1 - logits.detach().float().softmax(1)[:, 0]
        signs = torch.where(labels > 0, 1, labels)
        learned = hard_negatives(signs, background, self.negative_ratio, 2.0, 4 * len(targets))
        positive = labels > 0
        boxes = torch.cat([target.boxes[match[match >= 0]] for target, match in zip(targets, matches, strict=True)])
        wanted = self.coder.encode_single(boxes, torch.cat(regions)[positive])
        num = max(1, int(learned.sum()))
        losses["class"] = cross_entropy(logits[learned], labels[learned], reduction="sum") / num
        losses["box"] = smooth_l1_loss(codes[positive], wanted, reduction="sum") / num
        return losses

    def _candidates(self, maps: list[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        regions, there = self._propose(maps, size)
        logits, codes = self._classified(maps, list(regions))
        prob = logits.float().softmax(1)[:, 1:].unflatten(0, there.shape)
        boxes = self.coder.decode_single(codes.float(), regions.flatten(0, 1)).reshape(regions.shape)
        return torch.where(there[..., None], boxes, 0.0), torch.where(there[..., None], prob, -1.0)

    def _propose(self, maps: list[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
        """Regions (B, R, 2 d), the most probable first, and whether there are so many (B, R)."""
        boxes, prob = self.head.decoded(maps)
        extra = 4 * self.num_proposals  # as many are looked at
        scores, best = pad(prob.detach().squeeze(-1), (0, extra), value=-1.0).topk(extra)
        boxes = _rows(pad(boxes.detach(), (0, 0, 0, extra)), best)
        boxes = torch.minimum(boxes.clamp(min=0), side_lengths(size, boxes.device).repeat(2))
        low, high = boxes.chunk(2, dim=-1)
        large = (high - low >= 1).all(-1)
        overlap = torch.stack([torch.as_tensor(box_iou(of_image, of_image)) for of_image in boxes])
        kept = large & _not_suppressed((overlap > self.proposal_iou) & large[:, None])
        scores, best = torch.where(kept, scores, -1.0).topk(self.num_proposals)
        return _rows(boxes, best), scores >= 0

    def _match(self, proposed: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Regions with the lesions themselves among them, and the lesion of each; -1: background, -2: not learned."""
        lesions = target.boxes[~target.ignore].clamp(min=0)
        regions = torch.cat([proposed, lesions[(box_sizes(lesions) > 0).all(1)]])
        if not len(target.boxes):
            return regions, torch.full((len(regions),), -1, device=regions.device)
        iou = torch.as_tensor(box_iou(regions, target.boxes))
        best, match = torch.where(target.ignore, -1.0, iou).max(1)
        match = torch.where(best >= self.positive_iou, match, -1)
        ignored = contains(target.boxes[target.ignore], box_centers(regions)).any(0)
        return regions, torch.where(ignored & (match < 0), -2, match)

    def _classified(self, maps: list[Tensor], regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, 1 + C) and box codes (N, 2 d) of the regions of all images in order.

        A region's features are from the level on which its cells are nearest to the map's.
        """
        sides = box_sizes(torch.cat(list(regions))).prod(1) ** (1 / self.spatial_dims)
        strides = torch.tensor(self.pyramid.strides, device=sides.device)
        level = (sides[:, None] / self.cells / strides).log2().abs().argmin(1)
        counts = [len(these) for these in regions]
        shape = len(level), maps[0].shape[1], *[self.cells] * self.spatial_dims
        features = maps[0].new_zeros(shape, dtype=torch.float32)
        for k, one in enumerate(maps):
            here = level == k
            if torch.jit.is_tracing():  # ONNX cannot reshape the features of no regions
                of_all = roi_align(one, regions, self.pyramid.strides[k], self.cells)
                features = torch.where(here.reshape(-1, *[1] * (of_all.ndim - 1)), of_all, features)
                continue
            these = [boxes[chosen] for boxes, chosen in zip(regions, here.split(counts), strict=True)]
            features[here] = roi_align(one, these, self.pyramid.strides[k], self.cells)
        hidden = self.classifier(features)
        return self.score(hidden), self.box(hidden)


def _labels(target: Target, match: Tensor) -> Tensor:
    """Class of each region, from 1; 0: background, -1: not learned."""
    labels = match.clamp(max=-1) + 1
    labels[match >= 0] = 1 + target.labels[match[match >= 0]]
    return labels


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """Of boxes (B, N, 2 d) those of each image at (B, K)."""
    return boxes.gather(1, index[..., None].expand(-1, -1, boxes.shape[2]))


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def _not_suppressed(overlap: Tensor) -> Tensor:
    """Which boxes (B, N), highest score first, remain when each that does suppresses the later ones it overlaps.

    Repeated until nothing changes; after k rounds the first k boxes are final, as if gone through in order.
    """
    earlier = overlap.tril(-1)
    kept = torch.ones_like(earlier[:, 0])
    before = torch.zeros_like(kept)
    while bool((kept != before).any()):
        before = kept
        kept = ~(earlier & before.unsqueeze(1)).any(-1)
    return kept
