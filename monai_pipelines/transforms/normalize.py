"""Normalisation of intensities by mean and standard deviation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

IMAGENET = {"mean": (0.485, 0.456, 0.406), "sd": (0.229, 0.224, 0.225)}
TOLERANCE = 1e-3  # by how much interpolation may leave [0, 1]


class NormalizeImage(Transform):
    """Shift and scale intensities to what the network was trained with: ``(x - mean) / sd`` with x in [0, 1].

    uint8 values are divided by 255 first. Works on one image (C, H, W), on a batch (B, C, H, W) and, with numbers, on
    volumes (C, X, Y, Z) and batches of them.

    Args:
        mean: a number, one for each channel, or "imagenet": (0.485, 0.456, 0.406), for one channel their mean.
        sd: likewise, above 0; "imagenet": (0.229, 0.224, 0.225).

    Returns:
        the input's shape; float32, or the input's own floating-point dtype.

    Raises:
        ValueError: floating-point values outside [0, 1] (normalised twice?), or another number of channels.
        TypeError: integers other than uint8.

    Example:
        >>> NormalizeImage(mean=0.5, sd=0.25)(torch.tensor([[[0, 255]]], dtype=torch.uint8))
        tensor([[[-2.,  2.]]])

    Reference: MONAI's `NormalizeIntensity` takes uint8 as 0..255, and knows no batch.
    """

    def __init__(self, mean: float | Sequence[float] | str = 0.5, sd: float | Sequence[float] | str = 0.5) -> None:
        self.mean, self.sd = _numbers("mean", mean), _numbers("sd", sd)
        if min(self.sd) <= 0:
            raise ValueError(f"NormalizeImage: sd must be above 0, got {sd}")

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        image: Tensor = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        if image.dtype == torch.uint8:
            top, dtype = 255.0, torch.float32
        elif image.is_floating_point():
            top, dtype = 1.0, image.dtype
            low, high = (float(v) for v in torch.aminmax(image.detach()))
            if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
                raise ValueError(
                    f"NormalizeImage: wanted values in [0, 1], got {low:g} to {high:g} (normalised twice?)"
                )
        else:
            raise TypeError(f"NormalizeImage: wanted uint8 or floating-point values in [0, 1], got {image.dtype}")
        mean, sd = (self._per_channel(v, image) for v in (self.mean, self.sd))
        return image.to(dtype).mul(1 / (top * sd)).sub_(mean / sd)

    def _per_channel(self, values: tuple[float, ...], image: Tensor) -> Tensor:
        """The values with their axes: at the channels, third from the end."""
        if values in IMAGENET.values() and image.ndim > 2 and image.shape[-3] == 1:
            values = (sum(values) / 3,)
        if len(values) == 1:
            return torch.tensor(values[0], dtype=torch.float32)
        if image.ndim not in (3, 4) or image.shape[-3] != len(values):
            raise ValueError(
                f"NormalizeImage: {len(values)} values of mean or sd want an image (C, H, W) or a batch with as many "
                f"channels, got shape {tuple(image.shape)}; a single number goes with any"
            )
        return torch.tensor(values, device=image.device)[:, None, None]


class NormalizeImaged(MapTransform):
    """`NormalizeImage` for dictionaries."""

    def __init__(
        self,
        keys: KeysCollection,
        mean: float | Sequence[float] | str = 0.5,
        sd: float | Sequence[float] | str = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalize = NormalizeImage(mean, sd)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalize(d[key])
        return d


def _numbers(name: str, value: float | Sequence[float] | str) -> tuple[float, ...]:
    if isinstance(value, str):
        if value != "imagenet":
            raise ValueError(
                f"NormalizeImage: {name} must be a number, one for each channel or 'imagenet', got {value!r}"
            )
        return IMAGENET[name]
    return tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),)
