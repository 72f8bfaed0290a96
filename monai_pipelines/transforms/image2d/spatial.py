"""Random flip, quarter turn, rotation, scale, shift and crop of images in at most one interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from monai_pipelines.transforms.boxes import MIN_VISIBLE, RandSpatial, RandSpatiald
from monai_pipelines.transforms.random import RandImage
from monai_pipelines.transforms.sizes import checked_size

MODES = ("bilinear", "nearest")
FILLS = ("border", "reflection")


class SpatialDraw2D(NamedTuple):
    """What `RandSpatial2D` drew for one image; pairs are rows, columns.

    Attributes:
        flip: whether to mirror each axis.
        quarters: quarter turns counterclockwise, 0..3, before the flips.
        rotation_deg: counterclockwise.
        scale: above 1 enlarges.
        shift: towards higher indices, as a fraction of the side.
        crop: position of the crop among all that fit, 0 (first) to 1.
    """

    flip: tuple[bool, bool] = (False, False)
    quarters: int = 0
    rotation_deg: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    crop: tuple[float, float] = (0.0, 0.0)

    @property
    def interpolates(self) -> bool:
        """Whether pixels get new values."""
        return bool(self.rotation_deg or self.scale != 1 or any(self.shift))

    @property
    def still(self) -> bool:
        """Whether nothing but the crop was drawn."""
        return not (self.interpolates or self.quarters or any(self.flip))

    def start(self, shape: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
        """First pixel of a crop of `size`."""
        top, left = (int(at * (n - s + 1)) for at, n, s in zip(self.crop, shape, size, strict=True))
        return top, left


class RandSpatial2D(RandImage, RandSpatial):
    """Flip, turn, rotate, scale, shift and crop images at random, in at most one interpolation.

    Pixel o of the uncropped output shows the input at ``A^-1 (o - c - shift) + c`` with
    ``A = rotation * scale * flips * quarter turns`` and c the center of the image. Angles are counterclockwise. Flips
    and quarter turns alone only move pixels; an image for which nothing is drawn keeps its exact values.

    Draws, for each image and independently for each part, whether (the part's probability) and how much: angle and
    shifts uniform up to their limit, scale uniform, one to three quarter turns, and the crop's position.

    Args:
        flip_prob: probability of mirroring each axis, one number or (rows, columns): (0, 0.5) swaps left and right.
        rotate90_prob: probability of one, two or three quarter turns; the image must be square.
        rotation_deg: largest angle in either direction.
        rotation_prob: its probability.
        scale: ``(low, high)``; above 1 enlarges.
        scale_prob: its probability.
        shift: largest shift as a fraction of the side, one number or (rows, columns).
        shift_prob: its probability.
        crop_size: size (H, W), or one number, of a crop, always taken, at a random position; None keeps the whole.
        mode: "bilinear" or "nearest".
        fill: outside the input: "border" (nearest pixel), "reflection", or a value, into which the interpolation
            blends over one pixel.

    Returns:
        (C, *size) or (B, C, *size); float32 in [0, 1] for uint8, else of the input's dtype. A MetaTensor's affine,
        whose first two axes are rows and columns, follows; in a batch for each image (B, 4, 4).

    Raises:
        ValueError: an argument out of range, or an input that is neither an image nor a batch, is smaller than
            `crop_size`, or not square with quarter turns.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
        >>> RandSpatial2D(crop_size=(28, 28))(images).shape
        torch.Size([8, 3, 28, 28])

    Reference:
        MONAI's `RandFlip`, `RandRotate90` and `RandAffine` do this one part and one image at a time.
    """

    def __init__(
        self,
        flip_prob: float | Sequence[float] = (0.0, 0.5),
        rotate90_prob: float = 0.0,
        rotation_deg: float = 10.0,
        rotation_prob: float = 0.5,
        scale: Sequence[float] = (0.9, 1.1),
        scale_prob: float = 0.5,
        shift: float | Sequence[float] = 0.05,
        shift_prob: float = 0.5,
        crop_size: int | Sequence[int] | None = None,
        mode: str = "bilinear",
        fill: str | float = "border",
    ) -> None:
        super().__init__()
        probs: dict[str, Any] = {
            "rotate90_prob": rotate90_prob,
            "rotation_prob": rotation_prob,
            "scale_prob": scale_prob,
            "shift_prob": shift_prob,
            "flip_prob": flip_prob,
        }
        for name, prob in probs.items():
            if not 0 <= np.min(prob) <= np.max(prob) <= 1:
                raise ValueError(f"RandSpatial2D: {name} must lie in 0..1, got {prob}")
            if np.ndim(prob) and name != "flip_prob":
                raise ValueError(f"RandSpatial2D: {name} must be one number, got {prob}")
        for name, limit in (("rotation_deg", rotation_deg), ("shift", shift)):
            if not np.min(limit) >= 0:
                raise ValueError(f"RandSpatial2D: {name} must be 0 or more (it holds for both directions), got {limit}")
        if np.size(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"RandSpatial2D: scale must be (low, high), 0 < low <= high, got {np.ravel(scale).tolist()}"
            )
        self.crop_size = None if crop_size is None else checked_size("RandSpatial2D: crop_size", crop_size, 2)
        if mode not in MODES:
            raise ValueError(f"RandSpatial2D: mode must be one of {', '.join(MODES)}, got {mode!r}")
        if fill not in FILLS and not isinstance(fill, Real):
            raise ValueError(f"RandSpatial2D: fill must be one of {', '.join(FILLS)} or a value, got {fill!r}")
        self.probs = np.hstack([rotate90_prob, rotation_prob, scale_prob, shift_prob, ensure_tuple_rep(flip_prob, 2)])
        self.shift = np.array(ensure_tuple_rep(shift, 2), dtype=float)
        self.rotation_deg, self.scale = float(rotation_deg), (float(scale[0]), float(scale[1]))
        self.mode, self.fill = mode, fill

    def _draw(self) -> SpatialDraw2D:
        turn, rotate, zoom, move, rows, columns = self.R.random_sample(6) < self.probs
        quarters, angle, scale, *rest = self.R.random_sample(7)
        shift = self.shift * (2 * np.array(rest[:2]) - 1)
        return SpatialDraw2D(
            flip=(bool(rows), bool(columns)),
            quarters=1 + int(3 * quarters) if turn else 0,
            rotation_deg=self.rotation_deg * (2 * angle - 1) if rotate else 0.0,
            scale=self.scale[0] + (self.scale[1] - self.scale[0]) * scale if zoom else 1.0,
            shift=(shift[0], shift[1]) if move else (0.0, 0.0),
            crop=(rest[2], rest[3]),
        )

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        out = super().__call__(img, randomize)
        if isinstance(out, MetaTensor) and isinstance(img, MetaTensor) and out is not img:
            backward = self.to_input(img.shape[-2:])
            moves = torch.eye(4, dtype=torch.float64).repeat(len(self.draws), 1, 1)
            moves[:, :2, :2], moves[:, :2, 3] = backward[:, :2, :2], backward[:, :2, 2]
            out.affine = img.affine.to(moves) @ (moves if img.ndim == 4 else moves[0])
        return out

    def to_input(self, shape: Sequence[int]) -> Tensor:
        """(B, 3, 3) float64: from pixel of the output to pixel of an input of ``shape``."""
        matrices = torch.eye(3, dtype=torch.float64).repeat(len(self.draws), 1, 1)
        matrices[:, :2] = torch.from_numpy(self._backward(shape, self.draws))
        return matrices

    def _apply(self, batch: Tensor, draws: Sequence[SpatialDraw2D]) -> Tensor:
        shape = tuple(batch.shape[2:])
        size = self.crop_size or shape
        if size[0] > shape[0] or size[1] > shape[1]:
            raise ValueError(f"RandSpatial2D: crop_size {size} does not fit in an image of {shape} (pad it first)")
        if self.probs[0] and shape[0] != shape[1]:
            raise ValueError(f"RandSpatial2D: rotate90_prob wants square images, got {shape} (resize, or set it to 0)")
        if size == shape and all(draw.still for draw in draws):
            return self._unit(batch)
        return self._fill(batch, draws, [i for i, draw in enumerate(draws) if draw.interpolates], size)

    def _keep(self, image: Tensor, draw: SpatialDraw2D) -> Tensor:
        turned = torch.rot90(image, draw.quarters, (1, 2)) if draw.quarters else image
        flips = [axis for axis, flip in enumerate(draw.flip, start=1) if flip]
        flipped = turned.flip(flips) if flips else turned
        if self.crop_size is None:
            return flipped
        (top, left), (height, width) = draw.start(image.shape[1:], self.crop_size), self.crop_size
        return flipped[:, top : top + height, left : left + width]

    def _change(self, images: Tensor, draws: Sequence[SpatialDraw2D]) -> Tensor:
        shape = tuple(images.shape[2:])
        size = self.crop_size or shape
        to_unit_square = (2 / np.array(shape))[:, None]  # pixels -> grid_sample's -1..1, in the order (x, y)
        matrices = self._backward(shape, draws) * to_unit_square
        matrices[..., 2:] += to_unit_square / 2 - 1
        per_row, per_column, offset = torch.from_numpy(matrices[:, ::-1].copy()).to(images)[..., None, None].unbind(2)
        rows, columns = (torch.arange(n, dtype=images.dtype, device=images.device) for n in size)
        grid = torch.addcmul(per_row * rows[:, None] + offset, per_column, columns).movedim(1, -1)
        if isinstance(self.fill, str):
            return grid_sample(images, grid, self.mode, padding_mode=self.fill, align_corners=False)
        above = images - self.fill if self.fill else images  # grid_sample pads with zeros
        return grid_sample(above, grid, self.mode, padding_mode="zeros", align_corners=False).add_(self.fill)

    def _backward(self, shape: Sequence[int], draws: Sequence[SpatialDraw2D]) -> NDArray[np.float64]:
        """(B, 2, 3): from output pixel, in the crop, to input pixel."""
        flips, quarters, angles, scales, shifts, _ = (np.array(part) for part in zip(*draws, strict=True))
        turns = _rotation(np.deg2rad(angles)) * scales[:, None, None]
        quarter_turns = _rotation(quarters * np.pi / 2).round()
        inverse = np.linalg.inv(turns @ (np.where(flips, -1, 1)[:, :, None] * quarter_turns))
        center = (np.array(shape) - 1) / 2
        starts = np.array([draw.start(shape, self.crop_size or shape) for draw in draws])
        offsets = inverse @ (starts - center - shifts * shape)[:, :, None] + center[:, None]
        return np.concatenate([inverse, offsets], axis=2)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 2, 2) matrices on (row, column), counterclockwise as displayed."""
    return np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)


class RandSpatial2Dd(RandSpatiald):
    """`RandSpatial2D` for dictionaries; all keys get the same draw, and the item's boxes move along (`RandSpatiald`).

    Args:
        keys: images of the same size.
        mode: "bilinear" or "nearest", one for all keys or one for each, "nearest" then for masks (`RandSpatiald`).
        allow_missing_keys: whether a key may be missing.
        min_visible: boxes of which a smaller share is left in the image become ones to be ignored, 0..1.
        knobs: the other arguments of `RandSpatial2D`.

    Example:
        >>> import torch
        >>> item = {"image": torch.zeros(3, 8, 8), "label": 1}
        >>> RandSpatial2Dd("image", rotate90_prob=0.5)(item)["image"].shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self,
        keys: KeysCollection,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
        min_visible: float = MIN_VISIBLE,
        **knobs: Any,
    ) -> None:
        super().__init__(keys, RandSpatial2D, mode, allow_missing_keys, min_visible, **knobs)
