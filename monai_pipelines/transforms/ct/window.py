"""Windows of Hounsfield units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor

from monai_pipelines.transforms.keyed import EachKeyd

WINDOWS_HU = {"lung": (-1000.0, 400.0), "mediastinum": (-160.0, 240.0), "bone": (-450.0, 1050.0)}


class WindowHU(Transform):
    """Map a window of Hounsfield units to [0, 1]: ``clip((hu - low) / (high - low), 0, 1)``.

    Args:
        window_hu: ``(low, high)`` in HU, or a preset: "lung" (-1000, 400), "mediastinum" (-160, 240; level 40,
            width 400), "bone" (-450, 1050; level 300, width 1500).

    Returns:
        float32 of the input's shape.

    Raises:
        ValueError: an unknown preset, or a window that does not rise (MONAI's `ScaleIntensityRange` would silently
            invert the image).

    Example:
        >>> import torch
        >>> WindowHU("lung")(torch.tensor([-2000, -300, 400]))
        metatensor([0.0000, 0.5000, 1.0000])
    """

    def __init__(self, window_hu: str | Sequence[float] = "lung") -> None:
        if isinstance(window_hu, str):
            if window_hu not in WINDOWS_HU:
                presets = ", ".join(WINDOWS_HU)
                raise ValueError(f"WindowHU: window_hu must be one of {presets} or (low, high), got {window_hu!r}")
            window_hu = WINDOWS_HU[window_hu]
        if len(window_hu) != 2 or not window_hu[0] < window_hu[1]:
            raise ValueError(f"WindowHU: window_hu must rise, got {list(window_hu)} (swapped?)")
        self.low, self.high = float(window_hu[0]), float(window_hu[1])

    def __call__(self, img: NdarrayOrTensor) -> MetaTensor:
        hu: Any = convert_to_tensor(img, track_meta=True)
        return hu.to(torch.float32).sub(self.low).div_(self.high - self.low).clamp_(0.0, 1.0)


class WindowHUd(EachKeyd):
    """`WindowHU` for dictionaries."""

    def __init__(
        self, keys: KeysCollection, window_hu: str | Sequence[float] = "lung", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, WindowHU(window_hu), allow_missing_keys)
