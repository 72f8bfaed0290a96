"""Boxes move as the image does: known shapes are drawn, moved with the image, and measured in it."""

from __future__ import annotations

from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_pipelines.transforms import (
    PlaceBoxes,
    PlaceBoxesd,
    RandSpatial2D,
    RandSpatial2Dd,
    RandSpatial3D,
    RandSpatial3Dd,
    ResampleCT,
    ResizeImage,
)
from monai_pipelines.transforms.boxes import BOX_KEYS, boxes_to_original, clip_boxes, find_box_affine, move_boxes

TILT = Rotation.from_euler("xyz", [12, -20, 25], degrees=True).as_matrix()
SCANS = {
    "straight": np.diag([1.0, 1, 1]),
    "anisotropic": np.diag([0.7, 0.7, 3]),
    "flipped": np.diag([-1.0, -1, 2]),
    "oblique": TILT * [0.8, 0.8, 2.5],
    "oblique, flipped, permuted": (TILT * [-0.8, 0.8, -2])[:, [2, 0, 1]],
}


def _scan(name: str, size: int = 40) -> MetaTensor:
    matrix = SCANS[name]
    affine = nib.affines.from_matvec(matrix, -matrix @ np.full(3, size / 2) + [10, -20, 300])
    return MetaTensor(torch.zeros(1, size, size, size), affine=torch.tensor(affine))


def _ball(image: MetaTensor, center: Any, radius: float) -> MetaTensor:
    """Whether the center of a voxel lies within a ball in the world."""
    places = nib.affines.apply_affine(image.affine.numpy(), np.stack(np.indices(image.shape[1:]), -1))
    inside = np.linalg.norm(places - center, axis=-1) < radius
    return MetaTensor(torch.tensor(inside[None]).float(), affine=image.affine)


def _around(values: Any) -> np.ndarray:
    """The box around voxels above one half."""
    found = np.argwhere(np.asarray(values)[0] > 0.5)
    return np.concatenate([found.min(axis=0), found.max(axis=0) + 1])


def _reference_edges(boxes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Boxes around ellipsoids, from 40,000 points on each."""
    dims = boxes.shape[1] // 2
    points = np.random.default_rng(0).normal(size=(40000, dims))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    low, high = boxes[:, None, :dims], boxes[:, None, dims:]
    moved = nib.affines.apply_affine(affine, (low + high) / 2 + (high - low) / 2 * points)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_move_boxes_against_points(dims: int) -> None:
    rng = np.random.default_rng(dims)
    low = rng.uniform(0, 50, (7, dims))
    boxes = np.concatenate([low, low + rng.uniform(3, 20, (7, dims))], axis=1)
    affine = nib.affines.from_matvec(rng.normal(size=(dims, dims)), rng.normal(size=dims))
    np.testing.assert_allclose(move_boxes(boxes, affine), _reference_edges(boxes, affine), atol=0.3)


def test_move_boxes_by_hand() -> None:
    flip_and_scale = [[0, -2, 100], [3, 0, 0], [0, 0, 1]]  # (row, column) -> (100 - 2 column, 3 row)
    assert move_boxes(np.array([[1, 10, 4, 20]]), np.array(flip_and_scale)).tolist() == [[60, 3, 80, 12]]
    assert move_boxes(np.empty((0, 6)), np.eye(4)).shape == (0, 6)
    with pytest.raises(ValueError, match=r"wanted boxes \(N, 2 d\) and an affine"):
        move_boxes(np.zeros((1, 4)), np.eye(4))
    with pytest.raises(ValueError, match=r"wanted \(N, 4\) in 2D or \(N, 6\)"):
        move_boxes(np.zeros((1, 5)), np.eye(4))


@pytest.mark.parametrize(("name", "spacing_mm"), list(product(SCANS, [(1, 1, 1), (0.6, 0.9, 2.2)])))
def test_boxes_of_scans_there_and_back(name: str, spacing_mm: tuple[float, ...]) -> None:
    """A ball in the world, the box around its voxels, and the box back in the world."""
    scan = _scan(name)
    voxel_mm = np.linalg.norm(scan.affine.numpy()[:3, :3], axis=0)
    center, radius = scan.affine.numpy()[:3] @ [22, 18, 21, 1], 7.0
    world = np.array([[*(center - radius), *(center + radius)]])
    tensors = {"itself": scan, "resampled": ResampleCT(spacing_mm=spacing_mm)(scan)}
    if name == "straight":
        tensors["cropped"] = ResampleCT(spacing_mm=spacing_mm, size=(36, 36, 20))(scan)
    for kind, tensor in tensors.items():
        drawn = _around(_ball(tensor, center, radius))
        item = {"image": tensor, "boxes": world, "box_labels": np.array([0]), "box_ignore": np.array([False])}
        out = PlaceBoxesd("image")(item)
        assert out["boxes"].dtype == torch.float32
        assert np.abs(out["boxes"][0].numpy() - drawn).max() < 1.01, kind
        back = boxes_to_original(out["boxes"], out["box_affine"])
        assert np.abs(back.numpy() - world).max() < 0.01 * voxel_mm.min(), kind


def test_edges_are_half_a_voxel_beyond_the_centers() -> None:
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, -3, 4, 1])))
    boxes, *_ = PlaceBoxes()(image, torch.tensor([[-1.0, -4.5, -2, 1, 1.5, 2]]), [0], [False])
    assert boxes.tolist() == [[0, 0, 0, 1, 2, 1]], "the first voxel's center is at 0 mm"


@pytest.mark.parametrize(("fit", "size"), list(product(["stretch", "pad", "crop"], [(40, 30), (90, 200)])))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.3, 0.2)])
def test_boxes_of_images_there_and_back(fit: Any, size: tuple[int, int], spacing: tuple[float, float]) -> None:
    pixels = torch.zeros(1, 100, 140)
    pixels[0, 40:64, 60:90] = 1
    affine = torch.diag(torch.tensor([*spacing, 1, 1]))
    image = MetaTensor(pixels, affine=affine, meta={"original_affine": affine})
    resized = ResizeImage(size, fit)(image)
    item = {"image": resized, "boxes": np.array([[40, 60, 64, 90]]), "box_labels": [2], "box_ignore": [False]}
    out = PlaceBoxesd("image")(item)
    assert np.abs(out["boxes"][0].numpy() - _around(resized)).max() < 1
    back = boxes_to_original(out["boxes"], out["box_affine"])
    torch.testing.assert_close(back, torch.tensor([[40.0, 60, 64, 90]]), atol=1e-3, rtol=0)


def test_boxes_from_a_cache_are_placed_by_the_box_affine() -> None:
    image = ResizeImage((32, 40), "pad")(torch.zeros(1, 100, 140))
    boxes = {"boxes": np.array([[40.0, 60, 64, 90]]), "box_labels": np.array([2]), "box_ignore": np.array([False])}
    placed = PlaceBoxesd("image")({"image": image, **boxes})
    without = PlaceBoxesd("image")({"image": image})
    assert set(without) == {"image", "box_affine"}
    cached = PlaceBoxesd("image")({"image": image.as_tensor(), "box_affine": without["box_affine"], **boxes})
    assert torch.equal(cached["boxes"], placed["boxes"])


def test_boxes_that_leave_the_image() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [-5, 0, 5, 10], [-8, 0, 2, 10], [-10, 0, 0, 10], [30, 30, 40, 40]])
    kept, labels, ignore = clip_boxes(boxes, np.arange(5), np.array([True] + [False] * 4), (30, 30), 0.3)
    assert kept.tolist() == [[0, 0, 10, 10], [0, 0, 5, 10], [0, 0, 2, 10]]
    assert labels.tolist() == [0, 1, 2]
    assert ignore.tolist() == [True, False, True]
    empty = clip_boxes(torch.zeros(0, 4), np.empty(0), np.empty(0), (30, 30), 0.3)
    assert [tuple(part.shape) for part in empty] == [(0, 4), (0,), (0,)]
    assert [part.dtype for part in empty] == [torch.float32, torch.int64, torch.bool]
    with pytest.raises(ValueError, match=r"wanted \(N, 6\) with N labels"):
        clip_boxes(boxes, np.arange(5), np.zeros(5), (30, 30, 30), 0.3)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"PlaceBoxes: min_visible is a share of a box, wanted 0..1, got 30"):
        PlaceBoxes(30)
    with pytest.raises(ValueError, match="wanted one key"):
        PlaceBoxesd(["image", "mask"])
    with pytest.raises(ValueError, match=r"wanted \(C, H, W\) or \(C, X, Y, Z\), got shape \(4, 4\)"):
        find_box_affine(torch.zeros(4, 4))


# ---- random steps

ALL_2D = {"flip_prob": 0.5, "rotation_prob": 1, "rotation_deg": 25, "scale_prob": 1, "shift_prob": 1, "fill": 0.0}
STILL = {f"{part}_prob": 0 for part in ("rotation", "scale", "shift", "flip", "elastic")}
MOVING = {"rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "flip_prob": 0.5}
CASES_3D: dict[str, dict[str, Any]] = {
    "affine": {"rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "flip_prob": 0.5, "elastic_prob": 0},
    "flips": {**STILL, "flip_prob": 0.5},
    "elastic": {**STILL, "elastic_prob": 1},
    "all": {"rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "flip_prob": 0.5, "elastic_prob": 1},
    "all, cropped": {
        "rotation_prob": 1,
        "scale_prob": 1,
        "flip_prob": 0.5,
        "elastic_prob": 1,
        "crop_size": (60, 52, 58),
    },
}


def _ellipsoid(shape: tuple[int, ...], center: Any, half: Any) -> torch.Tensor:
    axes = np.indices(shape).T + 0.5
    return torch.tensor((((axes - center) / half) ** 2).sum(axis=-1).T < 1)[None].float()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES_3D)
def test_boxes_follow_random_changes_of_volumes(case: str, seed: int) -> None:
    shape, center, half = (64, 56, 60), np.array([30.0, 27, 33]), np.array([9.0, 6, 12])
    image = _ellipsoid(shape, center, half)
    item = {"image": image, "boxes": torch.tensor(np.array([[*(center - half), *(center + half)]]))}
    item |= {"box_labels": torch.tensor([3]), "box_ignore": torch.tensor([False]), "box_affine": torch.eye(4)}
    step = RandSpatial3Dd("image", **CASES_3D[case])
    out = step.set_random_state(seed)(item)
    assert np.abs(out["boxes"][0].numpy() - _around(out["image"])).max() < 1
    assert out["box_labels"].tolist() == [3]
    assert item["box_affine"].equal(torch.eye(4)), "the input is unchanged"
    if CASES_3D[case].get("elastic_prob") == 0:
        back = boxes_to_original(out["boxes"], out["box_affine"])[0]
        assert (back - item["boxes"][0]).abs().max() < 1.5, "in the input again, about the same"
        torch.testing.assert_close(back[:3] + back[3:], torch.tensor(2 * center, dtype=torch.float32))


@pytest.mark.parametrize("seed", range(3))
def test_boxes_follow_steep_deformations(seed: int) -> None:
    shape, center, half = (96, 96, 96), np.array([40.0, 50, 45]), np.array([12.0, 9, 7])
    item = {"image": _ellipsoid(shape, center, half), "boxes": np.array([[*(center - half), *(center + half)]])}
    item |= {"box_labels": [0], "box_ignore": [False]}
    step = RandSpatial3Dd("image", **MOVING, elastic_prob=1, elastic_std_voxels=6, elastic_points=5)
    out = step.set_random_state(seed)(item)
    assert np.abs(out["boxes"][0].numpy() - _around(out["image"])).max() < 1.2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("crop_size", [None, (70, 60)])
def test_boxes_follow_random_changes_of_images(seed: int, crop_size: tuple[int, int] | None) -> None:
    center, half = np.array([38.0, 45]), np.array([10.0, 16])
    boxes = np.array([[*(center - half), *(center + half)]])
    item = {"image": _ellipsoid((80, 90), center, half), "boxes": boxes, "box_labels": [1], "box_ignore": [False]}
    out = RandSpatial2Dd("image", crop_size=crop_size, **ALL_2D).set_random_state(seed)(item)
    assert np.abs(out["boxes"][0].numpy() - _around(out["image"])).max() < 1


def test_quarter_turns_move_boxes_exactly() -> None:
    image = torch.zeros(1, 20, 20)
    image[0, 3:9, 5:17] = 1
    item = {"image": image, "boxes": np.array([[3, 5, 9, 17]]), "box_labels": [1], "box_ignore": [False]}
    step = RandSpatial2Dd("image", rotate90_prob=1, flip_prob=0.5, rotation_prob=0, scale_prob=0, shift_prob=0)
    for seed in range(6):
        out = step.set_random_state(seed)(item)
        np.testing.assert_allclose(out["boxes"][0], _around(out["image"]), atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_moves_its_boxes_as_its_images_one_by_one(dims: int) -> None:
    knobs: dict[str, Any] = {"elastic_prob": 0.5} if dims == 3 else {}
    kind, size = (RandSpatial3Dd, (24, 20, 22)) if dims == 3 else (RandSpatial2Dd, (30, 26))
    images = torch.rand(3, 1, *size)
    boxes = [torch.full((n, 2 * dims), 8.0) + torch.tensor([0.0] * dims + [6.0] * dims) for n in (2, 0, 1)]
    items = [
        {
            "image": image,
            "boxes": box,
            "box_labels": torch.arange(len(box)),
            "box_ignore": torch.zeros(len(box)).bool(),
            "box_affine": torch.eye(dims + 1),
        }
        for image, box in zip(images, boxes, strict=True)
    ]
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in items[0]}
    batch |= {"image": images, "box_affine": torch.eye(dims + 1).repeat(3, 1, 1)}
    whole = kind("image", **knobs).set_random_state(0)(batch)
    one_by_one = kind("image", **knobs).set_random_state(0)
    for number, item in enumerate(items):
        expected = one_by_one(item)
        for key in (*BOX_KEYS, "box_affine"):
            torch.testing.assert_close(whole[key][number], expected[key])


@pytest.mark.parametrize("step", [RandSpatial2D(**ALL_2D), RandSpatial3D(elastic_prob=0)])
def test_box_affine_follows_the_affine(step: Any) -> None:
    """The box_affine that a random step updates is the one of the image that it returns."""
    kind = RandSpatial2Dd if step.spatial_dims == 2 else RandSpatial3Dd
    knobs = ALL_2D if step.spatial_dims == 2 else CASES_3D["affine"]
    size = (30, 40, 20)[: step.spatial_dims]
    image = MetaTensor(torch.rand(1, *size), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    item = {"image": image, "box_affine": find_box_affine(image)}
    out = kind("image", **knobs).set_random_state(1)(item)
    torch.testing.assert_close(out["box_affine"], find_box_affine(out["image"]))
