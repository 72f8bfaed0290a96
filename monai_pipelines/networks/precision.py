"""bf16 autocast: where it is fast, and where it is correct."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Precision = Literal["auto", "bf16", "fp32"]

_CONVOLUTIONS = {torch.conv2d, torch.conv3d}


def check_precision(precision: Precision) -> Precision:
    """The precision, or a ValueError."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision must be 'auto', 'bf16' or 'fp32', got {precision!r}")
    return precision


def used_precision(precision: Precision, device_type: str, gradients: bool = True) -> Precision:
    """What "auto" means on a device, see `fast_bf16`."""
    if precision != "auto":
        return precision
    return "bf16" if fast_bf16(device_type, gradients) else "fp32"


@contextmanager
def autocast(precision: Precision, device_type: str) -> Iterator[None]:
    """bf16 autocast, or none; on CPU with `SmallConvolutionsInFloat32`."""
    bf16 = used_precision(precision, device_type) == "bf16"
    small = SmallConvolutionsInFloat32() if bf16 and device_type == "cpu" else nullcontext()
    with torch.autocast(device_type, torch.bfloat16, enabled=bf16), small:
        yield


def fast_bf16(device_type: str, gradients: bool = True) -> bool:
    """Whether bf16 autocast is known to be faster.

    CPUs with AVX512-BF16 but no AMX qualify for frozen networks only: in training it depends on the network, see
    `monai_pipelines.engines.precision.measured_precision`.

    Args:
        device_type: such as "cpu".
        gradients: the network is trained.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = ("amx_bf16",) if gradients else ("amx_bf16", "avx512_bf16")
    return device_type == "cpu" and any(torch.cpu.get_capabilities().get(unit) for unit in units)


class SmallConvolutionsInFloat32(TorchFunctionMode):
    """While active, convolutions of images no larger than their kernel leave bf16 autocast and run in float32.

    In bf16, torch 2.13's convolutions on CPU read and write beyond their arrays when a side of the image is no longer
    than that of the kernel, as in the last stage of a network on small volumes: weight gradients are noise or NaN, 3D
    outputs with a stride of 2 are wrong, and the process can crash. Larger images are right.

    Example:
        >>> convolution = torch.nn.Conv3d(4, 4, kernel_size=3, padding=1)
        >>> with torch.autocast("cpu", torch.bfloat16), SmallConvolutionsInFloat32():
        ...     [convolution(torch.ones(1, 4, n, n, n)).dtype for n in (3, 4)]
        [torch.float32, torch.bfloat16]
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS and torch.is_autocast_enabled("cpu") and _is_small(*args[:2]):
            image, *others = args
            with torch.autocast("cpu", enabled=False):
                return func(image.float(), *others, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_small(image: Tensor, weight: Tensor) -> bool:
    return any(1 < kernel >= side for side, kernel in zip(image.shape[2:], weight.shape[2:], strict=True))
