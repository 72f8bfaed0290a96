"""Resizing of 2D images, with their affine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn.functional import interpolate, pad

from monai_pipelines.transforms.inverse import FixedSpatial, FixedSpatiald
from monai_pipelines.transforms.sizes import checked_size


def moved(pixels: Tensor, image: MetaTensor, start: Sequence[float], step: Sequence[float] = (1, 1)) -> MetaTensor:
    """`pixels` taken from ``image``, with its meta and the affine of their position.

    Args:
        pixels: (C, H, W).
        image: (C, H, W), their source.
        start: row and column in ``image`` of the first pixel's center.
        step: rows and columns of ``image`` from pixel to pixel.
    """
    to_image = torch.diag(torch.tensor([*step, 1, 1], dtype=torch.float64))
    to_image[:2, 3] = torch.tensor(start, dtype=torch.float64)
    out = MetaTensor(pixels).copy_meta_from(image)
    out.affine = image.affine.to(torch.float64) @ to_image
    return out


class ResizeImage(FixedSpatial):
    """Resize an image, anti-aliased: a triangle filter as wide as the reduction, bilinear for enlarging.

    Args:
        size: (H, W) of the result, pixels, or one number for both.
        fit: if the aspect ratio differs, "stretch" changes it; "pad" keeps it and pads both sides; "crop" keeps it and
            cuts off both sides.
        fill: brightness of the padding, 0 (black) to 1 (white).

    Returns:
        `MetaTensor` (C, H, W); of the input's dtype (uint8 rounded); the affine follows. An image of the right size is
        returned unchanged.

    Raises:
        ValueError: an invalid argument, or an input that is not (C, H, W).
        TypeError: integers other than uint8.

    Example:
        >>> import torch
        >>> ResizeImage((2, 2), fit="pad", fill=1)(torch.zeros(1, 2, 4))[0].tolist()
        [[0.0, 0.0], [1.0, 1.0]]

    Reference: Pillow's ``Image.resize(..., BILINEAR)``. MONAI's `Resize` reduces without anti-aliasing by default.
    """

    def __init__(
        self, size: Sequence[int] | int, fit: Literal["stretch", "pad", "crop"] = "stretch", fill: float = 0.0
    ) -> None:
        if fit not in ("stretch", "pad", "crop"):
            raise ValueError(f"ResizeImage: fit must be 'stretch', 'pad' or 'crop', got {fit!r}")
        if not 0 <= fill <= 1:
            raise ValueError(f"ResizeImage: fill must lie in 0..1 (black..white), got {fill}")
        self.size, self.fit, self.fill = checked_size("ResizeImage: size", size, 2), fit, fill

    def __call__(self, img: NdarrayOrTensor) -> MetaTensor:
        image: Any = convert_to_tensor(img, track_meta=True)
        if image.ndim != 3 or image.numel() == 0:
            raise ValueError(f"ResizeImage: wanted an image (C, H, W), got shape {tuple(image.shape)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"ResizeImage: wanted uint8 or floating point, got {image.dtype}")
        source = tuple(image.shape[1:])
        if source == self.size:
            return self._traced(moved(image.as_tensor(), image, (0, 0)), image)
        inner = self._inner(source)
        pixels = _resized(image.as_tensor(), inner)
        before = [(wanted - got) // 2 for wanted, got in zip(self.size, inner, strict=True)]  # negative: cut off
        after = [wanted - got - b for wanted, got, b in zip(self.size, inner, before, strict=True)]
        if inner != self.size:
            fill = round(self.fill * 255) if image.dtype == torch.uint8 else self.fill
            pixels = pad(pixels, (before[1], after[1], before[0], after[0]), value=fill)
        step = [s / i for s, i in zip(source, inner, strict=True)]
        start = [(0.5 - b) * s - 0.5 for b, s in zip(before, step, strict=True)]
        return self._traced(moved(pixels, image, start, step), image)

    def _inner(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the image before it is padded or cut."""
        if self.fit == "stretch":
            return self.size
        scales = [wanted / got for wanted, got in zip(self.size, source, strict=True)]
        scale = min(scales) if self.fit == "pad" else max(scales)
        return tuple(max(1, round(scale * s)) for s in source)


def _resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """(C, *size) of the same dtype, via float32 where torch needs it."""
    whole = pixels.dtype == torch.uint8
    direct = pixels.dtype in (torch.float32, torch.float64) or (whole and pixels.device.type == "cpu")
    values = pixels if direct else pixels.to(torch.float32)
    out = interpolate(values[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    return (out.round_() if whole and not direct else out).to(pixels.dtype)


class ResizeImaged(FixedSpatiald):
    """`ResizeImage` for dictionaries."""

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int],
        fit: Literal["stretch", "pad", "crop"] = "stretch",
        fill: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, ResizeImage(size, fit, fill), allow_missing_keys)
