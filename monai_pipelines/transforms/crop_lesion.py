"""Random patches of images and volumes that aim at lesions, for the training of detectors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn.functional import pad

from monai_pipelines.transforms.boxes import BOX_AFFINE, BOX_KEYS, MIN_VISIBLE, checked_share, clip_boxes
from monai_pipelines.transforms.inverse import NoWayBack


class RandCropLesion(RandomizableTransform):
    """Crop a patch at random, around a lesion or anywhere.

    With probability ``lesion_prob`` the patch holds a lesion: its class is drawn among those in the image, then one of
    that class, so that rare classes are seen as often as frequent ones; the patch is any that contains the whole lesion
    or, if the lesion is larger along an axis, lies within it. Otherwise, and in an image without a lesion, it is any
    patch of the image. Draws the lesion and the patch's first voxel. An image smaller than the patch is padded at the
    end of the axis.

    Args:
        size: of the patch, pixels or voxels, 2 or 3 numbers.
        lesion_prob: 0..1.
        fill: value outside the image.
        min_visible: share of a box's area or volume, 0..1: a box of which less is left is one to be ignored.

    Returns:
        image (C, *size), boxes (M, 2 d) float32, edges in the patch, labels (M,) int64, ignore (M,) bool.

    Raises:
        ValueError: arguments out of range, an image or boxes of another dimension.

    Example:
        >>> crop = RandCropLesion([8, 8], lesion_prob=1).set_random_state(0)
        >>> patch, boxes, labels, _ = crop(torch.zeros(1, 64, 64), torch.tensor([[40.0, 50, 44, 54]]), [0], [False])
        >>> patch.shape, (boxes[:, 2:] - boxes[:, :2]).tolist()
        (torch.Size([1, 8, 8]), [[4.0, 4.0]])

    Differs from MONAI's ``RandCropBoxByPosNegLabel``, which cannot be given an image without boxes.
    """

    def __init__(
        self, size: Sequence[int], lesion_prob: float = 0.5, fill: float = 0.0, min_visible: float = MIN_VISIBLE
    ) -> None:
        super().__init__()
        if len(size) not in (2, 3) or min(size) < 1 or not 0 <= lesion_prob <= 1:
            raise ValueError(
                "RandCropLesion: wanted a size of 2 or 3 numbers above 0 and lesion_prob in 0..1, "
                f"got {list(size)} and {lesion_prob}"
            )
        self.size, self.lesion_prob, self.fill = tuple(size), float(lesion_prob), float(fill)
        self.min_visible = checked_share("RandCropLesion", min_visible)
        self.start: tuple[int, ...] = ()

    def randomize(self, data: tuple[Sequence[int], Tensor, Tensor, Tensor]) -> None:
        """Draw the first voxel of the patch of an image of a size, with boxes, labels and ignore."""
        shape, boxes, labels, ignore = data
        last = np.maximum(0, np.subtract(shape, self.size))
        low, high = np.zeros(len(shape), dtype=np.int64), last
        counted = (~ignore).numpy()
        if self.R.random() < self.lesion_prob and counted.any():
            label = self.R.choice(np.unique(labels[counted]))
            box = boxes[self.R.choice(np.flatnonzero(counted & (labels == label).numpy()))].double().numpy()
            ends = np.sort([np.ceil(box[len(shape) :] - self.size), np.floor(box[: len(shape)])], axis=0)
            low, high = np.clip(ends, 0, last).astype(np.int64)
        self.start = tuple(self.R.randint(low, high + 1).tolist())

    def __call__(  # type: ignore[override]
        self,
        img: NdarrayOrTensor,
        boxes: NdarrayOrTensor,
        box_labels: NdarrayOrTensor,
        box_ignore: NdarrayOrTensor,
        randomize: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image: Tensor = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        shape = image.shape[1:]
        if len(shape) != len(self.size):
            raise ValueError(f"RandCropLesion: a patch of {self.size} wants (C, *size), got {tuple(image.shape)}")
        placed = clip_boxes(torch.as_tensor(boxes).float(), box_labels, box_ignore, shape, 0)
        if randomize:
            self.randomize((shape, *placed))
        inside = [slice(first, first + side) for first, side in zip(self.start, self.size, strict=True)]
        plain = image.as_tensor() if isinstance(image, MetaTensor) else image
        patch = plain[(slice(None), *inside)]
        missing = [n for side, got in zip(self.size[::-1], patch.shape[:0:-1], strict=True) for n in (0, side - got)]
        patch = pad(patch, missing, value=self.fill)
        if isinstance(image, MetaTensor):
            patch = MetaTensor(patch).copy_meta_from(image)
            shift = torch.eye(4, dtype=patch.affine.dtype)
            shift[: len(shape), 3] = torch.tensor(self.start)
            patch.affine = image.affine @ shift
        moved = placed[0] - torch.tensor([*self.start] * 2)
        return (patch, *clip_boxes(moved, *placed[1:], self.size, self.min_visible))


class RandCropLesiond(RandomizableTransform, MapTransform, NoWayBack):
    """`RandCropLesion` for dictionaries: ``boxes``, ``box_labels``, ``box_ignore`` and ``box_affine`` follow the image.

    Args:
        keys: one key, the image.
        size, lesion_prob, fill, min_visible: of `RandCropLesion`.
        allow_missing_keys: whether the image may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int],
        lesion_prob: float = 0.5,
        fill: float = 0.0,
        min_visible: float = MIN_VISIBLE,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self)
        if len(self.keys) != 1:
            raise ValueError(f"RandCropLesiond: wanted one key, as boxes are those of one image, got {list(self.keys)}")
        self.step = RandCropLesion(size, lesion_prob, fill, min_visible)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandCropLesiond:
        self.step.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], *boxes = self.step(d[key], *(d[k] for k in BOX_KEYS))
            d |= dict(zip(BOX_KEYS, boxes, strict=True))
            if BOX_AFFINE in d:
                affine = torch.as_tensor(d[BOX_AFFINE])
                shift = torch.eye(len(affine), dtype=affine.dtype)
                shift[:-1, -1] = torch.tensor(self.step.start, dtype=affine.dtype)
                d[BOX_AFFINE] = affine @ shift
        return d
