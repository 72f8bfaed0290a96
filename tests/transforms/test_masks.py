"""Masks follow their image: on its grid, by the nearest neighbor, with their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_pipelines import load_chain
from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import PlaceMask, ResizeImage
from tests.transforms.contract_rows import AFFINE, BLOB_MM, chest


def _ball(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    at = nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))
    return (np.linalg.norm(at - BLOB_MM, axis=-1) < 25).astype(np.uint8) * 7


def _center_mm(values: Any, affine: Any) -> np.ndarray:
    return nib.affines.apply_affine(np.asarray(affine), np.argwhere(np.asarray(values)).mean(axis=0))


@pytest.mark.parametrize("kind", ["file", "file of another grid", "array", "tensor", "MetaTensor"])
def test_label_of_a_scan_in_any_form(kind: str, tmp_path: Path) -> None:
    affine, shape = AFFINE, chest().shape[1:]
    if kind == "file of another grid":
        affine = AFFINE @ np.diag([-0.5, 2, 1.0, 1])
        affine[:3, 3] += AFFINE[:3, 0] * (shape[0] - 1)
        shape = (2 * shape[0], shape[1] // 2, shape[2])
    values: Any = _ball(affine, shape)
    if kind.startswith("file"):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / "label.nii.gz")
        label: Any = tmp_path / "label.nii.gz"
    else:
        label = {"array": values[None], "tensor": torch.from_numpy(values[None])}.get(kind)
        label = MetaTensor(torch.from_numpy(values[None]), affine=torch.from_numpy(affine)) if label is None else label
    chain = load_chain("lung_ct", keys=["image", "label"], size=[64, 64, 64], masking="channel")
    out = chain({"image": chest(), "label": label})
    assert out["image"].shape == (2, 64, 64, 64)
    assert out["label"].shape == (1, 64, 64, 64)
    assert set(np.unique(out["label"])) == {0, 7}
    torch.testing.assert_close(out["label"].affine, out["image"].affine)
    assert np.linalg.norm(_center_mm(out["label"][0], out["label"].affine) - BLOB_MM) < 3
    assert set(chain({"image": chest()})) == {"image", "lungs", "shortcut"}, "a scan to be predicted has none"


@pytest.mark.parametrize("name", ["image2d", "xray", "histology_tile", "fundus", "xray_detection"])
@pytest.mark.parametrize("kind", ["gray", "palette", "RGB", "1 bit", "array"])
def test_mask_of_an_image_in_any_form(name: str, kind: str, tmp_path: Path) -> None:
    rows, columns = np.indices((90, 120))
    pixels = np.where((rows - 45) ** 2 + (columns - 60) ** 2 < 40**2, 90, 0).astype(np.uint8)
    pixels[30:50, 50:60] = 250
    values = (pixels == 250).astype(np.uint8) * (1 if kind == "1 bit" else 5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = Image.fromarray(values)
    if kind == "palette":
        picture.putpalette([255, 0, 0] * 256)
    elif kind == "RGB":
        picture = picture.convert("RGB")
    elif kind == "1 bit":
        picture = Image.fromarray(values.astype(bool))
    picture.save(tmp_path / "mask.png")
    mask: Any = values[None] if kind == "array" else str(tmp_path / "mask.png")
    out = load_chain(name, keys=["image", "mask"], size=[64, 80])({"image": str(tmp_path / "a.png"), "mask": mask})
    assert out["mask"].shape == (1, 64, 80)
    assert set(np.unique(out["mask"])) == {0, values.max()}
    bright = np.argwhere(np.asarray(out["image"][0]) > 0.9 * float(out["image"][0].max()))
    assert np.abs(bright.mean(axis=0) - np.argwhere(np.asarray(out["mask"][0])).mean(axis=0)).max() < 0.6


@pytest.mark.parametrize(
    ("name", "shape", "knobs"),
    [
        ("augment_ct", (24, 24, 24), {"shift_prob": 1, "fill": 0.5, "brightness_prob": 1, "noise_prob": 1}),
        ("augment_image2d", (48, 48), {"shift_prob": 1, "fill": 0.5, "flip_prob": 0.5, "brightness_prob": 1}),
        ("augment_image2d", (48, 48), {"rotate90_prob": 0.75, "crop_size": [40, 40]}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32])
def test_augmentation_moves_masks_as_the_image(
    name: str, shape: tuple[int, ...], knobs: dict[str, Any], dtype: torch.dtype
) -> None:
    """Where the mask is, the image is bright; whatever is outside is no class."""
    at = np.indices(shape) - np.array(shape).reshape(-1, *[1] * len(shape)) * 0.4
    mask = torch.from_numpy(np.abs(at).max(axis=0) < 7)[None].to(dtype)
    image = 0.9 * mask.float()
    chain = load_chain(name, keys=["image", "mask"], rotation_prob=1, **knobs)
    for seed in range(4):
        out = chain.set_random_state(seed)({"image": image, "mask": mask.clone()})  # type: ignore[attr-defined]
        assert out["mask"].dtype == dtype
        assert set(out["mask"].unique().tolist()) == {0, 1}
        assert out["mask"].shape == out["image"].shape
        inside = out["mask"] > 0
        assert out["image"][inside].mean() > out["image"][~inside].mean() + 0.3
        alone = load_chain(name, rotation_prob=1, **knobs).set_random_state(seed)(image)  # type: ignore[attr-defined]
        assert torch.equal(out["image"], alone), "the mask changes nothing about the image"


def test_masks_through_both_chains() -> None:
    chain = load_chain("lung_ct", keys=["image", "label"], size=[32] * 3) + load_chain("augment_ct", mask_keys="label")
    label = MetaTensor(torch.from_numpy(_ball(AFFINE, chest().shape[1:])[None]), affine=torch.from_numpy(AFFINE))
    out = chain({"image": chest(), "label": label})
    assert out["label"].shape == out["image"].shape
    assert set(out["label"].unique().tolist()) == {0, 7}


def test_wrong_masks(tmp_path: Path) -> None:
    image = ResizeImage((8, 8))(torch.rand(3, 16, 20))
    with pytest.raises(ValueError, match=r"wanted .* \(C, 16, 20\), got \(1, 8, 8\)"):
        PlaceMask()(image, np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match=r"\(C, 48, 60, 40\), got \(48, 60, 40\); one with an affine may have any"):
        PlaceMask()(chest(), np.zeros((48, 60, 40)))
    with pytest.raises(ValueError, match="no common axes"):
        PlaceMask()(chest(), MetaTensor(torch.zeros(1, 48, 60, 40)))
    Image.fromarray(np.arange(16 * 20 * 3, dtype=np.uint8).reshape(16, 20, 3)).save(tmp_path / "colors.png")
    with pytest.raises(ScanError, match=r"colors\.png: wanted a mask of one channel, got 3"):
        PlaceMask()(image, tmp_path / "colors.png")
    with pytest.raises(ScanError, match=r"nothing\.png: unreadable mask \(FileNotFoundError\)"):
        PlaceMask()(image, str(tmp_path / "nothing.png"))
    with pytest.raises(ValueError, match="a mask belongs to one slide"):
        load_chain("slide_tiles", keys=["image", "mask"])
