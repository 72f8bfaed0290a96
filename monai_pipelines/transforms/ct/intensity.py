"""Random brightness, contrast and noise of volumes, and the base of all random steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor


class RandVolume(RandomizableTransform):
    """Base of the random steps: one independent draw for each volume, then an application that draws nothing.

    A single volume (C, X, Y, Z) or a batch (B, C, X, Y, Z), numpy array or tensor, comes back as a tensor on the same
    device (a MetaTensor as a MetaTensor). A batch gets the draws that its volumes would get one
    after the other. Where nothing is drawn for any volume, the input itself comes back.
    """

    draws: list[Any]
    spatial_dims = 3
    wanted = "a volume (C, X, Y, Z) or a batch (B, C, X, Y, Z)"

    @abstractmethod
    def _draw(self) -> Any:
        """Parameters for one volume, from `self.R`."""

    @abstractmethod
    def _apply(self, batch: Tensor, draws: Sequence[Any]) -> Tensor:
        """Apply one draw to each volume of (B, C, X, Y, Z); `batch` itself where nothing is to be done."""

    def _unit(self, values: Tensor) -> Tensor:
        """Values in [0, 1]: uint8 as float32 ``x / 255``, floating point as it is."""
        if values.dtype == torch.uint8:
            return values.to(torch.float32).div_(255)
        if not values.is_floating_point():
            raise TypeError(
                f"{type(self).__name__}: wanted uint8 or floating point in [0, 1], got {values.dtype} (scale or window "
                "it first)"
            )
        return values

    def randomize(self, data: NdarrayOrTensor) -> None:
        """Draw for each volume of `data`."""
        lead = data.ndim - self.spatial_dims
        if lead not in (1, 2):
            raise ValueError(f"{type(self).__name__}: wanted {self.wanted}, got shape {tuple(data.shape)}")
        self.draws = [self._draw() for _ in range(1 if lead == 1 else len(data))]

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        if randomize:
            self.randomize(img)
        volume: Tensor = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        single = plain.ndim == self.spatial_dims + 1
        batch = plain[None] if single else plain
        applied = self._apply(batch, self.draws)
        if applied is batch:
            return volume
        out = applied[0] if single else applied
        return MetaTensor(out).copy_meta_from(volume) if isinstance(volume, MetaTensor) else out


class RandVolumed(RandomizableTransform, MapTransform):
    """Base of the dictionary twins: all keys get the draws made for the first of them."""

    def __init__(self, keys: KeysCollection, step: RandVolume, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self)
        self.step = step

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandVolumed:
        self.step.set_random_state(seed, state)
        return self

    def randomize(self, data: NdarrayOrTensor) -> None:
        self.step.randomize(data)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        keys = list(self.key_iterator(d))
        if keys:
            self.randomize(d[keys[0]])
        for key in keys:
            if self._extent(d[key]) != self._extent(d[keys[0]]):
                raise ValueError(
                    f"{type(self).__name__}: all keys share one draw and so need one size, got "
                    + ", ".join(f"{k} {tuple(d[k].shape)}" for k in keys)
                )
            d[key] = self._step(key, d[key])
        return d

    def _step(self, key: Hashable, img: NdarrayOrTensor) -> Tensor:
        return self.step(img, randomize=False)

    def _extent(self, img: NdarrayOrTensor) -> tuple[int, ...]:
        """Shape without the channels."""
        dims = self.step.spatial_dims
        return (img.ndim, *img.shape[: -dims - 1], *img.shape[-dims:])


class _RandIntensity3D(RandVolume):
    """With probability `prob`, `_change` a volume by a drawn value."""

    def __init__(self, prob: float) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"{type(self).__name__}: prob must lie in 0..1, got {prob}")
        super().__init__(prob)

    @abstractmethod
    def _value(self) -> float:
        """Draw the value."""

    @abstractmethod
    def _change(self, volume: Tensor, value: float) -> Tensor:
        """Apply the value to (C, X, Y, Z)."""

    def _draw(self) -> float | None:
        return self._value() if self.R.random_sample() < self.prob else None

    def _apply(self, batch: Tensor, draws: Sequence[float | None]) -> Tensor:
        volumes = self._unit(batch)
        if all(value is None for value in draws):
            return volumes
        return torch.stack(
            [v if value is None else self._change(v, value) for v, value in zip(volumes, draws, strict=True)]
        )


class _RandFactor3D(_RandIntensity3D):
    """An intensity step that draws a factor."""

    def __init__(self, factor: Sequence[float] = (0.9, 1.1), prob: float = 0.3) -> None:
        super().__init__(prob)
        if len(factor) != 2 or not 0 <= factor[0] <= factor[1]:
            raise ValueError(f"{type(self).__name__}: factor must be (low, high), 0 <= low <= high, got {list(factor)}")
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
        the shape of the input, (C, X, Y, Z) or (B, C, X, Y, Z); float32 of ``x / 255`` for uint8, else of its dtype.

    Raises:
        ValueError: the factor or the probability is out of range, or the input is no volume or batch.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> RandBrightness3D(factor=(2, 2), prob=1)(torch.ones(1, 1, 1, 2))
        tensor([[[[2., 2.]]]])

    Reference:
        MONAI's `RandScaleIntensity` does this for one volume, not for each of a batch.
    """

    def _change(self, volume: Tensor, value: float) -> Tensor:
        return volume * value


class RandContrast3D(_RandFactor3D):
    """Vary the contrast of volumes about their mean: ``(x - mean) * factor + mean``, each channel with its own mean.

    Draws, for each volume, whether (`prob`) and `factor` (uniform).

    Args:
        factor: ``(low, high)`` of the factor.
        prob: probability for each volume, 0..1.

    Returns:
        the shape of the input, (C, X, Y, Z) or (B, C, X, Y, Z); float32 of ``x / 255`` for uint8, else of its dtype.

    Raises:
        ValueError: the factor or the probability is out of range, or the input is no volume or batch.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> RandContrast3D(factor=(2, 2), prob=1)(torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[[[-0.5000,  1.5000]]]])

    Reference:
        MONAI's `RandAdjustContrast` is a gamma curve, another thing.
    """

    def _change(self, volume: Tensor, value: float) -> Tensor:
        return volume * value + volume.mean((1, 2, 3), keepdim=True) * (1 - value)


class RandNoise3D(_RandIntensity3D):
    """Add Gaussian noise to volumes: ``x + N(0, sd)`` in each voxel.

    Draws, for each volume, whether (`prob`) and a seed; the noise is made from the seed on the volume's device, so
    the same seed gives other noise on another kind of device.

    Args:
        sd: standard deviation, in the units of the volume.
        prob: probability for each volume, 0..1.

    Returns:
        the shape of the input, (C, X, Y, Z) or (B, C, X, Y, Z); float32 of ``x / 255`` for uint8, else of its dtype.

    Raises:
        ValueError: the sd or the probability is out of range, or the input is no volume or batch.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> noisy = RandNoise3D(sd=0.05, prob=1).set_random_state(0)(torch.zeros(1, 32, 32, 32))
        >>> round(noisy.std().item(), 3)
        0.05

    Reference:
        MONAI's `RandGaussianNoise` makes one noise for the whole input, in numpy.
    """

    def __init__(self, sd: float = 0.05, prob: float = 0.3) -> None:
        super().__init__(prob)
        if sd < 0:
            raise ValueError(f"RandNoise3D: sd must be 0 or more, got {sd}")
        self.sd = sd

    def _value(self) -> float:
        return self.R.randint(2**31)

    def _change(self, volume: Tensor, value: float) -> Tensor:
        generator = torch.Generator(volume.device).manual_seed(int(value))
        noise = torch.randn(volume.shape, generator=generator, dtype=volume.dtype, device=volume.device)
        return noise.mul_(self.sd).add_(volume)


class RandBrightness3Dd(RandVolumed):
    """`RandBrightness3D` for dictionaries; all keys get the same factor."""

    def __init__(
        self,
        keys: KeysCollection,
        factor: Sequence[float] = (0.9, 1.1),
        prob: float = 0.3,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandBrightness3D(factor, prob), allow_missing_keys)


class RandContrast3Dd(RandVolumed):
    """`RandContrast3D` for dictionaries; all keys get the same factor."""

    def __init__(
        self,
        keys: KeysCollection,
        factor: Sequence[float] = (0.9, 1.1),
        prob: float = 0.3,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandContrast3D(factor, prob), allow_missing_keys)


class RandNoise3Dd(RandVolumed):
    """`RandNoise3D` for dictionaries; all keys get the same noise."""

    def __init__(
        self, keys: KeysCollection, sd: float = 0.05, prob: float = 0.3, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, RandNoise3D(sd, prob), allow_missing_keys)
