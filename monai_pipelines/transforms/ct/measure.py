"""Simple features of the lungs: the shortcut that a network has to beat."""

from __future__ import annotations

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import Transform
from torch import Tensor

from monai_pipelines.transforms.keyed import EachKeyd

LOWEST_HU, STEP_HU, NUM_BINS = -1000, 100, 11


class LungHistogram(Transform):
    """Mean and histogram of HU inside the lungs.

    Returns:
        {"HU histogram": float32 tensor (14,)}: mean HU / 1000, then the fraction of lung voxels below -1000, in 11
        bins of 100 HU up to 100, and above.

    Example:
        >>> import numpy as np
        >>> LungHistogram()(np.full((1, 2, 2, 2), -850), np.ones((1, 2, 2, 2)))["HU histogram"][:4]
        tensor([-0.8500,  0.0000,  0.0000,  1.0000])
    """

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor) -> dict[str, Tensor]:  # type: ignore[override]
        hu = np.asarray(img)[np.asarray(mask) > 0].astype(np.float32)
        if hu.size == 0:
            raise ValueError("LungHistogram: the mask is empty")
        bins = np.floor((hu - LOWEST_HU) / STEP_HU).clip(-1, NUM_BINS).astype(np.intp)
        counts = np.bincount(bins + 1, minlength=NUM_BINS + 2)
        features = np.concatenate([[hu.mean() / 1000], counts / hu.size])
        return {"HU histogram": torch.from_numpy(features.astype(np.float32))}


class LungHistogramd(EachKeyd):
    """`LungHistogram` for dictionaries: of ``keys`` inside ``mask_key``, stored at ``feature_key``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "lungs",
        feature_key: str = "shortcut",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, LungHistogram(), allow_missing_keys, mask_key, feature_key)
