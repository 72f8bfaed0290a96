"""Lung masks on the grid of a volume, and volumes masked with them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import nibabel as nib
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_pipelines.transforms.ct.grid import placed
from monai_pipelines.transforms.keyed import EachKeyd


class RefineLungs(Transform):
    """Refine a lung mask that was made on a coarser grid than the volume.

    Voxels on either side of the mask's surface belong to the lungs if they are air:
    ``erode(mask) | (dilate(mask) & (hu < air_hu))``, by one voxel along the axes.

    Args:
        air_hu: upper limit of air, HU.

    Returns:
        the mask (1, X, Y, Z) uint8.

    Raises:
        ValueError: volume and mask have different shapes.

    Example:
        >>> import torch
        >>> hu, mask = torch.tensor([[[[-900, -900, -900, -900, 40]]]]), torch.tensor([[[[1, 1, 1, 0, 0]]]])
        >>> RefineLungs()(hu, mask).flatten().tolist()
        [1, 1, 1, 1, 0]
    """

    def __init__(self, air_hu: float = -400.0) -> None:
        if not -1000 < air_hu < 0:
            raise ValueError(f"RefineLungs: air_hu must lie between air (-1000) and water (0), got {air_hu}")
        self.air_hu = air_hu

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> MetaTensor:  # type: ignore[override]
        values: Any = convert_to_tensor(mask, track_meta=True)
        if tuple(img.shape) != tuple(values.shape):
            raise ValueError(
                f"RefineLungs: the mask is not on the volume's grid (mask {tuple(values.shape)}, volume "
                f"{tuple(img.shape)}); resample it first"
            )
        inside = values.as_tensor()[0] > 0
        air = torch.as_tensor(img).as_subclass(Tensor)[0] < self.air_hu
        refined = ~_with_neighbors(~inside) | (_with_neighbors(inside) & air)
        return placed(refined[None].to(torch.uint8), values.affine, values.meta)


class MaskLungs(Transform):
    """Apply the lung mask to a windowed volume.

    Args:
        masking: "none" changes nothing; "air" sets everything outside the dilated mask to 0, the value of air after
            `WindowHU`; "channel" appends the mask as a second channel.
        dilate_mm: radius by which the mask is dilated first, mm; a tight mask loses the pleura.

    Returns:
        float32 (1, X, Y, Z), or (2, X, Y, Z) for "channel".

    Example:
        >>> import torch
        >>> MaskLungs("channel", dilate_mm=0)(torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 4)).shape
        torch.Size([2, 4, 4, 4])
    """

    def __init__(self, masking: Literal["none", "air", "channel"] = "none", dilate_mm: float = 5.0) -> None:
        if masking not in ("none", "air", "channel"):
            raise ValueError(f"MaskLungs: masking must be 'none', 'air' or 'channel', got {masking!r}")
        if dilate_mm < 0:
            raise ValueError(f"MaskLungs: dilate_mm must not be negative, got {dilate_mm}")
        self.masking, self.dilate_mm = masking, dilate_mm

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> MetaTensor:  # type: ignore[override]
        image: Any = convert_to_tensor(img, track_meta=True)
        if self.masking == "none":
            return image
        if tuple(image.shape[1:]) != tuple(mask.shape[1:]):
            shapes = f"mask {tuple(mask.shape)}, image {tuple(image.shape)}"
            raise ValueError(f"MaskLungs: the mask is not on the image's grid ({shapes}); resample it first")
        spacing = nib.affines.voxel_sizes(image.affine.numpy())
        grown = dilated(torch.as_tensor(mask)[0] > 0, spacing, self.dilate_mm)[None].to(image)
        masked: Any = image * grown if self.masking == "air" else torch.cat([image, grown])
        return masked


def dilated(mask: Tensor, spacing_mm: Sequence[float], radius_mm: float) -> Tensor:
    """Voxels whose center is at most ``radius_mm`` from that of a voxel of the mask.

    The ball is taken apart into lines along the last axis: the mask is dilated along them, and moved to each.

    Args:
        mask: (X, Y, Z) of booleans.
        spacing_mm: voxel size.
        radius_mm: 0 or more.

    Returns:
        (X, Y, Z) of booleans.

    Example:
        >>> dilated(torch.tensor([[[True, False, False, False]]]), (1, 1, 0.5), 1.0)
        tensor([[[ True,  True,  True, False]]])
    """
    reach = [min(int(radius_mm / mm + 1e-6), n - 1) for mm, n in zip(spacing_mm, mask.shape, strict=True)]
    lines = [mask]  # dilated along the last axis by 0, 1, ... voxels
    for k in range(1, reach[2] + 1):
        lines.append(lines[-1].clone())
        for sign in (k, -k):
            _add_moved(lines[-1], mask, (0, 0, sign))
    out = mask.clone()
    for i in range(-reach[0], reach[0] + 1):
        for j in range(-reach[1], reach[1] + 1):
            left = radius_mm**2 - (i * spacing_mm[0]) ** 2 - (j * spacing_mm[1]) ** 2
            if left > -1e-6:
                line = lines[min(int(max(left, 0) ** 0.5 / spacing_mm[2] + 1e-6), reach[2])]
                _add_moved(out, line, (i, j, 0))
    return out


def _with_neighbors(mask: Tensor) -> Tensor:
    out = mask.clone()
    for axis, by in product(range(3), (1, -1)):
        _add_moved(out, mask, tuple(by * (other == axis) for other in range(3)))
    return out


def _add_moved(out: Tensor, mask: Tensor, by: tuple[int, ...]) -> None:
    """``out |= mask`` moved by some voxels."""
    to = tuple(slice(max(0, n), n if n < 0 else None) for n in by)
    of = tuple(slice(max(0, -n), -n if n > 0 else None) for n in by)
    out[to] |= mask[of]


class RefineLungsd(EachKeyd):
    """`RefineLungs` for dictionaries: the mask at ``mask_key``, if present, by the volume at ``keys``."""

    def __init__(
        self, keys: KeysCollection, mask_key: str = "lungs", air_hu: float = -400.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, RefineLungs(air_hu), allow_missing_keys, mask_key, mask_key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return super().__call__(data) if self.mask_key in data else dict(data)


class MaskLungsd(EachKeyd):
    """`MaskLungs` for dictionaries: ``keys`` with the mask at ``mask_key``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "lungs",
        masking: Literal["none", "air", "channel"] = "none",
        dilate_mm: float = 5.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, MaskLungs(masking, dilate_mm), allow_missing_keys, mask_key)
