from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from monai_pipelines.phantoms import SCANNERS, Scanner, ThoraxScan, thorax_phantom
from monai_pipelines.phantoms.anatomy import draw_patient
from monai_pipelines.phantoms.canvas import Canvas, Ripple, Tubes
from monai_pipelines.phantoms.thorax import scan_patient


def _draw(seed: int, diseased: bool, scanner: Scanner | None = None) -> ThoraxScan:
    return thorax_phantom(seed, diseased=diseased, matrix=96, slice_mm=6, scanner=scanner)


def _voxel(scan: ThoraxScan, position_mm: tuple[float, float, float]) -> tuple[int, ...]:
    return tuple(np.rint(np.linalg.inv(scan.affine) @ [*position_mm, 1])[:3].astype(int))


def test_same_seed_same_scan() -> None:
    one, two, other = _draw(3, True), _draw(3, True), _draw(4, True)
    np.testing.assert_array_equal(one.hu, two.hu)
    np.testing.assert_array_equal(one.affine, two.affine)
    assert one.lesions == two.lesions
    assert one.hu.shape != other.hu.shape or (one.hu != other.hu).any()


def test_classes_differ_by_the_lesions_only() -> None:
    scanner = replace(SCANNERS[0], noise_hu=0.0)
    patients = [draw_patient(np.random.default_rng(1), diseased, (20, 40)) for diseased in (False, True)]
    healthy, diseased = (scan_patient(one, scanner, np.random.default_rng(0), 96, 6.0) for one in patients)
    assert healthy.lesions == []
    assert diseased.lesions
    changed = np.abs(healthy.hu.astype(int) - diseased.hu) > 1
    assert changed.any()
    position = (
        np.moveaxis(np.indices(changed.shape), 0, -1)[changed] @ diseased.affine[:3, :3].T + diseased.affine[:3, 3]
    )
    nearest_mm = np.min(
        [np.linalg.norm(position - one.position_mm, axis=1) - one.diameter_mm / 2 for one in diseased.lesions], axis=0
    )
    assert nearest_mm.max() < 15


@pytest.mark.parametrize("scanner", SCANNERS, ids=[scanner.name for scanner in SCANNERS])
@pytest.mark.parametrize("seed", range(5))
def test_anatomy(scanner: Scanner, seed: int) -> None:
    scan = _draw(seed, True, scanner)
    assert scan.hu.dtype == np.int16
    assert scan.lungs.dtype == bool
    assert scan.lungs.shape == scan.hu.shape
    liters = scan.lungs.sum() * np.abs(np.linalg.det(scan.affine[:3, :3])) / 1e6
    assert 2.5 < liters < 6.5
    sizes = np.bincount(ndimage.label(scan.lungs)[0].ravel())[1:]
    assert np.sort(sizes)[-2:].sum() > 0.999 * sizes.sum()
    assert np.sort(sizes)[-2] > 0.25 * sizes.sum()
    slices = scan.lungs.any(axis=(0, 1))
    assert not slices[:3].any()
    assert not slices[-3:].any()
    assert -900 < np.median(scan.hu[scan.lungs]) < -650
    rim = ndimage.binary_dilation(scan.lungs, iterations=3) & ~ndimage.binary_dilation(scan.lungs)
    assert np.median(scan.hu[rim]) > -150
    assert 1 <= len(scan.lesions) <= 4
    for lesion in scan.lesions:
        assert 20 <= lesion.diameter_mm <= 40
        assert scan.lungs[_voxel(scan, lesion.position_mm)]


def test_lesions_are_denser_than_the_lung() -> None:
    scan = _draw(7, True, replace(SCANNERS[0], noise_hu=0.0))
    parenchyma = np.median(scan.hu[scan.lungs])
    for lesion in scan.lesions:
        assert scan.hu[_voxel(scan, lesion.position_mm)] > parenchyma + 100


def test_lesions_have_the_requested_size() -> None:
    lesions = [
        one
        for seed in range(8)
        for one in thorax_phantom(seed, diseased=True, matrix=32, slice_mm=20, lesion_mm=(6, 9)).lesions
    ]
    assert all(6 <= one.diameter_mm <= 9 for one in lesions)
    assert {one.kind for one in lesions} == {"consolidation", "ground_glass", "nodule"}


def test_two_scans_of_a_patient_share_the_anatomy() -> None:
    patient = draw_patient(np.random.default_rng(5), True, (20, 40))
    one, two = (
        scan_patient(patient, scanner, np.random.default_rng(n), 96, 5.0) for n, scanner in enumerate(SCANNERS[:2])
    )
    assert one.lesions == two.lesions
    assert not np.array_equal(one.affine, two.affine)
    onto_one = np.linalg.inv(two.affine) @ one.affine
    moved = ndimage.affine_transform(two.lungs.astype(float), onto_one, output_shape=one.lungs.shape, order=1) > 0.5
    assert 2 * (moved & one.lungs).sum() / (moved.sum() + one.lungs.sum()) > 0.97


def test_scanner_pads_outside_its_circle() -> None:
    padded, whole = _draw(0, False, SCANNERS[1]), _draw(0, False, SCANNERS[0])
    assert SCANNERS[1].outside_hu == -3024
    assert (padded.hu[0, 0] == -3024).all()
    assert padded.hu[48, 0].min() >= -1024
    assert whole.hu.min() >= -1024


def test_noise_follows_the_scanner() -> None:
    std = {scanner.name: _draw(0, False, scanner).hu[3:12, 40:56, 5:].std() for scanner in (SCANNERS[0], SCANNERS[1])}
    assert std["Lumen 64"] > 1.3 * std["Plain 16"]


@pytest.mark.parametrize("lesion_mm", [(40, 20), (0, 20), (20, 20)])
def test_lesion_sizes_must_rise(lesion_mm: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"lesion_mm must rise from above 0, got \(\d+, \d+\)"):
        thorax_phantom(0, diseased=False, matrix=32, slice_mm=20, lesion_mm=lesion_mm)


def _reference_share(canvas: Canvas, inside, fine: int = 12) -> np.ndarray:
    """Counts sub-voxels."""
    steps = (np.arange(fine) + 0.5) / fine - 0.5
    shape = canvas.hu.shape
    x, y, z = (
        canvas._origin_mm[axis] + canvas._step_mm[axis] * (np.arange(shape[axis])[:, None] + steps).ravel()
        for axis in range(3)
    )
    hit = inside(*np.ix_(x, y, z)) < 0
    return hit.reshape(shape[0], fine, shape[1], fine, shape[2], fine).mean(axis=(1, 3, 5))


def test_coverage_is_the_share_of_a_voxel() -> None:
    canvas = Canvas((14, 16, 10), np.array([[-3, 0, 0, 20], [0, -3, 0, 24], [0, 0, 5, -24], [0, 0, 0, 1.0]]))

    def ball(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.sqrt((x - 1) ** 2 + (y - 2) ** 2 + z**2) - 15

    whole = (slice(0, 14), slice(0, 16), slice(0, 10))
    share, wanted = canvas.coverage(whole, ball), _reference_share(canvas, ball)
    assert np.abs(share - wanted).max() < 0.2
    assert share.sum() == pytest.approx(wanted.sum(), rel=0.05)
    assert share.sum() * 45 == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.05)


@pytest.mark.parametrize("radius_mm", [0.5, 1.0, 2.0, 6.0])
def test_tubes_keep_their_cross_section(radius_mm: float) -> None:
    canvas = Canvas((20, 20, 20), np.array([[2, 0, 0, -19], [0, 2, 0, -19], [0, 0, 2, -19], [0, 0, 0, 1.0]]))
    radius = np.array([radius_mm])
    tube = Tubes(np.array([[0.4, 0.3, -100]]), np.array([[0.4, 0.3, 100]]), radius, radius)
    share = canvas.tube_coverage(canvas.box(np.full(3, -99.0), np.full(3, 99.0)), tube)
    assert share[:, :, 10].sum() * 4 == pytest.approx(np.pi * radius_mm**2, rel=0.1)


def test_ripple_has_unit_std() -> None:
    axis = np.linspace(0, 400, 60, dtype=np.float32)
    field = Ripple.draw(np.random.default_rng(0), (20, 60))(*np.ix_(axis, axis, axis))
    assert field.dtype == np.float32
    assert abs(field.mean()) < 0.1
    assert 0.8 < field.std() < 1.2
