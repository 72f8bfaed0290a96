"""Crop a CT to the lungs and resample it to the network's grid, in one interpolation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from numpy.typing import NDArray

from monai_pipelines.transforms.ct.grid import cubic_weights, filled_box, placed, resample_separable
from monai_pipelines.transforms.inverse import FixedSpatial, FixedSpatiald
from monai_pipelines.transforms.sizes import checked_size

AIR_HU = -1000.0
LOWEST_HU = -1024.0


class ResampleCT(FixedSpatial):
    """Crop to the lungs, change spacing and size: one separable, anti-aliased cubic interpolation.

    The output keeps the scan's axes (an oblique scan stays oblique), permuted and flipped to the nearest RAS order.
    With ``size`` alone the box around the lungs is stretched to ``size``; with ``spacing_mm`` alone it keeps its
    physical size; with both, ``size`` voxels of ``spacing_mm`` are centered on it. Outside the scan is air.

    Args:
        size: voxels (X, Y, Z) or one number; None follows from ``spacing_mm``.
        spacing_mm: voxel size (X, Y, Z) or one number, mm; None follows from ``size``.
        margin_mm: margin around the lungs, mm.

    Returns:
        a `MetaTensor` (1, *size) int16 in HU from a volume (1, X, Y, Z); with a mask, on any grid, also the mask
        (1, *size) uint8.

    Raises:
        ValueError: neither size nor spacing, an argument out of range, or an empty mask.

    Example:
        >>> import torch
        >>> ResampleCT(size=4)(torch.zeros(1, 8, 8, 8)).shape
        torch.Size([1, 4, 4, 4])

    Reference: Keys, IEEE TASSP 29 (1981) 1153-1160. MONAI's `Spacing` and `Resize` interpolate twice, by default
    without anti-aliasing.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        spacing_mm: float | Sequence[float] | None = None,
        margin_mm: float = 10.0,
    ) -> None:
        if size is None and spacing_mm is None:
            raise ValueError("ResampleCT: give size (voxels), spacing_mm, or both")
        self.size = None if size is None else np.array(checked_size("ResampleCT: size", size, 3))
        self.spacing_mm = None if spacing_mm is None else np.broadcast_to(np.asarray(spacing_mm, float), 3)
        if margin_mm < 0 or (self.spacing_mm is not None and self.spacing_mm.min() <= 0):
            got = f"{spacing_mm} and {margin_mm}"
            raise ValueError(f"ResampleCT: spacing_mm must be positive, margin_mm not negative, got {got}")
        self.margin_mm = margin_mm

    def __call__(self, img: torch.Tensor | NDArray[Any], mask: MetaTensor | None = None) -> Any:
        volume = img if isinstance(img, MetaTensor) else MetaTensor(torch.as_tensor(img))
        if volume.ndim != 4 or volume.shape[0] != 1:
            raise ValueError(f"ResampleCT: wanted one volume (1, X, Y, Z), got shape {tuple(volume.shape)}")
        scan = _Ras(volume)
        lungs = _Ras(mask) if mask is not None else None
        low, high = self._box(scan, lungs)
        size, start, step = self._grid(low, high, nib.affines.voxel_sizes(scan.affine))
        target = scan.affine @ nib.affines.from_matvec(np.diag(step), start)
        hu = scan.sample(start, step, size, fill=AIR_HU, at_least=LOWEST_HU)
        out = self._traced(placed(hu.round_().to(torch.int16)[None], target, volume.meta), volume)
        if mask is None or lungs is None:
            return out
        to_mask = np.linalg.inv(lungs.affine) @ scan.affine
        scale = np.diag(to_mask)[:3]
        if not np.allclose(to_mask[:3, :3], np.diag(scale), atol=1e-3):
            raise ValueError("ResampleCT: the mask must have the axes of the scan; resample it to the scan's grid")
        inside = lungs.sample(nib.affines.apply_affine(to_mask, start), scale * step, size)
        return out, placed((inside >= 0.5).to(torch.uint8)[None], target, mask.meta)

    def _box(self, scan: _Ras, lungs: _Ras | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """First and last edge of the crop, in voxels of the scan (voxel i covers i - 0.5 to i + 0.5)."""
        low, high = np.full(3, -0.5), np.array(scan.values.shape) - 0.5
        if lungs is None:
            return low, high
        corners = nib.affines.apply_affine(np.linalg.inv(scan.affine) @ lungs.affine, lungs.edges())
        margin = self.margin_mm / nib.affines.voxel_sizes(scan.affine)
        return np.maximum(low, corners.min(axis=0) - margin), np.minimum(high, corners.max(axis=0) + margin)

    def _grid(
        self, low: NDArray[np.float64], high: NDArray[np.float64], voxel_mm: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Output size, and position of the first output voxel and step in input voxels."""
        if self.spacing_mm is None:
            size = np.array(self.size)
            step = (high - low) / size
        else:
            step = self.spacing_mm / voxel_mm
            size = np.maximum(1, np.rint((high - low) / step)).astype(int) if self.size is None else np.array(self.size)
        return size, (low + high) / 2 - (size - 1) / 2 * step, step


class ResampleCTd(FixedSpatiald):
    """`ResampleCT` for dictionaries: ``keys`` and, if present, the mask at ``mask_key``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str | None = "lungs",
        size: int | Sequence[int] | None = None,
        spacing_mm: float | Sequence[float] | None = None,
        margin_mm: float = 10.0,
        allow_missing_keys: bool = False,
    ) -> None:
        self.resample = ResampleCT(size, spacing_mm, margin_mm)
        super().__init__(keys, self.resample, allow_missing_keys, mask_key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        mask = d.get(self.mask_key)
        for key in self.key_iterator(d):
            if mask is None:
                d[key] = self.resample(d[key])
            else:
                d[key], d[self.mask_key] = self.resample(d[key], mask)
        return d


class _Ras:
    """A view of a volume with its axes in the nearest RAS order; flips are applied when it is sampled."""

    def __init__(self, volume: MetaTensor) -> None:
        affine = volume.affine.numpy().astype(float)
        orientation = nib.orientations.io_orientation(affine)
        shape = tuple(volume.shape[1:])
        axes = np.argsort(orientation[:, 0])
        self.affine = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
        self.values = volume.as_tensor()[0].permute(*axes.tolist())
        self.flipped = [orientation[axis, 1] < 0 for axis in axes]

    def sample(
        self,
        start: NDArray[np.float64],
        step: NDArray[np.float64],
        size: NDArray[np.int64],
        fill: float = 0.0,
        at_least: float | None = None,
    ) -> torch.Tensor:
        """Resample at ``start + i * step`` (voxels in RAS order)."""
        weights = [
            cubic_weights(n, *along)[:, ::-1].copy() if flip else cubic_weights(n, *along)
            for n, flip, *along in zip(self.values.shape, self.flipped, start, step, size, strict=True)
        ]
        return resample_separable(self.values, weights, fill, at_least)

    def edges(self) -> NDArray[np.float64]:
        """Corners (2, 3) of the box around all non-zero voxels, in RAS voxels."""
        try:
            box = filled_box(self.values.cpu().numpy())
        except ValueError:
            raise ValueError(
                "ResampleCT: the mask is empty; SegmentLungs(no_lungs='flag') keeps the whole scan"
            ) from None
        ends = [
            (n - along.stop, n - 1 - along.start) if flip else (along.start, along.stop - 1)
            for along, n, flip in zip(box, self.values.shape, self.flipped, strict=True)
        ]
        return np.array(ends, float).T + [[-0.5], [0.5]]
