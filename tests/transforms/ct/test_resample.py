from __future__ import annotations

import itertools
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_pipelines.phantoms import SCANNERS, thorax_phantom
from monai_pipelines.transforms import ResampleCT, ResampleCTd, SegmentLungs, WindowHU

SHAPE = (40, 36, 30)
SPACING_MM = (1.5, 2.0, 4.0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = Rotation.from_euler("xyz", [12, -20, 31], degrees=True).as_matrix()
AFFINES = {
    "straight": nib.affines.from_matvec(np.diag(SPACING_MM), [-30, 20, 7]),
    "flipped": nib.affines.from_matvec(np.diag([-1.5, -2, 4]), [30, 40, -70]),
    "permuted": nib.affines.from_matvec(np.array([[0, 0, -4], [1.5, 0, 0], [0, -2, 0]]), [5, 6, 7]),
    "oblique": nib.affines.from_matvec(OBLIQUE * SPACING_MM, [10, -20, 300]),
    "oblique, flipped and permuted": nib.affines.from_matvec((OBLIQUE * [-2, 1.5, -4])[:, [1, 2, 0]], [1, 2, 3]),
}
GRIDS = [
    {"size": 16},
    {"size": (50, 20, 33)},
    {"spacing_mm": 3},
    {"spacing_mm": (1, 2.2, 5)},
    {"size": 12, "spacing_mm": 2.5},
]


def volume(values: np.ndarray | torch.Tensor, affine: np.ndarray | None = None, **meta: object) -> MetaTensor:
    affine = AFFINES["straight"] if affine is None else affine
    return MetaTensor(torch.as_tensor(values)[None], affine=torch.as_tensor(affine), meta=meta)


def positions_mm(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))


def ramp_hu(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """3 x - 2 y + 1.5 z + 40, mm."""
    return positions_mm(shape, affine) @ [3, -2, 1.5] + 40


def inner(values: Any, voxels: int) -> Any:
    return values[(..., *[slice(voxels, -voxels)] * 3)]


# ---- position


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("knobs", GRIDS, ids=str)
def test_ramp_is_preserved(affine: np.ndarray, knobs: dict[str, Any]) -> None:
    """A ramp in mm shows any wrong position, axis by axis; the rim, where cubic weights are cut off, is excluded."""
    out = ResampleCT(**knobs)(volume(ramp_hu(SHAPE, affine), affine))
    after = out.affine.numpy()
    to_input = np.linalg.inv(affine) @ after
    where = positions_mm(out.shape[1:], to_input)
    rim = 2 * np.maximum(1, np.abs(to_input[:3, :3]).sum(axis=1))
    inside = ((where >= rim) & (where <= np.array(SHAPE) - 1 - rim)).all(axis=-1)
    assert inside.sum() > 100
    assert np.abs(out[0].numpy() - ramp_hu(out.shape[1:], after))[inside].max() < 1
    assert nib.aff2axcodes(after) == ("R", "A", "S")


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("knobs", GRIDS, ids=str)
def test_landmark_stays_within_half_a_voxel(affine: np.ndarray, knobs: dict[str, Any]) -> None:
    landmark = nib.affines.apply_affine(affine, (np.array(SHAPE) - 1) * [0.45, 0.55, 0.48])
    blob = np.exp(-((positions_mm(SHAPE, affine) - landmark) ** 2).sum(-1) / (2 * 5**2))
    out = ResampleCT(**knobs)(volume((blob * 2000 - 1000).astype(np.int16), affine))
    weights = np.clip(out[0].numpy() + 1000.0, 0, None)
    center = np.average(
        positions_mm(out.shape[1:], out.affine.numpy()), axis=(0, 1, 2), weights=np.repeat(weights[..., None], 3, -1)
    )
    offset = np.linalg.inv(out.affine.numpy()[:3, :3]) @ (center - landmark)
    assert np.abs(offset).max() < 0.5


def test_hand_worked_affine() -> None:
    """8 voxels of 2 mm, first center at 10 mm: edges 9 and 25 mm; 4 voxels of 4 mm have centers 11, 15, 19, 23."""
    out = ResampleCT(size=4)(volume(np.zeros((8, 8, 8), np.int16), nib.affines.from_matvec(2 * np.eye(3), [10] * 3)))
    np.testing.assert_allclose(out.affine, nib.affines.from_matvec(4 * np.eye(3), [11] * 3))


def test_same_grid_is_the_identity() -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, SHAPE, dtype=np.int16)
    out = ResampleCT(size=SHAPE)(volume(hu))
    np.testing.assert_array_equal(out[0], hu)
    np.testing.assert_allclose(out.affine, AFFINES["straight"])


# ---- size and spacing


@pytest.mark.parametrize(("knobs", "shape", "spacing_mm"), [
    ({"size": 16}, (16, 16, 16), (60 / 16, 72 / 16, 120 / 16)),
    ({"size": (10, 20, 30)}, (10, 20, 30), (6, 3.6, 4)),
    ({"spacing_mm": 3}, (20, 24, 40), (3, 3, 3)),
    ({"spacing_mm": (1, 2.2, 5)}, (60, 33, 24), (1, 2.2, 5)),
    ({"size": 32, "spacing_mm": 3}, (32, 32, 32), (3, 3, 3)),
], ids=str)  # fmt: skip
def test_size_and_spacing(knobs: dict[str, Any], shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    """The scan measures 60 x 72 x 120 mm."""
    out = ResampleCT(**knobs)(volume(np.zeros(SHAPE, np.int16), filename_or_obj="a.nii"))
    assert out.shape[1:] == shape
    assert out.dtype == torch.int16
    np.testing.assert_allclose(nib.affines.voxel_sizes(out.affine.numpy()), spacing_mm)
    assert out.meta["filename_or_obj"] == "a.nii"
    center = nib.affines.apply_affine(out.affine.numpy(), (np.array(shape) - 1) / 2)
    np.testing.assert_allclose(center, nib.affines.apply_affine(AFFINES["straight"], (np.array(SHAPE) - 1) / 2))


def test_outside_the_scan_is_air() -> None:
    """30 voxels of 4 mm around 60 x 72 x 120 mm: 15, 18 and 30 voxels are inside."""
    out = ResampleCT(size=40, spacing_mm=4)(volume(np.full(SHAPE, 50, np.int16)))[0]
    assert (out == 50).any(dim=2).any(dim=1).sum() in (15, 16)
    assert (out == 50).any(dim=2).any(dim=0).sum() == 18
    assert (out == 50).any(dim=1).any(dim=0).sum() == 30
    assert out.unique().tolist() == [-1000, 50]


@pytest.mark.parametrize("hu", [-1000, -700, 40, 3000])
@pytest.mark.parametrize("knobs", GRIDS[:4], ids=str)
def test_constant_stays_constant(knobs: dict[str, Any], hu: int) -> None:
    assert ResampleCT(**knobs)(volume(np.full(SHAPE, hu, np.int16))).unique().tolist() == [hu]


def test_padding_below_air_does_not_ring() -> None:
    """-3024 outside the field of view would pull neighbors far below air and push others above."""
    hu = np.full(SHAPE, 40, np.int16)
    hu[:10] = -3024
    out = ResampleCT(spacing_mm=(1.2, 2, 4))(volume(hu))[0]
    assert out.min() >= -1024 - 0.1 * 1064
    assert out.max() <= 40 + 0.1 * 1064
    as_air = np.maximum(hu, -1024)
    assert torch.equal(out, ResampleCT(spacing_mm=(1.2, 2, 4))(volume(as_air))[0].as_tensor())


# ---- crop


def box_mask(affine: np.ndarray, low: tuple[int, ...], high: tuple[int, ...]) -> MetaTensor:
    values = np.zeros(SHAPE, np.uint8)
    values[tuple(map(slice, low, high))] = 1
    return volume(values, affine)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("margin_mm", [0, 6])
def test_crops_to_the_lungs_and_a_margin(affine: np.ndarray, margin_mm: float) -> None:
    low, high = (10, 9, 8), (25, 20, 18)
    mask = box_mask(affine, low, high)
    out, inside = ResampleCT(size=24, margin_mm=margin_mm)(volume(np.zeros(SHAPE, np.int16), affine), mask)
    assert inside.shape == out.shape
    assert inside.dtype == torch.uint8
    torch.testing.assert_close(inside.affine, out.affine, rtol=0, atol=0)
    corners = np.array(list(itertools.product([-0.5, 23.5], repeat=3)))
    edges = nib.affines.apply_affine(np.linalg.inv(affine) @ out.affine.numpy(), corners)
    margin = margin_mm / nib.affines.voxel_sizes(affine)
    np.testing.assert_allclose(edges.min(axis=0), np.array(low) - 0.5 - margin, atol=1e-6)
    np.testing.assert_allclose(edges.max(axis=0), np.array(high) - 0.5 + margin, atol=1e-6)
    where = positions_mm(out.shape[1:], np.linalg.inv(affine) @ out.affine.numpy())
    from_edge = np.minimum(where - (np.array(low) - 0.5), np.array(high) - 0.5 - where).min(axis=-1)
    clear = np.abs(from_edge) > 1e-6
    np.testing.assert_array_equal(inside[0].numpy()[clear], from_edge[clear] > 0)


def test_margin_ends_at_the_scan() -> None:
    out, _ = ResampleCT(size=8, margin_mm=1000)(
        volume(np.zeros(SHAPE, np.int16)), box_mask(AFFINES["straight"], (1,) * 3, (5,) * 3)
    )
    np.testing.assert_allclose(out.affine, ResampleCT(size=8)(volume(np.zeros(SHAPE, np.int16))).affine)


def test_mask_on_a_coarser_grid_and_other_axes() -> None:
    """A mask of 3 x 3 x 1 blocks, flipped, at the same place."""
    affine = AFFINES["oblique"]
    coarse = affine @ nib.affines.from_matvec(np.diag([-3, 3, 1]), [SHAPE[0] - 2, 1, 0])
    values = np.zeros((13, 12, 30), np.uint8)
    values[4:8, 3:6, 10:20] = 1
    out, inside = ResampleCT(size=20, margin_mm=0)(volume(np.zeros(SHAPE, np.int16), affine), volume(values, coarse))
    edges = nib.affines.apply_affine(np.linalg.inv(coarse) @ out.affine.numpy(), np.array([[-0.5] * 3, [19.5] * 3]))
    np.testing.assert_allclose(np.sort(edges, axis=0), [[3.5, 2.5, 9.5], [7.5, 5.5, 19.5]], atol=1e-6)
    assert inside[0, 10, 10].all()
    assert inside[0, :, 10, 10].all()
    assert inside[0, 10, :, 10].all()


def test_dictionary_without_a_mask() -> None:
    item = {"image": volume(np.zeros(SHAPE, np.int16))}
    assert ResampleCTd("image", size=8)(item)["image"].shape == (1, 8, 8, 8)
    assert ResampleCTd("image", mask_key=None, size=8)({**item, "lungs": None})["lungs"] is None


# ---- values


def _reference_resample(hu: np.ndarray, affine: np.ndarray, out: MetaTensor) -> np.ndarray:
    """SimpleITK in double precision: a Gaussian as wide (FWHM) as the voxels grow, then cubic B-spline."""

    def image(values: np.ndarray, matrix: np.ndarray) -> sitk.Image:
        result = sitk.GetImageFromArray(values.T)
        lps = LPS @ matrix
        spacing = nib.affines.voxel_sizes(lps)
        result.SetSpacing(spacing.tolist())
        result.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        result.SetOrigin(lps[:3, 3].tolist())
        return result

    source = image(np.maximum(hu, -1024).astype(np.float64), affine)
    target = image(np.zeros(out.shape[1:]), out.affine.numpy())
    in_mm = np.array(source.GetSpacing())
    out_mm = np.abs(np.linalg.inv(affine[:3, :3] / in_mm) @ out.affine.numpy()[:3, :3]).sum(axis=1)
    for axis, (fine, coarse) in enumerate(zip(in_mm, out_mm, strict=True)):
        if coarse > fine:
            source = sitk.RecursiveGaussian(source, np.sqrt(coarse**2 - fine**2) / 2.355, False, 0, axis)
    resampled = sitk.Resample(source, target, sitk.Transform(), sitk.sitkBSpline, -1000.0, sitk.sitkFloat64)
    return sitk.GetArrayFromImage(resampled).T


def lung_difference(matrix: int, slice_mm: float | None, seed: int, turn: np.ndarray, size: int) -> float:
    """Mean absolute difference from the reference inside the lungs, in window units."""
    scan = thorax_phantom(seed, diseased=True, matrix=matrix, slice_mm=slice_mm, scanner=SCANNERS[seed % 4])
    affine = turn @ scan.affine
    lungs = volume(scan.lungs.astype(np.uint8), affine)
    out, inside = ResampleCT(size=size)(volume(scan.hu, affine), lungs)
    window = WindowHU("lung")
    ours, reference = window(out)[0], window(_reference_resample(scan.hu, affine, out))
    return float((ours - reference).abs().as_tensor()[inside[0].as_tensor() > 0].mean())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("turn", [np.eye(4), nib.affines.from_matvec(OBLIQUE)], ids=["axial", "oblique"])
def test_agrees_with_simpleitk_inside_the_lungs(seed: int, turn: np.ndarray) -> None:
    assert lung_difference(128, None, seed, turn, 64) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(3)), 3])
def test_agrees_with_simpleitk_at_full_size(seed: int) -> None:
    assert lung_difference(512, None, seed, np.eye(4), 128) <= 0.01


def test_one_voxel_along_a_flipped_axis() -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    out = ResampleCT(size=8)(volume(np.full((1, 16, 16), 7, np.int16), affine))
    assert out.unique().tolist() == [7]


def test_does_not_alias() -> None:
    """Stripes of one voxel, finer than the output can show, become their mean."""
    hu = np.where(np.arange(64) % 2, 400, -1000)[:, None, None] * np.ones((64, 8, 8))
    out = ResampleCT(size=(24, 8, 8))(volume(hu.astype(np.int16), np.eye(4)))[0, 2:-2]
    assert np.abs(out.numpy() - -300).max() < 30
    naive = ndimage.map_coordinates(hu[:, 0, 0], [np.arange(24) * 64 / 24 + 5 / 6], order=3)
    assert np.abs(naive[2:-2] - -300).max() > 500


def test_lung_volume_and_meta_are_preserved() -> None:
    scan = thorax_phantom(1, diseased=False, matrix=96)
    image = volume(scan.hu, scan.affine)
    mask = SegmentLungs()(image)
    _, inside = ResampleCT(size=96)(image, mask)
    liters = [float(m.sum()) * abs(np.linalg.det(m.affine.numpy())) / 1e6 for m in (mask, inside)]
    assert liters[1] == pytest.approx(liters[0], rel=0.01)
    assert {k: v for k, v in inside.meta.items() if "lung" in str(k)} == {
        k: v for k, v in mask.meta.items() if "lung" in str(k)
    }


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_memory_order_of_the_scan_makes_no_difference(order: tuple[int, ...]) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, SHAPE, dtype=np.int16)
    stored = np.ascontiguousarray(hu.transpose(order)).transpose(np.argsort(order))
    out = ResampleCT(size=16)(volume(torch.from_numpy(stored)))
    assert (out.as_tensor() - ResampleCT(size=16)(volume(hu)).as_tensor()).abs().max() <= 1


# ---- errors


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, r"give size \(voxels\), spacing_mm, or both"),
        ({"size": 0}, r"size must be \(X, Y, Z\) in voxels, or one number, got 0"),
        ({"spacing_mm": (1, 1, -1)}, "must be positive"),
        ({"size": 8, "margin_mm": -1}, "margin_mm not negative, got None and -1"),
    ],
)
def test_bad_arguments(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResampleCT(**knobs)


def test_bad_volumes() -> None:
    scan = volume(np.zeros(SHAPE, np.int16))
    with pytest.raises(ValueError, match=r"wanted one volume \(1, X, Y, Z\), got shape \(2, 4, 4, 4\)"):
        ResampleCT(size=8)(torch.zeros(2, 4, 4, 4))
    with pytest.raises(ValueError, match="the mask is empty; SegmentLungs"):
        ResampleCT(size=8)(scan, volume(np.zeros(SHAPE, np.uint8)))
    with pytest.raises(ValueError, match="the mask must have the axes of the scan"):
        ResampleCT(size=8)(scan, volume(np.ones(SHAPE, np.uint8), AFFINES["oblique"]))
