"""What to do with the lung mask on the network's grid: measure with it, mask with it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor
from scipy import ndimage
from torch import Tensor

BINS_HU = np.arange(-1000, 101, 100)


class LungHistogram(Transform):
    """Mean and histogram of HU inside the lungs: the shortcut that a network has to beat.

    Returns:
        {"HU histogram": float32 tensor (14,)}: mean HU / 1000, then the fraction of lung voxels below -1000, in 11
        steps of 100 HU up to 100 and above (a histogram with open ends).

    Example:
        >>> import numpy as np
        >>> LungHistogram()(np.full((1, 2, 2, 2), -850), np.ones((1, 2, 2, 2)))["HU histogram"][:4]
        tensor([-0.8500,  0.0000,  0.0000,  1.0000])
    """

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> dict[str, Tensor]:  # type: ignore[override]
        hu = np.asarray(img)[np.asarray(mask) > 0].astype(np.float32)
        if hu.size == 0:
            raise ValueError("LungHistogram: the mask is empty")
        counts = np.bincount(np.digitize(hu, BINS_HU), minlength=len(BINS_HU) + 1)
        features = np.concatenate([[hu.mean() / 1000], counts / hu.size])
        return {"HU histogram": torch.from_numpy(features.astype(np.float32))}


class LungHistogramd(MapTransform):
    """`LungHistogram` for dictionaries: of ``keys`` inside ``mask_key``, stored at ``feature_key``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "lungs",
        feature_key: str = "shortcut",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key, self.feature_key = mask_key, feature_key
        self.measure = LungHistogram()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.feature_key] = self.measure(d[key], d[self.mask_key])
        return d


class MaskLungs(Transform):
    """Use the lung mask on a windowed volume.

    Args:
        masking: "none" leaves the volume alone; "air" sets what lies outside the dilated mask to 0, the value of air
            after `WindowHU`; "channel" appends the mask as a second channel.
        dilate_mm: how far the mask grows first, mm: a hard rim costs accuracy at the pleura.

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
            raise ValueError(f"MaskLungs: the mask is not on the grid of the image ({shapes}); resample it first")
        inside = np.asarray(mask)[0] > 0
        if self.dilate_mm > 0:
            spacing = nib.affines.voxel_sizes(image.affine.numpy())
            inside = ndimage.distance_transform_edt(~inside, sampling=spacing) <= self.dilate_mm
        grown = torch.from_numpy(inside)[None].to(image)
        masked: Any = image * grown if self.masking == "air" else torch.cat([image, grown])
        return masked


class MaskLungsd(MapTransform):
    """`MaskLungs` for dictionaries: ``keys`` with the mask at ``mask_key``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "lungs",
        masking: Literal["none", "air", "channel"] = "none",
        dilate_mm: float = 5.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.mask = MaskLungs(masking, dilate_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.mask(d[key], d[self.mask_key])
        return d
