"""Normalization of intensities by mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_pipelines.transforms.keyed import EachKeyd

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TOLERANCE = 1e-3  # interpolation may leave [0, 1] by this much


class NormalizeImage(Transform):
    """Normalize intensities as in the network's training: ``(x - mean) / std`` with x in [0, 1].

    uint8 values are divided by 255 first. Takes an image (C, H, W) or a batch (B, C, H, W); with scalar arguments also
    volumes (C, X, Y, Z) and batches of them.

    Args:
        mean: a number, one per channel, or "imagenet": (0.485, 0.456, 0.406), their mean for a single channel.
        std: likewise, above 0; "imagenet": (0.229, 0.224, 0.225).

    Returns:
        the input's shape; float32 for uint8, else the input's dtype.

    Raises:
        ValueError: an invalid argument, floating-point values outside [0, 1] (normalized twice?), or the wrong number
            of channels.
        TypeError: integers other than uint8.

    Example:
        >>> NormalizeImage(mean=0.5, std=0.25)(torch.tensor([[[0, 255]]], dtype=torch.uint8))
        tensor([[[-2.,  2.]]])

    Reference: MONAI's `NormalizeIntensity` keeps uint8 in 0..255 and takes no batch.
    """

    def __init__(self, mean: float | Sequence[float] | str = 0.5, std: float | Sequence[float] | str = 0.5) -> None:
        self.mean, self.std = _numbers("mean", mean), _numbers("std", std)

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        image: Tensor = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"NormalizeImage: wanted uint8 or floating-point values in [0, 1], got {image.dtype}")
        require_unit("NormalizeImage", image)
        top, dtype = (255, torch.float32) if image.dtype == torch.uint8 else (1, image.dtype)
        values = image.to(torch.promote_types(dtype, torch.float32))
        mean, std = _per_channel("mean", self.mean, values), _per_channel("std", self.std, values)
        return values.mul(1 / (top * std)).sub_(mean / std).to(dtype)


def require_unit(step: str, image: Tensor, hint: str = "normalized twice?") -> None:
    """Raise a ValueError on behalf of `step` if a floating-point image leaves [0, 1]."""
    if not image.is_floating_point() or not image.numel():
        return
    low, high = torch.stack(torch.aminmax(image.detach())).tolist()  # synchronizes once
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise ValueError(f"{step}: wanted values in [0, 1], got {low:g} to {high:g} ({hint})")


class NormalizeImaged(EachKeyd):
    """`NormalizeImage` for dictionaries."""

    def __init__(
        self,
        keys: KeysCollection,
        mean: float | Sequence[float] | str = 0.5,
        std: float | Sequence[float] | str = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, NormalizeImage(mean, std), allow_missing_keys)


def _numbers(name: str, value: float | Sequence[float] | str) -> tuple[float, ...] | None:
    """One number or one per channel; None for ImageNet."""
    if isinstance(value, str) and value == "imagenet":
        return None
    numbers = np.atleast_1d(np.asarray(value))
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise ValueError(f"NormalizeImage: {name} must be a number, one per channel or 'imagenet', got {value!r}")
    if name == "std" and numbers.min() <= 0:
        raise ValueError(f"NormalizeImage: std must be above 0, got {value}")
    return tuple(numbers.astype(float).tolist())


def _per_channel(name: str, numbers: tuple[float, ...] | None, image: Tensor) -> Tensor:
    """The numbers along the channel axis, third from the end."""
    if numbers is None:
        numbers = IMAGENET[name]
        if image.ndim > 2 and image.shape[-3] == 1:
            numbers = (sum(numbers) / 3,)
    if len(numbers) == 1:
        return torch.tensor(numbers[0], dtype=image.dtype)
    if image.ndim not in (3, 4) or image.shape[-3] != len(numbers):
        raise ValueError(
            f"NormalizeImage: {len(numbers)} values of mean or std want an image (C, H, W) or a batch with as many "
            f"channels, got shape {tuple(image.shape)}; a single number fits any"
        )
    return torch.tensor(numbers, dtype=image.dtype, device=image.device)[:, None, None]
