"""Inferers that any bundle can name."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.inferers import SimpleInferer

Precision = Literal["auto", "bf16", "fp32"]


class AutocastInferer(SimpleInferer):
    """Forward pass in bf16 autocast, on CPU as on GPU; the result is float32.

    MONAI's ``amp=True`` works on CUDA only. bf16 needs no gradient scaling.

    Args:
        precision: "bf16", "fp32", or "auto": bf16 on CUDA devices and CPUs that have fast units for it (AMX).

    Example:
        >>> import torch
        >>> AutocastInferer("bf16")(torch.ones(1, 2), torch.nn.Linear(2, 3)).dtype
        torch.float32
    """

    def __init__(self, precision: Precision = "auto") -> None:
        super().__init__()
        if precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"AutocastInferer: precision must be 'auto', 'bf16' or 'fp32', got {precision!r}")
        self.precision = precision

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        kind = inputs.device.type
        bf16 = self.precision == "bf16" or (self.precision == "auto" and fast_bf16(kind))
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            return super().__call__(inputs, network, *args, **kwargs).float()


def fast_bf16(device_type: str) -> bool:
    """Whether bf16 autocast gains time and is sound.

    CPUs with AVX512-BF16 but no AMX are left out: torch 2.13 gave NaN gradients there (convolution of bf16 volumes in
    channels-last order, AMD EPYC) for a gain of 15 %.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
