"""What can be told of a 2D image without looking at it: the shortcuts that a network has to beat."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

NUM_BINS = 16
FILE_TYPES = ("png", "jpeg", "tiff", "dicom", "other")


class MeasureImage(Transform):
    """Mean colour, colour histogram, size and file type of an image as loaded: what a network has to beat.

    Returns:
        float32 tensors, on the CPU, by the name of the baseline: "mean colour" (C,) in [0, 1]; "colour histogram"
        (16 C,), for each channel the shares of its values in 16 equal steps of [0, 1], of which the last holds its
        upper end; "size and file type" (7,): log2 of height and width in pixels, then 1 for one of png, jpeg, tiff,
        dicom, other (``meta["file_type"]``; other where there is none).

    Raises:
        ValueError: not (C, H, W), or empty.

    Example:
        >>> MeasureImage()(torch.full((1, 2, 8), 255, dtype=torch.uint8))["size and file type"]
        tensor([1., 3., 0., 0., 0., 0., 1.])
    """

    def __call__(self, img: NdarrayOrTensor) -> dict[str, Tensor]:
        meta = img.meta if isinstance(img, MetaTensor) else {}
        image: Tensor = convert_to_tensor(img, track_meta=False)
        if image.ndim != 3 or image.numel() == 0:
            raise ValueError(f"MeasureImage: wanted an image (C, H, W), got shape {tuple(image.shape)}")
        channels, height, width = image.shape
        if image.dtype == torch.uint8:
            bins, mean = image.int() // (256 // NUM_BINS), image.float().mean((1, 2)) / 255
        else:
            bins, mean = (image * NUM_BINS).int().clamp(0, NUM_BINS - 1), image.float().mean((1, 2))
        own_bins = bins.flatten(1) + NUM_BINS * torch.arange(channels, device=bins.device)[:, None]
        counts = torch.bincount(own_bins.flatten(), minlength=NUM_BINS * channels)
        file_type = meta.get("file_type")
        kinds = [float(file_type == kind) for kind in FILE_TYPES[:-1]]
        size = torch.tensor([height, width], dtype=torch.float32).log2()
        return {
            "mean colour": mean.cpu(),
            "colour histogram": counts.cpu().float() / (height * width),
            "size and file type": torch.cat([size, torch.tensor([*kinds, 1 - sum(kinds)])]),
        }


class MeasureImaged(MapTransform):
    """`MeasureImage` for dictionaries: of ``keys``, stored at ``feature_key``."""

    def __init__(self, keys: KeysCollection, feature_key: str = "shortcut", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.feature_key = feature_key
        self.measure = MeasureImage()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.feature_key] = self.measure(d[key])
        return d
