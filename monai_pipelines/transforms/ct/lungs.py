"""Lung mask of a chest CT, on a coarse grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from numpy.typing import NDArray

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms.ct.grid import block_mean, filled_box, placed

MIN_LUNG_L = 0.2  # smaller components are not lungs
GAS_HU = -960.0  # parenchyma is denser on average, bowel and stomach gas are not
TRACHEA_MM2 = (40.0, 900.0)  # axial cross-section, main bronchi included

Mask = NDArray[np.bool_]
Bits = NDArray[np.uint64]


class SegmentLungs(Transform):
    """Segment the two lungs with their vessels and nodules, without trachea, table and bowel gas.

    Works on block averages of about ``grid_mm``, which removes noise and takes a fraction of a second. Air is below
    ``air_hu``; air connected to the edge of its axial slice is outside. The trachea is followed downwards from the top
    until it enters the lungs. Of the remaining components in the trunk, the largest one of plausible volume and density
    and its partner are the lungs (split if they touch), one on each side of the trunk's center. Each is closed with a
    ball of ``closing_mm`` and its holes are filled. A single lung with air counts as no plausible lungs: the crop would
    lose the other one.

    Args:
        air_hu: upper limit of air, HU.
        grid_mm: approximate voxel size of the mask, mm.
        closing_mm: radius of the closing, mm; nodules at the pleura up to this radius are kept.
        no_lungs: without plausible lungs "raise" a `ScanError`, or "flag" it: the mask covers the whole scan and
            ``meta["lungs_found"]`` is False.

    Returns:
        `MetaTensor` (1, x, y, z) uint8 in {0, 1} on the coarse grid, in closest-to-RAS order.
        ``meta``: ``lungs_found``, ``lung_volume_l``, ``right_lung_l``, ``left_lung_l`` (liters).

    Raises:
        ScanError: no plausible lungs, with ``no_lungs="raise"``.

    Reference: threshold and connectivity after Hu et al., IEEE TMI 20 (2001) 490-498.

    Example:
        >>> import torch
        >>> SegmentLungs(no_lungs="flag")(torch.zeros(1, 8, 8, 8)).meta["lungs_found"]
        False
    """

    def __init__(
        self,
        air_hu: float = -400.0,
        grid_mm: float = 2.5,
        closing_mm: float = 15.0,
        no_lungs: Literal["raise", "flag"] = "raise",
    ) -> None:
        if no_lungs not in ("raise", "flag"):
            raise ValueError(f"SegmentLungs: no_lungs must be 'raise' or 'flag', got {no_lungs!r}")
        if not -1000 < air_hu < 0:
            raise ValueError(f"SegmentLungs: air_hu must lie between air (-1000) and water (0), got {air_hu}")
        if grid_mm <= 0 or closing_mm < 0:
            raise ValueError(
                f"SegmentLungs: grid_mm must be positive and closing_mm not negative, got {grid_mm}, {closing_mm}"
            )
        self.air_hu, self.grid_mm, self.closing_mm, self.no_lungs = air_hu, grid_mm, closing_mm, no_lungs

    def __call__(self, img: torch.Tensor | NDArray[Any]) -> MetaTensor:
        volume = img if isinstance(img, MetaTensor) else MetaTensor(torch.as_tensor(img))
        if volume.ndim != 4 or volume.shape[0] != 1:
            raise ValueError(f"SegmentLungs: wanted one volume (1, X, Y, Z), got shape {tuple(volume.shape)}")
        coarse, affine = _coarse_ras(volume, self.grid_mm)
        spacing = nib.affines.voxel_sizes(affine)
        lungs = find_lungs(coarse, spacing, self.air_hu, self.closing_mm)
        liter = float(np.prod(spacing)) / 1e6
        meta: dict[str, Any] = {"lungs_found": lungs is not None}
        if lungs is None:
            if self.no_lungs == "raise":
                name = volume.meta.get("filename_or_obj", "volume")
                air = float((coarse < self.air_hu).mean())
                reason = f"no two plausible lungs found ({air:.0%} of it is air below {self.air_hu:g} HU)"
                raise ScanError(name, f"{reason}; is it a chest CT in HU? no_lungs='flag' keeps the whole scan")
            mask = np.ones(coarse.shape, np.uint8)
        else:
            mask = (lungs > 0).astype(np.uint8)
            right, left = (float((lungs == side).sum()) * liter for side in (1, 2))
            meta |= {"lung_volume_l": right + left, "right_lung_l": right, "left_lung_l": left}
        return placed(torch.from_numpy(mask)[None], affine, meta)


class SegmentLungsd(MapTransform):
    """`SegmentLungs` for dictionaries: the mask goes to ``mask_key``, its volumes also to the image's ``meta``."""

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "lungs",
        air_hu: float = -400.0,
        grid_mm: float = 2.5,
        closing_mm: float = 15.0,
        no_lungs: Literal["raise", "flag"] = "raise",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"SegmentLungsd: wanted one key, got {self.keys}: a mask belongs to one scan")
        self.mask_key = mask_key
        self.segment = SegmentLungs(air_hu, grid_mm, closing_mm, no_lungs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            mask = self.segment(d[key])
            image = d[key] if isinstance(d[key], MetaTensor) else MetaTensor(torch.as_tensor(d[key]))
            lung_meta = {k: v for k, v in mask.meta.items() if "lung" in str(k)}
            d[key] = MetaTensor(image.as_tensor()).copy_meta_from(image)
            d[key].meta |= lung_meta
            d[self.mask_key] = mask
        return d


def _coarse_ras(volume: MetaTensor, grid_mm: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Block averages of about ``grid_mm``, axes permuted and flipped to the nearest RAS order."""
    affine = volume.affine.numpy().astype(float)
    factors = np.maximum(1, np.rint(grid_mm / nib.affines.voxel_sizes(affine))).astype(int)
    factors = np.minimum(factors, volume.shape[1:])
    values = block_mean(volume.as_tensor()[0], [int(f) for f in factors]).numpy()
    coarse = affine @ np.diag([*factors, 1.0])
    coarse[:3, 3] = nib.affines.apply_affine(affine, (factors - 1) / 2)
    to_ras = nib.orientations.io_orientation(coarse)
    back = nib.orientations.inv_ornt_aff(to_ras, values.shape)
    return np.asfortranarray(nib.orientations.apply_orientation(values, to_ras)), coarse @ back


def find_lungs(
    hu: NDArray[np.float32], spacing_mm: NDArray[np.float64], air_hu: float = -400.0, closing_mm: float = 15.0
) -> NDArray[np.uint8] | None:
    """Right (1) and left (2) lung of a coarse volume.

    Args:
        hu: (x, y, z) in RAS order, HU, about 2-3 mm a voxel; faster with x the fastest axis in memory.
        spacing_mm: voxel size, mm.
        air_hu: upper limit of air.
        closing_mm: radius of the closing of each lung.

    Returns:
        (x, y, z) labels; None without plausible lungs.
    """
    tissue = hu >= air_hu
    if not tissue.any():
        return None
    x, y, _ = filled_box(tissue)  # with some of the air around: what is connected to the edges stays so
    where = tuple(slice(max(0, along.start // 2 * 2 - 2), along.stop + 1) for along in (x, y))
    found = _find_lungs(np.asfortranarray(hu[where]), np.asfortranarray(tissue[where]), spacing_mm, closing_mm)
    if found is None:
        return None
    lungs = np.zeros_like(hu, np.uint8)
    lungs[where] = found
    return lungs


def _find_lungs(
    hu: NDArray[np.float32], tissue: Mask, spacing_mm: NDArray[np.float64], closing_mm: float
) -> NDArray[np.uint8] | None:
    inside = _inside(~tissue)
    inside &= ~_trachea(inside, hu, spacing_mm)
    liter = float(np.prod(spacing_mm)) / 1e6
    labels, counts = _components(inside)
    sizes, trunk = counts * liter, _trunk(tissue, spacing_mm)
    plausible = []
    for i in np.argsort(-sizes, kind="stable"):
        if i == 0 or sizes[i] < MIN_LUNG_L:
            continue
        part = labels == i
        coarse = part[::2, ::2, ::2]
        in_trunk = np.count_nonzero(trunk & coarse) > 0.5 * np.count_nonzero(coarse)
        if in_trunk and hu.ravel("K")[part.ravel("K")].mean() > GAS_HU:
            plausible.append(int(i))
    if not plausible:
        return None
    pair = _two_lungs(labels, plausible, sizes, liter)
    if pair is None:
        return None
    left, right = sorted(pair, key=_center_x)
    if not _center_x(left) < 2 * _center_x(trunk) < _center_x(right):
        return None
    lungs = np.zeros(labels.shape, np.uint8, order="F")
    for side, lung in ((1, right), (2, left)):
        lungs[(lungs == 0) & _close(lung, spacing_mm, closing_mm)] = side
    return lungs


def _center_x(mask: Mask) -> float:
    return float(np.average(np.arange(len(mask)), weights=mask.sum(axis=tuple(range(1, mask.ndim)))))


def _components(mask: Mask) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Labels of the parts connected by faces, and the number of voxels of each; 0 is what is not in the mask."""
    import cc3d

    labels = cc3d.connected_components(mask, connectivity=6 if mask.ndim == 3 else 4)
    return labels, np.bincount(labels.ravel(order="K"))


def _inside(region: Mask) -> Mask:
    """Parts not connected to the edge of their axial slice (an open mouth must not join the lungs to the outside)."""
    import fill_voids

    inside = np.zeros_like(region)
    for z in range(region.shape[2]):
        inside[:, :, z] = region[:, :, z] & fill_voids.fill(~region[:, :, z])
    return inside


def _trunk(tissue: Mask, spacing_mm: NDArray[np.float64]) -> Mask:
    """The trunk with everything it encloses, without the shell of a hollow table: thinner than a chest wall.

    Returns:
        every second voxel along each axis.
    """
    radius = (int(spacing_mm[0] <= 5), int(spacing_mm[1] <= 5), 0)
    thick = np.asfortranarray(_grow(~_grow(~tissue, radius), radius)[::2, ::2, ::2])
    labels, counts = _components(thick)
    trunk = labels == (1 + np.argmax(counts[1:]) if len(counts) > 1 else -1)
    return trunk | _inside(~trunk)


def _trachea(inside: Mask, hu: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> Mask:
    """Trachea and main bronchi: a round column of air near the midline, followed downwards while it stays small."""
    pixel = float(spacing_mm[0] * spacing_mm[1])
    low, high = (a / pixel for a in TRACHEA_MM2)
    trachea = np.zeros_like(inside)
    body = np.nonzero((hu > -500).any(axis=(1, 2)))[0]
    if body.size == 0:
        return trachea
    middle, width = (body[0] + body[-1]) / 2, body[-1] - body[0] + 1
    previous: Mask | None = None
    previous_area = 0.0
    for z in range(inside.shape[2] - 1, -1, -1):
        if not inside[:, :, z].any():
            if previous is not None:
                break
            continue
        labels, areas = _components(inside[:, :, z])
        if previous is None:
            for i in (i for i in range(1, len(areas)) if low <= areas[i] <= high):
                part = labels == i
                extent = [
                    (along.stop - along.start) * mm for along, mm in zip(filled_box(part), spacing_mm, strict=False)
                ]
                round_ = max(extent) <= 2.5 * min(extent) and areas[i] * pixel >= 0.5 * extent[0] * extent[1]
                if round_ and abs(_center_x(part) - middle) < 0.12 * width and hu[:, :, z][part].min() < -850:
                    previous = part
                    break
        else:
            reach = previous
            for _ in range(max(1, round(4 / float(spacing_mm[0])))):
                reach = _grow(reach, (1, 1))
            touched = np.bincount(labels[reach], minlength=len(areas)) > 0
            touched &= areas <= max(2.0 * previous_area, low)
            touched[0] = False
            if not 0 < areas[touched].sum() <= high:
                break
            previous = touched[labels]
        if previous is not None:
            trachea[:, :, z] = previous
            previous_area = float(previous.sum())
    return _grow(trachea, (1, 1, 1))


def _two_lungs(
    labels: NDArray[np.int32], plausible: list[int], sizes: NDArray[Any], liter: float
) -> tuple[Mask, Mask] | None:
    """The largest component and its partner; without a partner it is split."""
    largest = labels == plausible[0]
    partners = [i for i in plausible[1:] if sizes[i] >= 0.15 * sizes[plausible[0]]]
    if partners:
        return largest, labels == partners[0]
    return _split(largest, liter)


def _split(both: Mask, liter: float) -> tuple[Mask, Mask] | None:
    """Erode until two cores are left, then grow them back side by side; on every second voxel."""
    where = tuple(slice(max(0, along.start // 2 * 2 - 2), along.stop + 2) for along in filled_box(both))
    part = np.asfortranarray(both[where])
    half = core = np.asfortranarray(part[::2, ::2, ::2])
    for _ in range(min(half.shape) // 2):
        core = ~_grow(~core, (1, 1, 1))
        if not core.any():
            return None
        labels, counts = _components(core)
        sizes = counts[1:] * liter * 8
        first, *rest = np.argsort(-sizes)
        if not rest or sizes[rest[0]] < 0.1 * sizes[first]:
            continue
        one, two = _regrow(labels == first + 1, labels == rest[0] + 1, half)
        fine = [part & _doubled(mask)[tuple(map(slice, part.shape))] for mask in (one, two)]
        lungs = np.zeros_like(both), np.zeros_like(both)
        for lung, grown in zip(lungs, _regrow(fine[0], fine[1], part), strict=True):
            lung[where] = grown
        return lungs
    return None


def _doubled(mask: Mask) -> Mask:
    """Each voxel of (x, y, z) as a block of eight."""
    z, y, x = mask.T.shape
    return np.broadcast_to(mask.T[:, None, :, None, :, None], (z, 2, y, 2, x, 2)).reshape(2 * z, 2 * y, 2 * x).T


def _regrow(one: Mask, two: Mask, region: Mask) -> tuple[Mask, Mask]:
    """Grow two masks side by side until they fill all that they reach of the region."""
    first, second, allowed = _packed(one), _packed(two), _packed(region)
    while True:
        grown_first = _grown(first, (1, 1, 1)) & allowed & ~second
        grown_second = _grown(second, (1, 1, 1)) & allowed & ~grown_first
        if (grown_first == first).all() and (grown_second == second).all():
            return _unpacked(first, one.shape), _unpacked(second, one.shape)
        first, second = grown_first, grown_second


def _grow(mask: Mask, radius: tuple[int, ...]) -> Mask:
    """Dilate by an ellipsoid of ``radius`` voxels, approximated by alternating crosses and cubes."""
    return _unpacked(_grown(_packed(mask), radius), mask.shape) if max(radius) else mask


def _grown(bits: Bits, radius: tuple[int, ...]) -> Bits:
    """`_grow` of 64 voxels at a time."""
    steps = max(radius)
    for step in range(steps):
        out = bits.copy()
        for axis, r in enumerate(radius):
            if (step + 1) * r // steps == step * r // steps:
                continue
            source = out.copy() if step % 2 else bits
            if axis == 0:
                out |= source << 1 | source >> 1
                out[..., 1:] |= source[..., :-1] >> 63
                out[..., :-1] |= source[..., 1:] << 63
            else:
                here, there = source.swapaxes(0, -1 - axis), out.swapaxes(0, -1 - axis)
                there[1:] |= here[:-1]
                there[:-1] |= here[1:]
        bits = out
    return bits


def _packed(mask: Mask) -> Bits:
    """A mask (x, ...) as (..., x // 64) words of 64 voxels, the rest filled with zeros."""
    octets = np.packbits(mask.T, axis=-1, bitorder="little")
    words = np.zeros((*octets.shape[:-1], -(-octets.shape[-1] // 8)), "<u8")
    words.view(np.uint8)[..., : octets.shape[-1]] = octets
    return words


def _unpacked(bits: Bits, shape: tuple[int, ...]) -> Mask:
    return np.unpackbits(bits.view(np.uint8), axis=-1, count=shape[0], bitorder="little").view(bool).T


def _close(lung: Mask, spacing_mm: NDArray[np.float64], radius_mm: float) -> Mask:
    """Closing with a ball in the padded bounding box, then holes filled."""
    import fill_voids

    radius = tuple(int(r) for r in np.rint(radius_mm / spacing_mm))
    where = filled_box(lung)
    closed = np.pad(np.asfortranarray(lung[where]), [(r + 1, r + 1) for r in radius])
    if max(radius):
        closed = ~_grow(~_grow(closed, radius), radius)
    closed = fill_voids.fill(np.asfortranarray(closed))
    out = np.zeros_like(lung)
    out[where] = closed[tuple(slice(r + 1, -r - 1) for r in radius)]
    return out
