"""Images with bright blocks to be found."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor

from monai_pipelines.detection import Detector, FasterRCNN, FeaturePyramid, GridDetector, RetinaNet, Target

SIZES = ((6, 8), (10, 12), (16, 20))


def blobs(dims: int, side: int, counts: list[int], num_classes: int = 1, seed: int = 0) -> tuple[Tensor, list[Target]]:
    """Noise with disjoint blocks, as many in each image as counted; the class is in the brightness."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(len(counts), 1, *[side] * dims, generator=generator)
    targets = []
    for image, count in zip(images[:, 0], counts, strict=True):
        boxes: list[list[int]] = []
        labels = []
        while len(boxes) < count:
            width = int(torch.randint(7, 13, (1,), generator=generator))
            low = torch.randint(0, side - width, (dims,), generator=generator).tolist()
            high = [k + width for k in low]
            if any(all(a < d and c < b for a, b, c, d in zip(low, high, o, o[dims:], strict=False)) for o in boxes):
                continue
            labels.append(len(boxes) % num_classes)
            image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] += 1.0 + labels[-1]
            boxes.append([*low, *high])
        targets.append(make_target(boxes, labels, dims))
    return images, targets


def make_target(boxes: list[list[int]], labels: list[int] | None = None, dims: int = 2, ignored: int = 0) -> Target:
    """The last ``ignored`` boxes are ignored."""
    num = len(boxes)
    ignore = torch.arange(num) >= num - ignored
    found = torch.tensor(boxes, dtype=torch.float32).reshape(num, 2 * dims)
    return Target(found, torch.tensor(labels or [0] * num, dtype=torch.int64), ignore)


def make_detector(kind: str, dims: int, num_classes: int = 1, channels: int = 1, **options: Any) -> Detector:
    """A small one of each kind."""
    torch.manual_seed(0)
    backbone = ResNet(
        "basic",
        [1, 1, 1, 1],
        [8, 16, 32, 64],
        spatial_dims=dims,
        n_input_channels=channels,
        conv1_t_size=3,
        conv1_t_stride=2,
        no_max_pool=True,
        bias_downsample=False,
        feed_forward=False,
    )
    pyramid = FeaturePyramid(backbone, 16, stages=(1, 2, 3))
    if kind == "retinanet":
        return RetinaNet(pyramid, num_classes, SIZES, **options)
    if kind == "faster_rcnn":
        return FasterRCNN(pyramid, num_classes, SIZES, num_proposals=30, hidden=64, **options)
    return GridDetector(pyramid, num_classes, **options)


KINDS = ("retinanet", "faster_rcnn", "grid")
