"""Detection in large images: sliding windows, flips, and boxes of several views put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.data.box_utils import box_iou
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer
from torch import Tensor
from torch.nn.functional import pad

from monai_pipelines.detection.boxes import Found, non_maximum_suppression
from monai_pipelines.networks.precision import Precision, autocast, check_precision


class DetectionInferer(Inferer):
    """Runs a detector on whole images, on windows of them, and on flipped copies.

    Boxes of overlapping windows are put together by non-maximum suppression, those of flipped copies by weighted box
    fusion (`fuse`).

    Args:
        window: size of a window, pixels; None: the whole image, whose size the network must take.
        overlap: of neighboring windows, share of their size.
        flip_axes: spatial axes; each combination of them is a view.
        max_iou: overlap from which boxes of one class are one.
        num_boxes: of an image, at most.
        batch_size: windows at a time.
        pad_value: outside of images that are smaller than a window.
        precision: of `monai_pipelines.inferers.AutocastInferer`.

    Raises:
        ValueError: an overlap outside 0..1, or a window that is not above 0.
    """

    def __init__(
        self,
        window: Sequence[int] | None = None,
        overlap: float = 0.25,
        flip_axes: Sequence[int] = (),
        max_iou: float = 0.3,
        num_boxes: int = 100,
        batch_size: int = 4,
        pad_value: float = 0.0,
        precision: Precision = "auto",
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1 or (window is not None and min(window) < 1):
            raise ValueError(
                f"DetectionInferer: wanted overlap in 0..1 and a window above 0, got {overlap} and {window}"
            )
        self.window, self.overlap, self.flip_axes = window, overlap, tuple(flip_axes)
        self.max_iou, self.num_boxes, self.batch_size, self.pad_value = max_iou, num_boxes, batch_size, pad_value
        self.precision = check_precision(precision)

    def __call__(
        self, inputs: Tensor | Sequence[Tensor], network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> list[Found]:
        """What the network finds in each image: (B, C, *size), or a list of images (C, *size) of several sizes.

        With targets in ``args``, for training, it is the network's answer.
        """
        if not isinstance(inputs, Tensor):
            return [found for image in inputs for found in self(image[None], network)]
        with autocast(self.precision, inputs.device.type):
            return network(inputs, *args, **kwargs) if args or kwargs else self._found(inputs, network)

    def _found(self, inputs: Tensor, network: Callable[..., Any]) -> list[Found]:
        if not self.flip_axes:
            return self._view(inputs, network)
        views = []
        for number in range(len(self.flip_axes) + 1):
            for axes in combinations(self.flip_axes, number):
                found = self._view(inputs.flip([2 + axis for axis in axes]), network)
                views.append([_flipped(one, axes, inputs.shape[2:]) for one in found])
        return [fuse(of_image, self.max_iou, self.num_boxes) for of_image in zip(*views, strict=True)]

    def _view(self, images: Tensor, network: Callable[..., Any]) -> list[Found]:
        if self.window is None:
            return list(network(images))
        return [self._windows(image, network, self.window) for image in images]

    def _windows(self, image: Tensor, network: Callable[..., Any], window: Sequence[int]) -> Found:
        size = image.shape[1:]
        missing = [max(0, wanted - n) for wanted, n in zip(window, size, strict=True)]
        padded = pad(image, [n for amount in reversed(missing) for n in (0, amount)], value=self.pad_value)
        step = [max(1, int(side * (1 - self.overlap))) for side in window]
        places = dense_patch_slices(padded.shape[1:], window, step)
        found = []
        for start in range(0, len(places), self.batch_size):
            chosen = places[start : start + self.batch_size]
            batch = torch.stack([padded[(slice(None), *place)] for place in chosen])
            for place, one in zip(chosen, network(batch), strict=True):
                offset = one.boxes.new_tensor([axis.start for axis in place] * 2)
                found.append(one._replace(boxes=one.boxes + offset))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        limit = boxes.new_tensor([*size] * 2)
        boxes = torch.minimum(boxes, limit)
        inside = (boxes[:, : len(size)] < boxes[:, len(size) :]).all(1)
        return non_maximum_suppression(
            Found(boxes[inside], scores[inside], labels[inside]), self.max_iou, self.num_boxes
        )


class DetectionEnsembleInferer(Inferer):
    """Boxes of the members of an ensemble, put together by weighted box fusion (`fuse`).

    Args:
        inferer: makes the passes; its ``max_iou`` and ``num_boxes`` are those of the fusion.

    Attributes:
        members: networks and their temperatures, which a detector has none of; empty until set.

    Raises:
        ValueError: no members.
    """

    def __init__(self, inferer: DetectionInferer) -> None:
        super().__init__()
        self.inferer = inferer
        self.members: list[tuple[torch.nn.Module, float | None]] = []

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Found]:
        if not self.members:
            raise ValueError("DetectionEnsembleInferer: wanted members, got none (set them to networks)")
        views = [self.inferer(inputs, member, *args, **kwargs) for member, _ in self.members]
        return [fuse(of_image, self.inferer.max_iou, self.inferer.num_boxes) for of_image in zip(*views, strict=True)]


def fuse(views: Sequence[Found], min_iou: float = 0.5, num_boxes: int = 100) -> Found:
    """Boxes of several views of one image, such as flipped copies or networks, by weighted box fusion.

    Boxes of a class that overlap become their mean, weighted by score. Its score is the mean over the views of the
    highest score that each gives it, 0 where a view does not find it.

    Args:
        views: what is found in each.
        min_iou: overlap with the mean so far above which a box joins it.
        num_boxes: at most.

    Example:
        >>> views = [Found(torch.tensor([[0.0, 0, 4, x]]), torch.tensor([s]), torch.tensor([0])) for x, s in
        ...          ((4, 0.75), (8, 0.25))]
        >>> fused = fuse(views, min_iou=0.4)
        >>> fused.boxes, fused.scores
        (tensor([[0., 0., 4., 5.]]), tensor([0.5000]))

    Reference: Solovyev et al., Weighted boxes fusion, Image and Vision Computing, 2021, whose score is the mean over
    all boxes: there a lesion counts less if one view finds it twice.
    """
    view_of = torch.cat([torch.full_like(found.labels, view) for view, found in enumerate(views)])
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*views, strict=True))
    members: list[list[int]] = []
    means = torch.empty(0, boxes.shape[1], device=boxes.device)
    classes: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        label = int(labels[index])
        same = torch.tensor([one == label for one in classes], device=boxes.device, dtype=torch.bool)
        overlap = torch.as_tensor(box_iou(boxes[index : index + 1], means))[0] * same if len(means) else same
        best = int(overlap.argmax()) if len(overlap) else -1
        if best >= 0 and float(overlap[best]) > min_iou:
            members[best].append(index)
            weights = scores[members[best]]
            means[best] = (boxes[members[best]] * weights[:, None]).sum(0) / weights.sum().clamp(min=1e-12)
        else:
            members.append([index])
            classes.append(label)
            means = torch.cat([means, boxes[index : index + 1]])
    highest = scores.new_zeros(len(members), len(views))
    for row, group in zip(highest, members, strict=True):
        row.scatter_reduce_(0, view_of[group], scores[group], "amax")
    fused = highest.mean(1)
    kept = fused.argsort(descending=True, stable=True)[:num_boxes]
    return Found(means[kept], fused[kept], torch.tensor(classes, dtype=labels.dtype, device=labels.device)[kept])


def _flipped(found: Found, axes: Sequence[int], size: Sequence[int]) -> Found:
    boxes, dims = found.boxes.clone(), len(size)
    for axis in axes:
        boxes[:, axis], boxes[:, dims + axis] = (
            size[axis] - found.boxes[:, dims + axis],
            size[axis] - found.boxes[:, axis],
        )
    return found._replace(boxes=boxes)
