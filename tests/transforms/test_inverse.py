"""The way back: masks, maps and boxes return to the grid of the file, or an error says why not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Flipd, Invertd
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_pipelines import load_chain
from monai_pipelines.transforms.inverse import resample_axes
from tests.transforms.contract_rows import chest

TILT = Rotation.from_euler("xyz", [8, -12, 15], degrees=True).as_matrix()
GRIDS = {  # columns: voxel steps, mm
    "straight": np.diag([3.0, 3, 3]),
    "flipped, anisotropic": np.diag([-2.5, -2.5, 6]),
    "oblique, flipped, permuted": (TILT * [-3, 3, -5])[:, [2, 0, 1]],
}


def _phantom(matrix: np.ndarray) -> tuple[MetaTensor, MetaTensor]:
    """Two ellipsoids of lung in a body, and both as a mask with a nodule as class 2."""
    extent = np.array([330, 250, 250])
    shape = np.ceil(np.abs(matrix).T @ extent / (matrix**2).sum(axis=0)).astype(int) + 4
    affine = nib.affines.from_matvec(matrix, -matrix @ ((shape - 1) / 2))
    at = nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))
    hu = np.where((at[..., 0] / 150) ** 2 + (at[..., 1] / 110) ** 2 < 1, 40, -1000)
    mask = np.zeros(shape, np.uint8)
    for x in (-65, 65):
        mask[(np.square((at - [x, 0, 0]) / [45, 70, 90]).sum(axis=-1)) < 1] = 1
    hu[mask > 0] = -850
    mask[np.square((at - [60, 10, 5]) / 25).sum(axis=-1) < 1] = 2
    hu[mask == 2] = 30
    return MetaTensor(torch.tensor(hu[None], dtype=torch.int16), affine=torch.tensor(affine)), MetaTensor(
        torch.tensor(mask[None]), affine=torch.tensor(affine)
    )


def _dice(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    ("chain", "knobs"),
    [
        ("lung_ct", {"size": [96, 96, 96]}),
        ("lung_ct", {"size": None, "spacing_mm": [2, 2, 2], "masking": "channel"}),
        ("lung_ct_detection", {"spacing_mm": [2, 2, 2]}),
    ],
)
def test_mask_of_a_scan_returns(name: str, chain: str, knobs: dict[str, Any]) -> None:
    image, mask = _phantom(GRIDS[name])
    prepare = load_chain(chain, keys=["image", "label"], **knobs)
    out = prepare({"image": image, "label": mask})
    back = prepare.inverse(out)
    assert back["image"].shape[1:] == mask.shape[1:]
    label = back["label"]
    assert label.dtype == torch.uint8
    np.testing.assert_allclose(label.affine, mask.affine)
    for number in (1, 2):
        assert _dice(label == number, mask == number) >= 0.98
    assert not label.applied_operations

    of_image = prepare.inverse(MetaTensor(out["label"].as_tensor()).copy_meta_from(out["image"]))
    assert torch.equal(of_image.as_tensor(), label.as_tensor())
    soft = prepare.inverse(MetaTensor((out["label"] > 0).float().as_tensor()).copy_meta_from(out["image"]))
    assert 0 < ((soft > 0.01) & (soft < 0.99)).float().mean() < 0.2, "a map is interpolated"
    assert _dice(soft > 0.5, mask > 0) >= 0.98


@pytest.mark.parametrize("size", [(50, 70), (200, 90), (64, 64)])
@pytest.mark.parametrize("chain", ["image2d", "xray", "histology_tile", "fundus"])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_mask_of_an_image_returns_to_the_pixel(chain: str, size: tuple[int, int], fit: str, tmp_path: Path) -> None:
    """Exactly where the chain enlarged the image, within a pixel where it made it smaller."""
    rows, columns = np.indices(size) - (np.array(size)[:, None, None] - 1) / 2
    disc = rows**2 + columns**2 < (0.45 * min(size)) ** 2
    Image.fromarray(np.where(disc, 120, 0).astype(np.uint8)).save(tmp_path / "a.png")
    mask = (np.abs(rows) < 0.2 * min(size)) & (np.abs(columns) < 0.25 * min(size))
    Image.fromarray(mask.astype(np.uint8) * 3).save(tmp_path / "mask.png")
    prepare = load_chain(chain, mask_keys="mask", size=[160, 192], fit=fit)
    out = prepare({"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "mask.png")})
    assert out["mask"].shape[1:] == out["image"].shape[1:] == (160, 192)
    back = prepare.inverse(out)
    assert back["image"].shape[1:] == back["mask"].shape[1:] == size
    found = back["mask"][0].numpy() == 3
    if chain != "fundus" and size != (200, 90):
        assert np.array_equal(found, mask)
    assert not (found & ~ndimage.binary_dilation(mask, np.ones((3, 3)))).any()
    assert not (ndimage.binary_erosion(mask, np.ones((3, 3))) & ~found).any()


def test_boxes_return() -> None:
    image, _ = _phantom(GRIDS["oblique, flipped, permuted"])
    boxes = torch.tensor([[-80.0, -20, -10, -50, 10, 20], [40.0, 0, -15, 70, 30, 15]])
    item = {"image": image, "boxes": boxes, "box_labels": torch.tensor([0, 1]), "box_ignore": torch.zeros(2).bool()}
    chain = load_chain("lung_ct_detection")
    out = chain(item)
    back = chain.inverse({"boxes": out["boxes"], "box_affine": out["box_affine"]})
    assert set(back) == {"boxes"}
    voxel_mm = float(image.pixdim.min())
    assert (back["boxes"] - boxes).abs().max() < 0.5 * voxel_mm
    assert torch.equal(chain.inverse(out)["boxes"], back["boxes"])


def test_monais_invertd_in_batches_from_workers_and_after_pickling() -> None:
    image, mask = _phantom(GRIDS["flipped, anisotropic"])
    chain = load_chain("lung_ct", keys=["image", "label"], size=[48, 56, 64])
    transform = Compose([Flipd(["image", "label"], 1), chain])
    [batch] = DataLoader(Dataset([{"image": image, "label": mask}], transform), num_workers=1)
    batch["pred"] = MetaTensor(batch["label"].as_tensor().float()).copy_meta_from(batch["image"])
    [item] = decollate_batch(batch)
    inverse = pickle.loads(pickle.dumps(chain))
    for nearest in (True, False):
        back = Invertd("pred", inverse, orig_keys="image", nearest_interp=nearest)(item)["pred"]
        assert back.shape == mask.shape
        assert set(back.unique().tolist()) == {0, 1, 2} if nearest else len(back.unique()) > 20
        np.testing.assert_allclose(back.affine, Flipd("image", 1)({"image": image})["image"].affine)
        assert _dice(back > 0.5, mask.flip(2) > 0) > 0.95
    whole = transform({"image": image, "label": mask})
    back = Invertd("label", transform)(whole)["label"]
    np.testing.assert_allclose(back.affine, image.affine)
    assert _dice(back > 0, mask > 0) > 0.95


def test_chain_without_moves_changes_nothing() -> None:
    chain, mask = load_chain("image2d").since("normalize"), torch.ones(1, 4, 4)
    assert torch.equal(chain.inverse({"image": mask})["image"], mask)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda image: image.as_tensor(), r"ResizeImage: .* got none; .*MetaTensor\(result\).copy_meta_from\(image\)"),
        (lambda image: MetaTensor(torch.zeros(1, 9, 9)), "ResizeImage: nothing to invert"),
        (lambda image: image[:, ::2, ::2], r"wanted .* \(C, 8, 8\), got \(3, 4, 4\)"),
        (lambda image: {"pred": image}, "nothing to bring back among pred; .* is at 'image'"),
        (lambda image: load_chain("lung_ct", size=[8, 8, 8])(chest()), "got that of ResampleCT"),
    ],
)
def test_what_has_no_way_back_is_an_error(make: Any, message: str) -> None:
    chain = load_chain("image2d", size=[8, 8])
    image = chain(torch.rand(3, 16, 20))
    with pytest.raises(ValueError, match=message):
        chain.inverse(make(image))


@pytest.mark.parametrize("augmentation", ["augment_ct", "augment_image2d"])
def test_random_moves_have_no_way_back(augmentation: str) -> None:
    name = "lung_ct" if augmentation == "augment_ct" else "image2d"
    fixed = load_chain(name, size=[8] * 3) if name == "lung_ct" else load_chain(name, size=[8, 8]).until("normalize")
    image = fixed(chest() if name == "lung_ct" else torch.rand(3, 16, 20))
    both = fixed + load_chain(augmentation)
    with pytest.raises(ValueError, match=r"RandSpatial.Dd has no inverse"):
        both.inverse(image)
    with pytest.raises(ValueError, match="RandSpatial"):
        Invertd("image", Compose([fixed, load_chain(augmentation)]))({"image": image})
    still = fixed + load_chain(augmentation, steps={"spatial": None})
    assert torch.equal(still.inverse(image).as_tensor(), fixed.inverse(image).as_tensor())


def test_slides_have_no_way_back() -> None:
    with pytest.raises(ValueError, match="TileSlided has no inverse"):
        load_chain("slide_tiles").inverse({"image": torch.zeros(2, 3, 8, 8)})


# ---- one axis after the other


def _itk(values: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An image of SimpleITK (LPS) of values (X, Y, Z) at an affine to RAS."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0).astype(np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_resampling_as_simpleitk_does_it(nearest: bool, axes: tuple[int, ...]) -> None:
    coarse, fine = np.eye(4), np.eye(4)
    coarse[:3, :3], coarse[:3, 3] = TILT @ np.diag([3, 4, 5]), [-12, 7, 3]
    fine[:3, :3], fine[:3, 3] = (TILT @ np.diag([-1.1, 0.9, 2]))[:, axes], [15, 9, 6]
    values, size = np.random.default_rng(0).random((9, 8, 7)).astype(np.float32), (30, 25, 12)
    ours = resample_axes(torch.from_numpy(values)[None], torch.from_numpy(np.linalg.inv(coarse) @ fine), size, nearest)[
        0
    ].numpy()
    method = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    theirs = sitk.Resample(_itk(values, coarse), _itk(np.zeros(size), fine), sitk.Transform(), method)
    inside = sitk.Resample(_itk(np.ones_like(values), coarse), theirs, sitk.Transform(), sitk.sitkNearestNeighbor)
    inside = sitk.GetArrayFromImage(inside).T > 0
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_allclose(ours[inside], sitk.GetArrayFromImage(theirs).T[inside], atol=1e-5)
    wider = _itk(np.ones(np.array(values.shape) + 2), coarse @ nib.affines.from_matvec(np.eye(3), [-1] * 3))
    far = sitk.Resample(wider, theirs, sitk.Transform(), sitk.sitkLinear)
    assert not ours[sitk.GetArrayFromImage(far).T == 0].any()


def test_rotated_grids_are_refused() -> None:
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(TILT)
    with pytest.raises(ValueError, match="no common axes"):
        resample_axes(torch.zeros(1, 8, 8, 8), turn, (8, 8, 8), nearest=True)
