from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_pipelines.transforms import MaskLungs, RefineLungs
from monai_pipelines.transforms.ct.mask_lungs import dilated

SHAPE = (20, 18, 16)
SPACING_MM = (2.0, 1.0, 3.0)
AFFINE = torch.diag(torch.tensor([-2.0, 1, 3, 1], dtype=torch.float64))


def image() -> MetaTensor:
    values = np.random.default_rng(0).uniform(0.1, 1, (1, *SHAPE)).astype(np.float32)
    return MetaTensor(torch.from_numpy(values), affine=AFFINE)


def lungs() -> MetaTensor:
    mask = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    mask[0, 5:9, 6:12, 4:10] = 1
    mask[0, 12:15, 6:12, 4:10] = 1
    return MetaTensor(mask, affine=AFFINE)


def _reference_grown(mask: np.ndarray, dilate_mm: float) -> np.ndarray:
    inside = sitk.GetImageFromArray(mask.T)
    inside.SetSpacing(SPACING_MM)
    distance = sitk.SignedMaurerDistanceMap(inside, squaredDistance=False, useImageSpacing=True)
    outside = sitk.GetArrayFromImage(distance).T
    # the map is 0 on the mask's rim: it measures distances to the nearest voxel of the mask
    return (outside <= dilate_mm + 1e-4) | (mask > 0)


@pytest.mark.parametrize("dilate_mm", [0, 1, 2.5, 5, 100])
def test_air_outside_the_grown_mask(dilate_mm: float) -> None:
    out = MaskLungs("air", dilate_mm)(image(), lungs())
    grown = _reference_grown(lungs()[0].numpy(), dilate_mm)
    assert grown.sum() > 0
    np.testing.assert_array_equal(out[0].numpy(), np.where(grown, image()[0].numpy(), 0))
    assert torch.equal(out.affine, AFFINE)


def test_hand_worked_growth() -> None:
    """One voxel of 2 x 1 x 3 mm grown by 2 mm: one voxel along x, two along y, none along z."""
    mask = torch.zeros(1, *SHAPE)
    mask[0, 10, 10, 10] = 1
    grown = MaskLungs("channel", dilate_mm=2)(image(), mask)[1]
    assert sorted(map(tuple, torch.nonzero(grown.as_tensor()).tolist())) == [
        (9, 10, 10),
        *((10, y, 10) for y in range(8, 13)),
        (11, 10, 10),
    ]


@pytest.mark.parametrize(
    ("spacing_mm", "radius_mm"),
    [((2, 2, 2), 5), ((2.1, 1.7, 2.4), 5), ((0.7, 0.7, 5), 3), ((1, 1, 1), 9), ((5, 5, 5), 2)],
)
def test_dilated_is_the_distance_up_to_the_radius(spacing_mm: tuple[float, ...], radius_mm: float) -> None:
    mask = np.random.default_rng(0).random((24, 30, 20)) < 0.002
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= radius_mm
    assert mask.any()
    np.testing.assert_array_equal(dilated(torch.from_numpy(mask), spacing_mm, radius_mm).numpy(), expected)


def test_mask_as_a_channel() -> None:
    out = MaskLungs("channel", dilate_mm=0)(image(), lungs())
    assert out.shape == (2, *SHAPE)
    assert out.dtype == torch.float32
    assert torch.equal(out[0].as_tensor(), image()[0].as_tensor())
    assert torch.equal(out[1].as_tensor(), lungs()[0].as_tensor().float())


def test_errors() -> None:
    with pytest.raises(ValueError, match="masking must be 'none', 'air' or 'channel', got 'zero'"):
        MaskLungs("zero")
    with pytest.raises(ValueError, match="dilate_mm must not be negative, got -1"):
        MaskLungs("air", -1)
    with pytest.raises(ValueError, match=r"not on the image's grid .*mask \(1, 4, 4, 4\).*resample it first"):
        MaskLungs("air")(image(), torch.ones(1, 4, 4, 4))


def test_refined_mask_is_air_at_its_surface() -> None:
    """Against SciPy's erosion and dilation, on a ball of air with a nodule and a vessel at its edge."""
    x, y, z = np.indices((24, 20, 22))
    hu = np.where((x - 12) ** 2 + (y - 10) ** 2 + (z - 11) ** 2 < 60, -850, 30)
    hu[10:14, 9:12, 17:19] = 30
    coarse = (x // 3 - 4) ** 2 + (y // 3 - 3) ** 2 + (z // 3 - 3.5) ** 2 < 8
    expected = ndimage.binary_erosion(coarse, border_value=1) | (ndimage.binary_dilation(coarse) & (hu < -400))
    refined = RefineLungs()(hu[None], coarse[None].astype(np.uint8))
    np.testing.assert_array_equal(refined[0], expected)
    ball = hu < -400
    before, after = (2 * (mask & ball).sum() / (mask.sum() + ball.sum()) for mask in (coarse, refined[0].numpy() > 0))
    assert after > before + 0.02


def test_refinement_wants_the_grid_of_the_volume() -> None:
    with pytest.raises(ValueError, match=r"not on the volume's grid \(mask \(1, 4, 4, 5\), volume \(1, 4, 4, 4\)\)"):
        RefineLungs()(torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 5))
    with pytest.raises(ValueError, match="air_hu must lie between"):
        RefineLungs(100)
