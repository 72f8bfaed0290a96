from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.morphology import convex_hull_image

from monai_pipelines.errors import ScanError
from monai_pipelines.phantoms import SCANNERS, ThoraxScan, thorax_phantom
from monai_pipelines.transforms import LoadCT, ResampleCT, SegmentLungs, SegmentLungsd
from monai_pipelines.transforms.ct.lungs import find_lungs

FAST_SEEDS = range(4)


def volume(hu: np.ndarray, affine: np.ndarray, **meta: object) -> MetaTensor:
    return MetaTensor(torch.from_numpy(hu)[None], affine=torch.as_tensor(affine), meta=meta)


@cache
def phantom(seed: int, matrix: int = 128) -> ThoraxScan:
    """Scanners alternate, and so do healthy and diseased."""
    return thorax_phantom(seed, diseased=seed // 4 % 2 == 0, matrix=matrix, scanner=SCANNERS[seed % 4])


@cache
def mask_of(seed: int) -> MetaTensor:
    scan = phantom(seed)
    return SegmentLungs()(volume(scan.hu, scan.affine))


def on_grid(mask: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """The nearest voxel of a mask at each voxel of another grid."""
    matrix = np.linalg.inv(affine) @ target
    nearest = ndimage.affine_transform(mask.astype(np.uint8), matrix[:3, :3], matrix[:3, 3], shape, order=0)
    return nearest > 0


def at_scan(seed: int) -> np.ndarray:
    scan, mask = phantom(seed), mask_of(seed)
    return on_grid(mask[0].numpy(), mask.affine.numpy(), scan.hu.shape, scan.affine)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def other_air(scan: ThoraxScan) -> np.ndarray:
    """Air enclosed by tissue in its axial slice, other than lung: trachea, bronchi, stomach, bowel, table."""
    tissue = scan.hu > -500
    filled = np.stack([ndimage.binary_fill_holes(tissue[:, :, z]) for z in range(tissue.shape[2])], axis=-1)
    return filled & ~tissue & ~scan.lungs


# ---- phantoms


def final_dice(scan: ThoraxScan) -> float:
    image = volume(scan.hu, scan.affine)
    out, inside = ResampleCT(size=128)(image, SegmentLungs()(image))
    truth = on_grid(scan.lungs, scan.affine, out.shape[1:], out.affine.numpy())
    return dice(inside[0].numpy() > 0, truth)


@pytest.mark.parametrize(("seed", "matrix"), [*((seed, 128) for seed in FAST_SEEDS), (100, 96), (109, 192), (114, 256)])
def test_dice_in_the_final_grid(seed: int, matrix: int) -> None:
    assert final_dice(phantom(seed, matrix)) >= 0.97


@pytest.mark.nightly
def test_dice_of_many_phantoms() -> None:
    """Each scanner ten times, at four matrix sizes."""
    scores = [final_dice(phantom(100 + k, matrix=(96, 128, 192, 256)[k // 4 % 4])) for k in range(40)]
    phantom.cache_clear()
    assert min(scores) >= 0.97, np.round(scores, 4)
    assert np.mean(scores) >= 0.98, np.round(scores, 4)


@pytest.mark.parametrize("seed", FAST_SEEDS)
def test_volumes(seed: int) -> None:
    scan, meta = phantom(seed), mask_of(seed).meta
    liter = abs(np.linalg.det(scan.affine)) / 1e6
    x = nib.affines.apply_affine(scan.affine, np.argwhere(scan.lungs))[:, 0]
    assert meta["lungs_found"] is True
    assert meta["lung_volume_l"] == pytest.approx(scan.lungs.sum() * liter, rel=0.03)
    assert meta["right_lung_l"] == pytest.approx((x > 0).sum() * liter, rel=0.05)
    assert meta["left_lung_l"] == pytest.approx((x < 0).sum() * liter, rel=0.05)
    assert meta["lung_volume_l"] == pytest.approx(meta["right_lung_l"] + meta["left_lung_l"])


@pytest.mark.parametrize("seed", FAST_SEEDS)
def test_lesions_are_inside(seed: int) -> None:
    to_mask = np.linalg.inv(mask_of(seed).affine.numpy())
    lesions = phantom(seed).lesions
    assert lesions
    for lesion in lesions:
        where = np.rint(nib.affines.apply_affine(to_mask, lesion.position_mm)).astype(int)
        assert mask_of(seed)[0][tuple(where)] == 1, lesion


@pytest.mark.parametrize("seed", FAST_SEEDS)
def test_trachea_gas_and_table_are_outside(seed: int) -> None:
    """Of all other air, only the ends of the main bronchi are included."""
    scan, lungs, other = phantom(seed), at_scan(seed), other_air(phantom(seed))
    spacing = nib.affines.voxel_sizes(scan.affine)
    milliliter = np.prod(spacing) / 1e3
    x, _, z = np.moveaxis(nib.affines.apply_affine(scan.affine, np.stack(np.indices(other.shape), -1)), -1, 0)
    trachea = other & (abs(x) < 20) & (z > 65)
    distant = ndimage.distance_transform_edt(~scan.lungs, sampling=spacing) > 25
    assert trachea.sum() * milliliter > 5
    assert not (trachea & lungs).any()
    assert (other & distant).sum() * milliliter > 20
    assert not (distant & lungs).any()
    assert (other & lungs).sum() * milliliter < 6


# ---- a chest of ellipsoids: two lungs of 1.47 l


GRID_MM = 3.0
CHEST_AFFINE = nib.affines.from_matvec(GRID_MM * np.eye(3), [-180, -180, -135])
X, Y, Z = np.moveaxis(nib.affines.apply_affine(CHEST_AFFINE, np.stack(np.indices((121, 100, 91)), -1)), -1, 0)
LUNG_L = 4 / 3 * np.pi * 50 * 70 * 100 / 1e6


def chest(*sides: int) -> np.ndarray:
    hu = np.where((X / 150) ** 2 + (Y / 100) ** 2 < 1, 40, -1000)
    for side in sides:
        hu[((X - 65 * side) / 50) ** 2 + (Y / 70) ** 2 + (Z / 100) ** 2 < 1] = -850
    hu[(X**2 + (Y + 10) ** 2 < 9**2) & (Z > 0)] = -1000
    return hu.astype(np.int16)


def test_hand_worked_volumes() -> None:
    meta = SegmentLungs()(volume(chest(1, -1), CHEST_AFFINE)).meta
    assert meta["right_lung_l"] == pytest.approx(LUNG_L, rel=0.03)
    assert meta["left_lung_l"] == pytest.approx(LUNG_L, rel=0.03)


@pytest.mark.parametrize("grid_mm", [3, 6, 9, 12])
def test_coarse_grids_are_in_place(grid_mm: float) -> None:
    """The lungs are symmetric about the origin."""
    mask = SegmentLungs(grid_mm=grid_mm)(volume(chest(1, -1), CHEST_AFFINE))
    np.testing.assert_allclose(nib.affines.voxel_sizes(mask.affine.numpy()), grid_mm)
    center = nib.affines.apply_affine(mask.affine.numpy(), np.argwhere(mask[0].numpy())).mean(axis=0)
    np.testing.assert_allclose(center, 0, atol=0.12 * grid_mm)
    assert mask.meta["lung_volume_l"] == pytest.approx(2 * LUNG_L, rel=0.02 * grid_mm)


def test_joined_lungs_are_split() -> None:
    hu = chest(1, -1)
    hu[(abs(X) < 30) & (abs(Y - 25) < 10) & (abs(Z) < 40)] = -850
    assert ndimage.label(hu == -850)[1] == 1
    meta = SegmentLungs()(volume(hu, CHEST_AFFINE)).meta
    assert meta["right_lung_l"] == pytest.approx(LUNG_L, rel=0.06)
    assert meta["left_lung_l"] == pytest.approx(LUNG_L, rel=0.06)
    assert meta["lung_volume_l"] == pytest.approx(2 * LUNG_L, rel=0.04)


@pytest.mark.parametrize("gap_mm", [0, 15])
def test_hollow_table_larger_than_a_lung_is_excluded(gap_mm: float) -> None:
    hu = chest(1, -1)
    top = -100 - gap_mm
    hu[(abs(X) < 170) & (top - 36 < Y) & (top >= Y)] = -100
    hu[(abs(X) < 167) & (top - 33 < Y) & (top - 3 >= Y)] = -930
    assert (hu == -930).sum() > (hu == -850).sum() / 2
    mask = SegmentLungs()(volume(hu, CHEST_AFFINE))
    assert mask.meta["lung_volume_l"] == pytest.approx(2 * LUNG_L, rel=0.03)
    assert not mask[0].numpy()[Y < -100].any()


@pytest.mark.parametrize("side", [1, -1])
def test_single_lung_with_air_counts_as_none(side: int) -> None:
    """The crop would silently lose the other lung."""
    scan = volume(chest(side), CHEST_AFFINE)
    with pytest.raises(ScanError, match="no two plausible lungs"):
        SegmentLungs()(scan)
    assert SegmentLungs(no_lungs="flag")(scan).meta["lungs_found"] is False


def test_nodules_and_vessels_are_inside() -> None:
    """A nodule in the middle, one of 24 mm cut by the pleura, and a vessel through a lung."""
    hu = chest(1, -1)
    middle, pleura = np.hypot(np.hypot(X - 65, Y), Z) < 20, np.hypot(np.hypot(X - 110, Y), Z) < 12
    vessel = (np.hypot(X + 65, Y) < 5) & (abs(Z) < 85)
    for part in (middle, pleura, vessel):
        hu[part] = 40
    inside = ((abs(X) - 65) / 50) ** 2 + (Y / 70) ** 2 + (Z / 100) ** 2 < 1
    mask = SegmentLungs()(volume(hu, CHEST_AFFINE))[0].numpy() > 0
    assert mask[middle].all()
    assert mask[vessel].all()
    assert mask[pleura & inside].mean() > 0.6
    without = SegmentLungs(closing_mm=0)(volume(hu, CHEST_AFFINE))[0].numpy() > 0
    assert without[middle].all()
    assert not without[pleura].any()


def test_liver_dome_is_no_hole() -> None:
    """In axial slices a lung encloses the dome."""
    hu = chest(1, -1)
    dome = (np.hypot(X - 65, Y) / 30) ** 2 + ((Z + 110) / 80) ** 2 < 1
    hu[dome] = 60
    mask = SegmentLungs()(volume(hu, CHEST_AFFINE))[0].numpy() > 0
    deep = ndimage.binary_erosion(dome, iterations=3)
    assert deep.sum() * GRID_MM**3 > 50e3
    assert not mask[deep].any()


# ---- orientation


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_any_axis_order_gives_the_same_lungs(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    scan, expected = phantom(1), mask_of(1)
    turned = nib.orientations.axcodes2ornt(["".join("RAS"[a]) for a in axes])
    turned[list(flips), 1] *= -1
    hu = np.ascontiguousarray(nib.orientations.apply_orientation(scan.hu, turned))
    affine = scan.affine @ nib.orientations.inv_ornt_aff(turned, scan.hu.shape)
    mask = SegmentLungs()(volume(hu, affine))
    assert nib.aff2axcodes(mask.affine.numpy()) == ("R", "A", "S")
    where = on_grid(mask[0].numpy(), mask.affine.numpy(), expected.shape[1:], expected.affine.numpy())
    assert dice(where, expected[0].numpy() > 0) > 0.985
    for name in ("right_lung_l", "left_lung_l"):
        assert mask.meta[name] == pytest.approx(expected.meta[name], rel=0.01)


def test_oblique_scan_keeps_its_axes() -> None:
    scan, expected = phantom(1), mask_of(1)
    turn = nib.affines.from_matvec(Rotation.from_euler("xyz", [8, -6, 12], degrees=True).as_matrix(), [5, 6, 7])
    mask = SegmentLungs()(volume(scan.hu, turn @ scan.affine))
    assert torch.equal(mask.as_tensor(), expected.as_tensor())
    np.testing.assert_allclose(mask.affine, turn @ expected.affine.numpy(), atol=1e-9)


# ---- no lungs


@pytest.mark.parametrize("hu", [-1000, -850, 0, 3000])
def test_uniform_volume_has_no_lungs(hu: int) -> None:
    scan = volume(np.full((60, 50, 40), hu, np.int16), np.diag([5.0, 5, 5, 1]), filename_or_obj="uniform.nii")
    with pytest.raises(ScanError, match=r"^uniform.nii: no two plausible lungs found \(.*%.*no_lungs='flag' keeps"):
        SegmentLungs()(scan)
    mask = SegmentLungs(no_lungs="flag")(scan)
    assert mask.meta["lungs_found"] is False
    assert "lung_volume_l" not in mask.meta
    assert mask.all()
    out, _ = ResampleCT(size=16)(scan, mask)
    np.testing.assert_allclose(out.affine, ResampleCT(size=16)(scan).affine)


def test_flag_reaches_the_image() -> None:
    item = {"image": volume(chest(), CHEST_AFFINE, filename_or_obj="a.nii"), "label": 1}
    out = SegmentLungsd("image", no_lungs="flag")(item)
    assert out["image"].meta["lungs_found"] is False
    assert out["image"].meta["filename_or_obj"] == "a.nii"
    assert out["label"] == 1
    both = SegmentLungsd("image", mask_key="mask")({"image": volume(chest(1, -1), CHEST_AFFINE)})
    assert both["image"].meta["right_lung_l"] == both["mask"].meta["right_lung_l"] > 1


def test_bowel_gas_is_not_lung() -> None:
    """Two bubbles of 0.9 l: plausible for lungs, but not of gas."""
    hu = chest()
    for side in (1, -1):
        hu[np.hypot(np.hypot(X - 70 * side, Y), Z) < 60] = -1000
    assert find_lungs(hu.astype(np.float32), np.full(3, GRID_MM)) is None
    hu[hu == -1000] = -900
    assert find_lungs(hu.astype(np.float32), np.full(3, GRID_MM)) is not None


# ---- real scans


@pytest.mark.parametrize(
    ("name", "liters"), [("A0001/series-2", (5, 6.5)), ("A0002/series-2", (2.4, 3.2)), ("A0002/series-3", (2.4, 3.2))]
)
def test_real_chest(shared_data: Path, name: str, liters: tuple[float, float]) -> None:
    """64 slices of 5 mm, 30 slices of 8 mm with a sharp and a soft kernel."""
    scan = LoadCT()(shared_data / "ct" / name)
    mask = SegmentLungs()(scan)
    assert liters[0] < mask.meta["lung_volume_l"] < liters[1]
    assert mask.meta["right_lung_l"] > 0.8
    assert mask.meta["left_lung_l"] > 0.8
    out, inside = ResampleCT(spacing_mm=3, margin_mm=1000)(scan, mask)
    hu, lungs = out[0].numpy(), inside[0].numpy() > 0
    thick, _ = ndimage.label(ndimage.binary_opening(hu > -300, np.ones((4, 4, 1))))
    trunk = thick == np.bincount(thick[thick > 0]).argmax()
    hulls = np.stack([convex_hull_image(trunk[:, :, z]) for z in range(hu.shape[2])], axis=-1)
    assert not (lungs & ~hulls).any()
    labels, _ = ndimage.label(lungs)
    sizes = np.sort(np.bincount(labels[lungs]))[::-1] * 27e-6
    assert sizes[:2].sum() > 0.98 * lungs.sum() * 27e-6
    assert -890 < hu[lungs].mean() < -600
    top = int(np.argwhere(lungs)[:, 2].max()) - 5
    airs, _ = ndimage.label((hu[:, :, top] < -500) & ~lungs[:, :, top] & hulls[:, :, top])
    center = np.argwhere(lungs)[:, 0].mean()
    middles = [np.argwhere(airs == i)[:, 0].mean() for i in np.unique(airs[airs > 0]) if (airs == i).sum() * 9 > 60]
    assert any(abs(middle - center) < 10 for middle in middles)


def test_real_abdomen(shared_data: Path) -> None:
    scan = LoadCT()(shared_data / "ct" / "ct_3mm.nii.gz")
    with pytest.raises(ScanError, match=r"ct_3mm\.nii\.gz: no two plausible lungs"):
        SegmentLungs()(scan)
    assert SegmentLungs(no_lungs="flag")(scan).meta["lungs_found"] is False


# ---- errors


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"no_lungs": "skip"}, "no_lungs must be 'raise' or 'flag', got 'skip'"),
        ({"air_hu": 100}, r"air_hu must lie between air \(-1000\) and water \(0\), got 100"),
        ({"grid_mm": 0}, "grid_mm must be positive"),
        ({"closing_mm": -1}, "closing_mm not negative"),
    ],
)
def test_bad_arguments(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentLungs(**knobs)


def test_bad_volumes() -> None:
    with pytest.raises(ValueError, match=r"wanted one volume \(1, X, Y, Z\), got shape \(2, 8, 8, 8\)"):
        SegmentLungs()(torch.zeros(2, 8, 8, 8))
    with pytest.raises(ValueError, match="wanted one key"):
        SegmentLungsd(["a", "b"])
