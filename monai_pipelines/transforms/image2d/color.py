"""Random brightness, contrast, saturation and hue of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from torch import Tensor

from monai_pipelines.transforms.image2d.decode import LUMA
from monai_pipelines.transforms.image2d.normalize import require_unit
from monai_pipelines.transforms.random import RandImage, RandStepd


class ColorDraw(NamedTuple):
    """What `RandColor2D` drew for one image: factors, 1 for no change, and a fraction of the color circle."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_turns: float = 0.0


class RandColor2D(RandImage):
    """Vary brightness, contrast, saturation and hue of images at random.

    In this order, with the factors b, c, s and the turn h::

        x = x * b
        x = x * c + mean(gray(x)) * (1 - c)
        x = clip(x * s + gray(x) * (1 - s), 0, 1)
        hue(x) = hue(x) + h, at the same HSV saturation and value

    where gray is 0.299 R + 0.587 G + 0.114 B and the mean is the image's. Values are clipped once, not after each part.
    Saturation and hue do not apply to a single channel.

    Draws, for each image and independently for each part, whether (the part's probability) and how much (uniform).

    Args:
        brightness: x for a factor in ``[max(0, 1 - x), 1 + x]``, or ``(low, high)``; 0 for none.
        brightness_prob: its probability, 0..1.
        contrast: likewise.
        contrast_prob: its probability, 0..1.
        saturation: likewise; a factor of 0 gives gray.
        saturation_prob: its probability, 0..1.
        hue_turns: x, up to 0.5, for ``[-x, x]``, or ``(low, high)``: fractions of the color circle.
        hue_prob: its probability, 0..1.

    Returns:
        the input's shape, (C, H, W) or (B, C, H, W) with one or three channels, in [0, 1]; float32 for uint8, else the
        input's dtype.

    Raises:
        ValueError: an argument out of range, or an input that is neither an image nor a batch, has neither 1 nor 3
            channels, or is floating point outside [0, 1].
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> RandColor2D(brightness=(0.5, 0.5), brightness_prob=1, contrast=0)(torch.full((1, 1, 2), 0.5))
        tensor([[[0.2500, 0.2500]]])

    Reference:
        torchvision's `ColorJitter`, which draws once for a whole batch and shuffles the order. MONAI has neither
        saturation nor hue.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0.1,
        brightness_prob: float = 0.5,
        contrast: float | Sequence[float] = 0.1,
        contrast_prob: float = 0.5,
        saturation: float | Sequence[float] = 0.1,
        saturation_prob: float = 0.5,
        hue_turns: float | Sequence[float] = 0.02,
        hue_prob: float = 0.5,
    ) -> None:
        super().__init__()
        self.probs = (brightness_prob, contrast_prob, saturation_prob, hue_prob)
        factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        ranges = [_range(name, value, 1) for name, value in factors.items()]
        self.low, self.high = np.array([*ranges, _range("hue_turns", hue_turns, 0)]).T
        for name, prob in zip(ColorDraw._fields, self.probs, strict=True):
            if not 0 <= prob <= 1:
                raise ValueError(f"RandColor2D: {name.removesuffix('_turns')}_prob must lie in 0..1, got {prob}")

    def _draw(self) -> ColorDraw | None:
        whether, where = self.R.random_sample((2, 4))
        values = self.low + (self.high - self.low) * where
        draw = ColorDraw(*np.where(whether < self.probs, values, ColorDraw()).tolist())
        return None if draw == ColorDraw() else draw

    def _apply(self, batch: Tensor, draws: Sequence[ColorDraw | None]) -> Tensor:
        if batch.shape[1] not in (1, 3):
            raise ValueError(f"RandColor2D: wanted 1 or 3 channels, got {batch.shape[1]} (drop alpha when reading)")
        require_unit("RandColor2D", batch, "augmentation comes before `normalize`")
        return super()._apply(batch, draws)

    def _change(self, images: Tensor, draws: Sequence[ColorDraw]) -> Tensor:
        b, c, s, hue = torch.tensor(draws, dtype=images.dtype, device=images.device).T[..., None, None, None]
        if images.shape[1] == 1:
            return torch.addcmul(images.mean((2, 3), keepdim=True) * b * (1 - c), images, b * c).clamp_(0, 1)
        gray = _gray(images)
        offset = gray.mul_(b).mean((2, 3), keepdim=True) * (1 - c)
        out = torch.addcmul(gray.mul_(c * (1 - s)).add_(offset), images, b * c * s).clamp_(0, 1)
        turned = [i for i, draw in enumerate(draws) if draw.hue_turns]
        if turned:
            out[turned] = _turn_hue(out[turned], hue[turned, 0])
        return out


def _range(name: str, value: float | Sequence[float], center: float) -> tuple[float, float]:
    """``(low, high)`` of factors (center 1) or turns (center 0) given as one number or as a range."""
    lowest, highest = (0.0, float("inf")) if center else (-0.5, 0.5)
    if isinstance(value, int | float):
        if value < 0:
            raise ValueError(f"RandColor2D: {name} must be 0 or more (it holds for both directions), got {value}")
        low, high = max(center - value, 0) if center else center - value, center + value
    else:
        if len(value) != 2:
            raise ValueError(f"RandColor2D: {name} must be one number or (low, high), got {list(value)}")
        low, high = value
    if not lowest <= low <= high <= highest:
        raise ValueError(f"RandColor2D: {name} must rise within {lowest:g}..{highest:g}, got {low}..{high}")
    return float(low), float(high)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Add `turns` (B, 1, 1) to the HSV hue of (B, 3, H, W)."""
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    sixths = (red - green).add_(chroma, alpha=4)  # of the circle, times chroma
    sixths.lerp_((blue - red).add_(chroma, alpha=2), high.clone().eq_(green))  # `where`, but several times faster
    sixths.lerp_(green - blue, high.clone().eq_(red))
    hue = sixths.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny).mul_(6)).add_(turns + 1)
    out = torch.empty_like(images)
    for channel, start in enumerate((5 / 6, 3 / 6, 1 / 6)):
        at = (hue + start).frac_()
        missing = torch.minimum(2 / 3 - at, at).mul_(6).clamp_(0, 1)
        torch.addcmul(high, chroma, missing, value=-1, out=out[:, channel])
    return out


class RandColor2Dd(RandStepd):
    """`RandColor2D` for dictionaries; all keys get the same draw.

    Args:
        keys: images of the same size.
        knobs: the arguments of `RandColor2D`.

    Example:
        >>> import torch
        >>> item = {"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "label": 1}
        >>> RandColor2Dd("image")(item)["image"].dtype
        torch.float32
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **knobs: Any) -> None:
        super().__init__(keys, RandColor2D(**knobs), allow_missing_keys)
