"""Volumes masked with the lungs."""

from __future__ import annotations

from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from scipy import ndimage

from monai_pipelines.transforms.keyed import EachKeyd


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
        inside = np.asarray(mask)[0] > 0
        if self.dilate_mm > 0:
            spacing = nib.affines.voxel_sizes(image.affine.numpy())
            inside = ndimage.distance_transform_edt(~inside, sampling=spacing) <= self.dilate_mm
        grown = torch.from_numpy(inside)[None].to(image)
        masked: Any = image * grown if self.masking == "air" else torch.cat([image, grown])
        return masked


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
