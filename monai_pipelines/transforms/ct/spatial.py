"""Random rotation, scale, shift, flip, elastic deformation and crop of volumes in one interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

from monai_pipelines.transforms.boxes import MIN_VISIBLE, RandSpatial, RandSpatiald
from monai_pipelines.transforms.ct.grid import in_threads, kernels_for
from monai_pipelines.transforms.random import empty
from monai_pipelines.transforms.sizes import checked_size

ORDERS = {"bilinear": 1, "nearest": 0}
BACKENDS = ("torch", "elasticdeform")
_INVERSION_STEPS = 30
_ANGLES = np.deg2rad(np.mgrid[-90:91:15, 0:360:15].reshape(2, -1))
_DIRECTIONS = np.stack(
    [np.cos(_ANGLES[0]) * np.cos(_ANGLES[1]), np.cos(_ANGLES[0]) * np.sin(_ANGLES[1]), np.sin(_ANGLES[0])]
)


@dataclass(frozen=True)
class SpatialDraw:
    """What `RandSpatial3D` drew for one volume; arrays of three have one value per axis.

    Attributes:
        rotation_deg: about X, then Y, then Z.
        scale: above 1 enlarges.
        shift_voxels: towards higher indices.
        flip: axes to mirror.
        elastic_voxels: displacement (3, P, P, P) of the control points.
        crop: position of the crop among all that fit, 0 (first) to 1.
    """

    rotation_deg: NDArray[np.float64]
    scale: float
    shift_voxels: NDArray[np.float64]
    flip: NDArray[np.bool_]
    elastic_voxels: NDArray[np.float64]
    crop: NDArray[np.float64]

    @property
    def moves(self) -> bool:
        """Whether anything but the crop was drawn."""
        parts = (self.rotation_deg, self.scale != 1, self.shift_voxels, self.flip, self.elastic_voxels)
        return any(np.any(part) for part in parts)

    def forward(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """4x4 matrix from input voxel to uncropped output voxel."""
        center = (np.array(shape) - 1) / 2
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_euler("xyz", self.rotation_deg, degrees=True).as_matrix() * self.scale
        matrix[:3, :3] *= np.where(self.flip, -1, 1)
        matrix[:3, 3] = center + self.shift_voxels - matrix[:3, :3] @ center
        return matrix

    def start(self, shape: Sequence[int], size: Sequence[int]) -> NDArray[np.int64]:
        """First voxel of a crop of `size`."""
        return np.floor(self.crop * (np.array(shape) - size + 1)).astype(np.int64)

    def backward(self, shape: Sequence[int], size: Sequence[int]) -> NDArray[np.float64]:
        """4x4 matrix from output voxel, in the crop of `size`, to input voxel."""
        crop = np.eye(4)
        crop[:3, 3] = self.start(shape, size)
        return np.linalg.inv(self.forward(shape)) @ crop

    def deformed(self, points: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
        """Where input voxels (N, 3, P) lie in the uncropped output: p(o) of `RandSpatial3D`, inverted by iteration."""
        forward, knots = self.forward(shape), self.elastic_voxels.shape[-1] - 1
        per_voxel = knots / np.maximum(np.array(shape) - 1, 1)[:, None]
        shift = np.zeros_like(points)
        for _ in range(_INVERSION_STEPS):
            out = forward[:3, :3] @ (points - shift) + forward[:3, 3:]
            at = np.moveaxis(out * per_voxel, 1, 0)
            at_out = np.stack([map_coordinates(u, at, order=3, mode="mirror") for u in self.elastic_voxels], axis=1)
            shift = (shift + at_out) / 2  # without the mean, steep deformations would not converge
        return out

    def cropped(self, shape: Sequence[int], size: Sequence[int]) -> tuple[Any, ...]:
        """Index of the crop of `size` in (C, X, Y, Z)."""
        return (slice(None), *(slice(a, a + n) for a, n in zip(self.start(shape, size), size, strict=True)))


class RandSpatial3D(RandSpatial):
    """Rotate, scale, shift, flip, deform and crop volumes at random, in one interpolation.

    Voxel o of the uncropped output shows the input at ``p(o) = A^-1 (o - c - shift) + c + u(o)`` with
    ``A = Rz Ry Rx * scale * flip``, c the center of the volume, and u the cubic spline through the displacements of a
    regular grid of control points, the outermost ones on the outermost voxels. Angles are in voxel space: volumes
    should be isotropic.

    Draws, for each volume and independently for each part, whether (the part's probability) and how much: angles and
    shifts uniform up to their limit on each axis, one scale for all axes, normal displacements, and the crop's
    position. A volume for which nothing is drawn keeps its exact values.

    A MetaTensor's affine follows rotation, scale, shift, flip and crop, in a batch for each volume (B, 4, 4); the
    deformation, which no matrix can express, is ignored. Integer volumes are interpolated as float32 and rounded.

    Args:
        rotation_deg: largest angle about each axis, one number or three.
        rotation_prob: its probability.
        scale: ``(low, high)``; above 1 enlarges.
        scale_prob: its probability.
        shift_voxels: largest shift along each axis, one number or three.
        shift_prob: its probability.
        flip_prob: probability of mirroring each axis, one number or three.
        elastic_std_voxels: standard deviation of the control points' displacements.
        elastic_prob: its probability.
        elastic_points: control points along each axis.
        crop_size: size (X, Y, Z) of a sub-volume, or one number, always taken, at a random position; None keeps all.
        mode: "bilinear" (in 3D: trilinear), or "nearest" for masks.
        fill: value outside the input; "bilinear" blends into it over one voxel.
        backend: "torch" (compiled by numba on the CPU, if it is installed), or "elasticdeform" (optional package), the
            slower reference, on the CPU. They differ only in that voxel, which elasticdeform fills without blending.

    Returns:
        (C, *size) or (B, C, *size), of the dtype and on the device of the input.

    Raises:
        ValueError: an argument out of range, or an input that is neither a volume nor a batch, or smaller than
            `crop_size`.
        ImportError: backend "elasticdeform" without the package.

    Example:
        >>> import torch
        >>> volume = torch.rand(2, 1, 16, 16, 16)
        >>> RandSpatial3D(crop_size=(8, 8, 8))(volume).shape
        torch.Size([2, 1, 8, 8, 8])

    Reference:
        Ronneberger et al., U-Net, MICCAI 2015 (deformation); the formula is that of the elasticdeform package.
        MONAI's `Rand3DElastic` smooths dense noise instead, and takes no batch.
    """

    fill: float

    def __init__(
        self,
        rotation_deg: float | Sequence[float] = 10.0,
        rotation_prob: float = 0.5,
        scale: Sequence[float] = (0.9, 1.1),
        scale_prob: float = 0.5,
        shift_voxels: float | Sequence[float] = 5.0,
        shift_prob: float = 0.5,
        flip_prob: float | Sequence[float] = 0.0,
        elastic_std_voxels: float = 3.0,
        elastic_prob: float = 0.2,
        elastic_points: int = 3,
        crop_size: int | Sequence[int] | None = None,
        mode: str = "bilinear",
        fill: float = 0.0,
        backend: str = "torch",
    ) -> None:
        super().__init__()
        probs: dict[str, Any] = {
            "rotation_prob": rotation_prob,
            "scale_prob": scale_prob,
            "shift_prob": shift_prob,
            "flip_prob": flip_prob,
            "elastic_prob": elastic_prob,
        }
        for name, prob in probs.items():
            if not 0 <= np.min(prob) <= np.max(prob) <= 1:
                raise ValueError(f"RandSpatial3D: {name} must lie in 0..1, got {prob}")
        limits: dict[str, Any] = {
            "rotation_deg": rotation_deg,
            "shift_voxels": shift_voxels,
            "elastic_std_voxels": elastic_std_voxels,
        }
        for name, limit in limits.items():
            if not np.min(limit) >= 0:
                raise ValueError(f"RandSpatial3D: {name} must be 0 or more (it holds for both directions), got {limit}")
        if np.size(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"RandSpatial3D: scale must be (low, high), 0 < low <= high, got {np.ravel(scale).tolist()}"
            )
        if elastic_points < 2:
            raise ValueError(f"RandSpatial3D: elastic_points must be 2 or more, got {elastic_points}")
        self.crop_size = None if crop_size is None else checked_size("RandSpatial3D: crop_size", crop_size, 3)
        for name, value, known in (("mode", mode, ORDERS), ("backend", backend, BACKENDS)):
            if value not in known:
                raise ValueError(f"RandSpatial3D: {name} must be one of {', '.join(known)}, got {value!r}")
        self.rotation_deg = np.array(ensure_tuple_rep(rotation_deg, 3), dtype=float)
        self.shift_voxels = np.array(ensure_tuple_rep(shift_voxels, 3), dtype=float)
        self.flip_prob = np.array(ensure_tuple_rep(flip_prob, 3), dtype=float)
        self.rotation_prob, self.scale_prob, self.shift_prob = rotation_prob, scale_prob, shift_prob
        self.scale = (float(scale[0]), float(scale[1]))
        self.elastic_std_voxels, self.elastic_prob, self.elastic_points = (
            elastic_std_voxels,
            elastic_prob,
            elastic_points,
        )
        self.mode, self.fill = mode, fill
        self.warp = _warp_torch if backend == "torch" else _warp_elasticdeform

    def _draw(self) -> SpatialDraw:
        rotate, zoom, shift, deform = self.R.random_sample(4) < (
            self.rotation_prob,
            self.scale_prob,
            self.shift_prob,
            self.elastic_prob,
        )
        return SpatialDraw(
            rotation_deg=rotate * self.R.uniform(-self.rotation_deg, self.rotation_deg),
            scale=self.R.uniform(*self.scale) if zoom else 1.0,
            shift_voxels=shift * self.R.uniform(-self.shift_voxels, self.shift_voxels),
            flip=self.R.random_sample(3) < self.flip_prob,
            elastic_voxels=deform * self.R.normal(0, self.elastic_std_voxels, (3, *[self.elastic_points] * 3)),
            crop=self.R.random_sample(3),
        )

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        out = super().__call__(img, randomize)
        if isinstance(out, MetaTensor) and isinstance(img, MetaTensor) and out is not img:
            moves = self.to_input(img.shape[-3:])
            out.affine = img.affine.to(moves) @ (moves if img.ndim == 5 else moves[0])
        return out

    def to_input(self, shape: Sequence[int]) -> Tensor:
        """(B, 4, 4) float64: from voxel of the output to voxel of an input of ``shape``, without the deformation."""
        return torch.tensor(np.stack([draw.backward(shape, self.crop_size or shape) for draw in self.draws]))

    def moved_boxes(self, boxes: Sequence[NdarrayOrTensor], shape: Sequence[int]) -> list[Tensor]:
        """Where the last draws moved the boxes (N, 6) of each volume of a batch; not clipped.

        Under a deformation, the boxes around the moved surfaces of their ellipsoids, see `move_boxes`.
        """
        moved = super().moved_boxes(boxes, shape)
        return [
            self._deformed(these, draw, shape) if draw.elastic_voxels.any() else rigid
            for these, draw, rigid in zip(boxes, self.draws, moved, strict=True)
        ]

    def _deformed(self, boxes: NdarrayOrTensor, draw: SpatialDraw, shape: Sequence[int]) -> Tensor:
        values = torch.as_tensor(boxes).as_subclass(Tensor)
        low, high = values.double().cpu().numpy()[:, :, None].reshape(-1, 2, 3, 1).transpose(1, 0, 2, 3)
        surfaces = (low + high) / 2 - 0.5 + (high - low) / 2 * _DIRECTIONS  # (N, 3, P), voxels
        moved = draw.deformed(surfaces, shape) - draw.start(shape, self.crop_size or shape)[:, None] + 0.5
        return torch.tensor(np.concatenate([moved.min(axis=2), moved.max(axis=2)], axis=1)).to(values.device).float()

    def _apply(self, batch: Tensor, draws: Sequence[SpatialDraw]) -> Tensor:
        shape = tuple(batch.shape[2:])
        size = self.crop_size or shape
        if any(wanted > got for wanted, got in zip(size, shape, strict=True)):
            raise ValueError(f"RandSpatial3D: crop_size {size} does not fit in a volume of {shape} (pad it first)")
        moving = [i for i, draw in enumerate(draws) if draw.moves]
        if not moving and size == shape:
            return batch
        if len(moving) == len(draws):
            return self._warp(batch, draws, size)
        volumes = [v[d.cropped(shape, size)] for v, d in zip(batch, draws, strict=True)]
        if moving:
            for i, warped in zip(moving, self._warp(batch[moving], [draws[i] for i in moving], size), strict=True):
                volumes[i] = warped
        return torch.stack(volumes)

    def _warp(self, batch: Tensor, draws: Sequence[SpatialDraw], size: Sequence[int]) -> Tensor:
        values = batch if batch.dtype == torch.float64 else batch.to(torch.float32)
        out = self.warp(values, draws, size, self.mode, self.fill)
        if not batch.is_floating_point():
            out = out.round_()
        return out.to(batch.dtype)


def _warp_torch(batch: Tensor, draws: Sequence[SpatialDraw], size: Sequence[int], mode: str, fill: float) -> Tensor:
    kernels = kernels_for(batch)
    if kernels:
        out = empty((*batch.shape[:2], *size), batch.dtype, batch.device)
        for volume, draw, target in zip(batch, draws, out, strict=True):
            _warp_compiled(kernels, volume, draw, target, mode == "nearest", fill)
        return out
    shape = batch.shape[2:]
    to_unit = (2 / np.array(shape))[::-1, None]  # voxels -> grid_sample's -1..1, in the order (z, y, x)

    def tensor(array: NDArray[np.float64]) -> Tensor:
        return torch.tensor(array, dtype=batch.dtype, device=batch.device)

    matrices = np.stack([draw.backward(shape, size)[2::-1] for draw in draws]) * to_unit
    matrices[:, :, 3:] += to_unit / 2 - 1
    ax, ay, az, offset = tensor(matrices)[..., None, None, None].unbind(2)
    x, y, z = (torch.arange(n, dtype=batch.dtype, device=batch.device) for n in size)
    grid = (ax * x[:, None, None] + ay * y[:, None] + offset) + az * z
    if any(draw.elastic_voxels.any() for draw in draws):
        points = tensor(np.stack([draw.elastic_voxels[::-1] for draw in draws]) * to_unit[..., None, None])
        starts = np.stack([draw.start(shape, size) for draw in draws])
        rx, ry, rz = (
            tensor(spline_responses(shape[a], points.shape[-1])[starts[:, a, None] + np.arange(size[a])])
            for a in range(3)
        )
        with torch.autocast(batch.device.type, enabled=False):
            lines = torch.einsum("bcijk,bxi,byj->bcxyk", points, rx, ry)
            grid.view(len(batch), -1, size[2]).baddbmm_(lines.flatten(1, 3), rz.mT)
    above = batch - fill if fill else batch  # grid_sample pads with zeros
    out = grid_sample(above, grid.movedim(1, -1), mode, padding_mode="zeros", align_corners=False)
    return out.add_(fill) if fill else out


def _warp_compiled(
    kernels: ModuleType, volume: Tensor, draw: SpatialDraw, out: Tensor, nearest: bool, fill: float
) -> None:
    shape, size, knots = volume.shape[1:], out.shape[1:], draw.elastic_voxels.shape[-1]
    lines, rz = np.zeros((3, *size[:2], 0)), np.zeros((0, size[2]))
    if draw.elastic_voxels.any():
        starts = draw.start(shape, size)
        rx, ry, rz = (spline_responses(shape[a], knots)[starts[a] + np.arange(size[a])] for a in range(3))
        lines, rz = np.einsum("aijk,xi,yj->axyk", draw.elastic_voxels, rx, ry, optimize=True), rz.T
    field = [array.astype(np.float32, order="C") for array in (draw.backward(shape, size)[:3], lines, rz)]
    values, target = np.ascontiguousarray(volume.numpy()), out.numpy()
    in_threads(lambda *part: kernels.warp(values, *field, target, np.float32(fill), nearest, *part), size[0])


def _warp_elasticdeform(
    batch: Tensor, draws: Sequence[SpatialDraw], size: Sequence[int], mode: str, fill: float
) -> Tensor:
    try:
        from elasticdeform import deform_grid
    except ImportError as error:
        raise ImportError(
            'RandSpatial3D: backend "elasticdeform" wants the package elasticdeform: pip install --no-binary '
            'elasticdeform "monai_pipelines[elastic]" (needs a C compiler), or use backend "torch"'
        ) from error
    shape = batch.shape[2:]
    volumes = [
        deform_grid(
            volume,
            draw.elastic_voxels,
            order=ORDERS[mode],
            mode="constant",
            cval=fill,
            axis=(1, 2, 3),
            affine=draw.forward(shape)[:3],
        )[draw.cropped(shape, size)]  # deform_grid's crop= differs once there is an affine
        for volume, draw in zip(batch.detach().cpu().numpy(), draws, strict=True)
    ]
    return torch.from_numpy(np.stack(volumes)).to(batch.device)


@cache
def spline_responses(num_voxels: int, num_points: int) -> NDArray[np.float64]:
    """Cubic spline along one axis as a matrix: displacement of each voxel = matrix @ displacements of the points.

    The first and last points lie on the first and last voxels; beyond them the points are mirrored.

    Returns:
        (num_voxels, num_points).

    Example:
        >>> spline_responses(5, 3)[::2].round(6) + 0.0  # every second voxel lies on a point
        array([[1., 0., 0.],
               [0., 1., 0.],
               [0., 0., 1.]])
    """
    at = np.arange(num_voxels) * (num_points - 1) / max(num_voxels - 1, 1)
    return np.stack([map_coordinates(point, [at], order=3, mode="mirror") for point in np.eye(num_points)], axis=1)


class RandSpatial3Dd(RandSpatiald):
    """`RandSpatial3D` for dictionaries; all keys get the same draw, and the item's boxes move along (`RandSpatiald`).

    Args:
        keys: volumes of the same size.
        mode: "bilinear" or "nearest", one for all keys or one for each, "nearest" then for masks (`RandSpatiald`).
        allow_missing_keys: whether a key may be missing.
        min_visible: boxes of which a smaller share is left in the image become ones to be ignored, 0..1.
        knobs: the other arguments of `RandSpatial3D`.

    Example:
        >>> import torch
        >>> item = {"image": torch.rand(1, 8, 8, 8), "mask": torch.ones(1, 8, 8, 8, dtype=torch.uint8)}
        >>> RandSpatial3Dd(["image", "mask"], mode=["bilinear", "nearest"])(item)["mask"].dtype
        torch.uint8
    """

    def __init__(
        self,
        keys: KeysCollection,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
        min_visible: float = MIN_VISIBLE,
        **knobs: Any,
    ) -> None:
        super().__init__(keys, RandSpatial3D, mode, allow_missing_keys, min_visible, **knobs)
