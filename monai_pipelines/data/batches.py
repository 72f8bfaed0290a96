"""How a batch reaches the network."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch

from monai_pipelines.chains import Chain


class PrepareAugmented(PrepareBatch):
    """Move image and label to the device and augment the whole batch there, each volume with its own draws.

    Args:
        augmentation: a chain that works on batches (B, C, X, Y, Z); None changes nothing.
    """

    def __init__(self, augmentation: Chain | None = None) -> None:
        self.augmentation = augmentation

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.as_tensor(batchdata["image"]).as_subclass(torch.Tensor)
        image = image.to(device=device, non_blocking=non_blocking, **kwargs)
        if self.augmentation is not None:
            image = torch.as_tensor(self.augmentation({"image": image})["image"]).as_subclass(torch.Tensor)
        return image, batchdata["label"].to(device=device, non_blocking=non_blocking)
