"""Simple features of 2D images: the shortcuts that a network has to beat."""

from __future__ import annotations

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_pipelines.transforms.keyed import EachKeyd

NUM_BINS = 16
FILE_TYPES = ("png", "jpeg", "tiff", "dicom", "other")


class MeasureImage(Transform):
    """Mean color, color histogram, size and file type of an image as loaded.

    Returns:
        float32 tensors on the CPU, by name of the baseline: "mean color" (C,) in [0, 1]; "color histogram" (16 C,),
        for each channel the fractions of its values in 16 equal bins of [0, 1], the last closed; "size and file type"
        (7,): log2 of height and width in pixels, then ``meta["file_type"]`` one-hot among png, jpeg, tiff, dicom and
        other (also if missing).

    Raises:
        ValueError: an input that is not (C, H, W), or empty.

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
        bins = bins.flatten(1) + NUM_BINS * torch.arange(channels, device=bins.device)[:, None]
        counts = torch.bincount(bins.flatten(), minlength=NUM_BINS * channels)
        file_type = meta.get("file_type")
        kinds = [float(file_type == kind) for kind in FILE_TYPES[:-1]]
        size = torch.tensor([height, width], dtype=torch.float32).log2()
        return {
            "mean color": mean.cpu(),
            "color histogram": counts.cpu().float() / (height * width),
            "size and file type": torch.cat([size, torch.tensor([*kinds, 1 - sum(kinds)])]),
        }


class MeasureImaged(EachKeyd):
    """`MeasureImage` for dictionaries: of ``keys``, stored at ``feature_key``."""

    def __init__(self, keys: KeysCollection, feature_key: str = "shortcut", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, MeasureImage(), allow_missing_keys, out_key=feature_key)
