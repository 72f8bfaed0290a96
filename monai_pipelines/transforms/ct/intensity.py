"""Random brightness, contrast and noise of volumes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from monai.config import KeysCollection
from scipy.special import ndtri
from torch import Tensor

from monai_pipelines.transforms.ct.grid import in_threads, kernels_for
from monai_pipelines.transforms.random import RandStep, RandStepd, empty


class _RandIntensity3D(RandStep):
    """Base: with probability `prob`, `_change` a volume by a drawn value."""

    def __init__(self, prob: float) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"{type(self).__name__}: prob must lie in 0..1, got {prob}")
        super().__init__(prob)

    @abstractmethod
    def _value(self) -> float:
        """Draw the value."""

    @abstractmethod
    def _change(self, volume: Tensor, value: float, out: Tensor) -> None:
        """Apply the value to (C, X, Y, Z); the result goes to ``out``."""

    def _draw(self) -> float | None:
        return self._value() if self.R.random_sample() < self.prob else None

    def _apply(self, batch: Tensor, draws: Sequence[float | None]) -> Tensor:
        volumes = self._unit(batch)
        if all(value is None for value in draws):
            return volumes
        changed = empty(volumes.shape, volumes.dtype, volumes.device)
        for volume, value, out in zip(volumes, draws, changed, strict=True):
            if value is None:
                out.copy_(volume)
            else:
                self._change(volume, value, out)
        return changed


class _RandFactor3D(_RandIntensity3D):
    """Base: the value is a factor."""

    def __init__(self, factor: Sequence[float] = (0.9, 1.1), prob: float = 0.3) -> None:
        super().__init__(prob)
        if np.size(factor) != 2 or not 0 <= factor[0] <= factor[1]:
            raise ValueError(
                f"{type(self).__name__}: factor must be (low, high), 0 <= low <= high, got {np.ravel(factor).tolist()}"
            )
        self.factor = (float(factor[0]), float(factor[1]))

    def _value(self) -> float:
        return self.R.uniform(*self.factor)


class RandBrightness3D(_RandFactor3D):
    """Vary the brightness of volumes: ``x * factor``; 0 (air, after the window) stays 0.

    Draws, for each volume, whether (`prob`) and `factor` (uniform).

    Args:
        factor: ``(low, high)`` of the factor.
        prob: probability for each volume, 0..1.

    Returns:
        the input's shape, (C, X, Y, Z) or (B, C, X, Y, Z); float32 ``x / 255`` for uint8, else the input's dtype.

    Raises:
        ValueError: an argument out of range, or an input that is neither a volume nor a batch.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> RandBrightness3D(factor=(2, 2), prob=1)(torch.ones(1, 1, 1, 2))
        tensor([[[[2., 2.]]]])

    Reference:
        MONAI's `RandScaleIntensity` takes one volume, no batch.
    """

    def _change(self, volume: Tensor, value: float, out: Tensor) -> None:
        torch.mul(volume, value, out=out)


class RandContrast3D(_RandFactor3D):
    """Vary the contrast of volumes about their mean: ``(x - mean) * factor + mean``, per channel.

    Draws, for each volume, whether (`prob`) and `factor` (uniform).

    Args:
        factor: ``(low, high)`` of the factor.
        prob: probability for each volume, 0..1.

    Returns:
        the input's shape, (C, X, Y, Z) or (B, C, X, Y, Z); float32 ``x / 255`` for uint8, else the input's dtype.

    Raises:
        ValueError: an argument out of range, or an input that is neither a volume nor a batch.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> RandContrast3D(factor=(2, 2), prob=1)(torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[[[-0.5000,  1.5000]]]])

    Reference:
        not MONAI's `RandAdjustContrast`, which is a gamma curve.
    """

    def _change(self, volume: Tensor, value: float, out: Tensor) -> None:
        torch.mul(volume, value, out=out).add_(volume.mean((1, 2, 3), keepdim=True) * (1 - value))


class RandNoise3D(_RandIntensity3D):
    """Add Gaussian noise to volumes: ``x + N(0, std)`` in each voxel.

    Draws, for each volume, whether (`prob`) and a seed. The noise of a voxel depends only on the seed and the index of
    the voxel: each 64-bit word of SplitMix64 gives four 16-bit indices into 65,536 quantiles of the normal distribution
    (up to 4.3 standard deviations). It is therefore the same on every device.

    Args:
        std: standard deviation, in the units of the volume.
        prob: probability for each volume, 0..1.

    Returns:
        the input's shape, (C, X, Y, Z) or (B, C, X, Y, Z); float32 ``x / 255`` for uint8, else the input's dtype.

    Raises:
        ValueError: an argument out of range, or an input that is neither a volume nor a batch.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> noisy = RandNoise3D(std=0.05, prob=1).set_random_state(0)(torch.zeros(1, 32, 32, 32))
        >>> round(noisy.std().item(), 3)
        0.05

    Reference:
        Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014. MONAI's `RandGaussianNoise` draws
        one noise field for the whole input, in numpy.
    """

    def __init__(self, std: float = 0.05, prob: float = 0.3) -> None:
        super().__init__(prob)
        if std < 0:
            raise ValueError(f"RandNoise3D: std must be 0 or more, got {std}")
        self.std = std

    def _value(self) -> float:
        return self.R.randint(2**31)

    def _change(self, volume: Tensor, value: float, out: Tensor) -> None:
        kernels = kernels_for(volume)
        if not kernels:
            torch.add(volume, _noise(volume.shape, int(value), volume.device), alpha=self.std, out=out)
            return
        values, target = np.ascontiguousarray(volume.numpy()).reshape(-1), out.numpy().reshape(-1)
        constants = _quantiles(volume.device).numpy(), np.float32(self.std), int(value)
        in_threads(lambda *part: kernels.add_noise(values, target, *constants, *part), -(-values.size // 4))


@cache
def _quantiles(device: torch.device) -> Tensor:
    return torch.from_numpy(ndtri((np.arange(2**16) + 0.5) / 2**16)).float().to(device)


def _noise(shape: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """Standard normal noise; `kernels.add_noise` does the same."""
    number = math.prod(shape)
    words = torch.arange(1, -(-number // 4) + 1, device=device) * _signed(0x9E3779B97F4A7C15) + seed
    words = (words ^ _shifted(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _shifted(words, 27)) * _signed(0x94D049BB133111EB)
    words ^= _shifted(words, 31)
    indices = torch.stack([_shifted(words, bits) & 0xFFFF for bits in (0, 16, 32, 48)], 1)
    return _quantiles(device)[indices.flatten()[:number]].reshape(shape)


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >> 63 else bits


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Logical right shift."""
    return words >> bits & (2 ** (64 - bits) - 1 if bits else -1)


class RandBrightness3Dd(RandStepd):
    """`RandBrightness3D` for dictionaries; all keys get the same factor."""

    def __init__(
        self,
        keys: KeysCollection,
        factor: Sequence[float] = (0.9, 1.1),
        prob: float = 0.3,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandBrightness3D(factor, prob), allow_missing_keys)


class RandContrast3Dd(RandStepd):
    """`RandContrast3D` for dictionaries; all keys get the same factor."""

    def __init__(
        self,
        keys: KeysCollection,
        factor: Sequence[float] = (0.9, 1.1),
        prob: float = 0.3,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandContrast3D(factor, prob), allow_missing_keys)


class RandNoise3Dd(RandStepd):
    """`RandNoise3D` for dictionaries; all keys get the same noise."""

    def __init__(
        self, keys: KeysCollection, std: float = 0.05, prob: float = 0.3, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, RandNoise3D(std, prob), allow_missing_keys)
