"""Bases of the random steps: one draw for each volume or image, then an application that draws nothing."""

from __future__ import annotations

import math
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

from monai_pipelines.errors import ScanError

CHUNK_BYTES = 2**23  # of floating-point pixels: about the size of a CPU's cache


class RandStep(RandomizableTransform):
    """Base of all random steps; as defined here, of those for volumes.

    A single volume (C, X, Y, Z) or a batch (B, C, X, Y, Z), numpy array or tensor, comes back as a tensor on the same
    device, a MetaTensor as a MetaTensor. A batch gets the draws that its volumes would get one after the other. Where
    nothing is drawn for any volume, the input itself is returned.
    """

    draws: list[Any]
    spatial_dims = 3
    wanted = "a volume (C, X, Y, Z) or a batch (B, C, X, Y, Z)"

    @abstractmethod
    def _draw(self) -> Any:
        """Parameters for one volume, from `self.R`."""

    @abstractmethod
    def _apply(self, batch: Tensor, draws: Sequence[Any]) -> Tensor:
        """Apply one draw to each volume of (B, C, X, Y, Z); `batch` itself if nothing changes."""

    def _unit(self, values: Tensor) -> Tensor:
        """Values in [0, 1]: uint8 as float32 ``x / 255``, floating point unchanged."""
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
        if not isinstance(data, (np.ndarray, Tensor)):
            reason = f"{type(self).__name__} wants {self.wanted}, got {type(data).__name__}"
            raise ScanError(str(data), f"{reason}; load it first: load_chain(...) + this chain")
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


class RandStepd(RandomizableTransform, MapTransform):
    """Base of the dictionary twins: all keys get the draws made for the first of them."""

    def __init__(self, keys: KeysCollection, step: RandStep, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self)
        self.step = step

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandStepd:
        self.step.set_random_state(seed, state)
        return self

    def randomize(self, data: NdarrayOrTensor) -> None:
        self.step.randomize(data)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        keys = list(self.key_iterator(d))
        if keys:
            self.randomize(d[keys[0]])
        if len({self._extent(d[key]) for key in keys}) > 1:
            raise ValueError(
                f"{type(self).__name__}: all keys share one draw and so need one size, got "
                + ", ".join(f"{k} {tuple(d[k].shape)}" for k in keys)
            )
        for key in keys:
            d[key] = self._step(key, d[key])
        return d

    def _step(self, key: Hashable, img: NdarrayOrTensor) -> Tensor:
        return self.step(img, randomize=False)

    def _extent(self, img: NdarrayOrTensor) -> tuple[int, ...]:
        """Shape without the channels."""
        dims = self.step.spatial_dims
        return (img.ndim, *img.shape[: -dims - 1], *img.shape[-dims:])


class RandImage(RandStep):
    """Base of the random 2D steps: images (C, H, W) or batches (B, C, H, W), uint8 or floating point in [0, 1].

    The result is float32 in [0, 1] for uint8, else of the input's dtype; half types are computed in float32. An image
    for which nothing is drawn (None) keeps its exact values.
    """

    spatial_dims = 2
    wanted = "an image (C, H, W) or a batch (B, C, H, W)"

    @abstractmethod
    def _change(self, images: Tensor, draws: Sequence[Any]) -> Tensor:
        """Apply one draw, never None, to each of (B, C, H, W) in [0, 1], float32 or float64."""

    def _keep(self, image: Tensor, draw: Any) -> Tensor:
        """An image (C, H, W) whose draw computes no new values."""
        return image

    def _apply(self, batch: Tensor, draws: Sequence[Any]) -> Tensor:
        if all(draw is None for draw in draws):
            return self._unit(batch)
        return self._fill(batch, draws, [i for i, d in enumerate(draws) if d is not None], batch.shape[2:])

    def _fill(self, batch: Tensor, draws: Sequence[Any], changed: Sequence[int], size: Sequence[int]) -> Tensor:
        """Write the `changed` images, a chunk at a time, and the others into one new tensor (B, C, *size)."""
        dtype = self._unit(batch[:0]).dtype
        out = empty((*batch.shape[:2], *size), dtype, batch.device)
        for i in set(range(len(batch))).difference(changed):
            out[i] = self._unit(self._keep(batch[i], draws[i]))
        step = len(batch) if batch.is_cuda else max(torch.get_num_threads(), CHUNK_BYTES // (4 * batch[0].numel()))
        for start in range(0, len(changed), step):
            chunk = list(changed[start : start + step])
            images = self._unit(batch[chunk]).to(torch.promote_types(dtype, torch.float32))
            out[chunk] = self._change(images, [draws[i] for i in chunk]).to(dtype)
        return out


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`; on the CPU from NumPy, which asks for huge pages: large tensors are filled four times as fast."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
