"""Patches around lesions and anywhere: the voxels that were drawn are where the boxes say."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.transforms import RandCropLesion, RandCropLesiond
from monai_pipelines.transforms.boxes import find_box_affine, move_boxes

AFFINE = torch.tensor(nib.affines.from_matvec(np.diag([0.7, -0.8, 2.5]), [10, -20, 300]))
BOXES = torch.tensor([[3.0, 4, 5, 7, 9, 9], [20.0, 25, 10, 24, 29, 14], [18.0, 2, 20, 22, 6, 24]])
LABELS, IGNORE = torch.tensor([0, 1, 1]), torch.tensor([False, False, True])


def _item(dims: int = 3) -> dict[str, Any]:
    """Lesion k has brightness k + 1."""
    size = (30, 32, 28)[:dims]
    boxes = BOXES[:, [*range(dims), *range(3, 3 + dims)]]
    image = torch.zeros(1, *size)
    for k, box in enumerate(boxes.int().tolist()):
        image[(0, *(slice(a, b) for a, b in zip(box[:dims], box[dims:], strict=True)))] = k + 1
    return {"image": MetaTensor(image, affine=AFFINE), "boxes": boxes, "box_labels": LABELS, "box_ignore": IGNORE}


@pytest.mark.parametrize("dims", [2, 3])
def test_a_patch_holds_a_lesion_and_its_boxes_lie_on_it(dims: int) -> None:
    item, seen = _item(dims), Counter[int]()
    if dims == 3:
        item["box_affine"] = find_box_affine(item["image"])
    crop = RandCropLesiond("image", [12] * dims, lesion_prob=1).set_random_state(0)
    corners = set()
    for _ in range(60):
        out = crop(item)
        whole = out["boxes"][(out["boxes"][:, dims:] - out["boxes"][:, :dims] >= 4).all(1) & ~out["box_ignore"]]
        assert len(whole)
        for box, ignore in zip(out["boxes"].int().tolist(), out["box_ignore"].tolist(), strict=True):
            inside = out["image"][(0, *(slice(a, b) for a, b in zip(box[:dims], box[dims:], strict=True)))]
            assert ignore or len({*inside.flatten().tolist()}) == 1
            seen[int(inside.max())] += 1
        corners.add(crop.step.start)
        if dims == 3:
            source = move_boxes(out["boxes"], out["box_affine"])
            torch.testing.assert_close(source, move_boxes(out["boxes"], find_box_affine(out["image"])))
    assert min(seen[1], seen[2]) > 15, "both classes, one lesion of each that counts"
    assert len(corners) > 25


def test_without_an_aim_and_without_a_lesion_a_patch_lies_anywhere() -> None:
    crop = RandCropLesion([10, 10, 10], lesion_prob=0).set_random_state(0)
    bare = RandCropLesion([10, 10, 10], lesion_prob=1).set_random_state(1)
    ignored = RandCropLesion([10, 10, 10], lesion_prob=1).set_random_state(2)
    item = _item()
    image, *boxes = item.values()
    for step, given in (
        (crop, boxes),
        (bare, [torch.zeros(0, 6), torch.zeros(0).long(), torch.zeros(0).bool()]),
        (ignored, [*boxes[:2], torch.ones(3).bool()]),
    ):
        starts = []
        for _ in range(300):
            patch, *_ = step(image, *given)
            assert patch.shape == (1, 10, 10, 10)
            starts.append(step.start)
        assert np.array(starts).min(axis=0).tolist() == [0, 0, 0]
        assert np.array(starts).max(axis=0).tolist() == [20, 22, 18]


def test_a_lesion_larger_than_the_patch_and_at_the_border() -> None:
    image = torch.zeros(1, 20, 20, 20)
    crop = RandCropLesion([6, 6, 6], lesion_prob=1).set_random_state(0)
    starts = set()
    for _ in range(100):
        _, boxes, _, ignore = crop(image, [[-3.0, 5, 19, 4, 15, 20]], [0], [False])
        starts.add(crop.start)
        assert boxes[0].tolist()[1:3] == [0, 5], "all of the patch along the large axis, the last voxel"
        assert boxes[0].tolist()[4:] == [6, 6]
    assert {start[0] for start in starts} == {0}
    assert {start[1] for start in starts} == {5, 6, 7, 8, 9}
    assert {start[2] for start in starts} == {14}
    assert bool(ignore[0]) == (4 * 6 * 1 / (4 * 10 * 1) < 0.3)


def test_a_small_image_is_padded_at_the_end() -> None:
    item = _item()
    patch, boxes, _, _ = RandCropLesion([40, 12, 40], 1, fill=-1).set_random_state(0)(*item.values())
    assert patch.shape == (1, 40, 12, 40)
    assert bool((patch[:, 30:] == -1).all())
    assert bool((patch[:, :, :, 28:] == -1).all())
    assert float(patch[:, :30, :, :28].min()) == 0
    assert float(boxes.max()) < 30


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"wanted a size of 2 or 3 numbers above 0 and lesion_prob in 0..1, got \[8\]"):
        RandCropLesion([8])
    with pytest.raises(ValueError, match=r"got .* and 2"):
        RandCropLesion([8, 8], lesion_prob=2)
    with pytest.raises(ValueError, match="RandCropLesion: min_visible is a share of a box"):
        RandCropLesion([8, 8], min_visible=30)
    with pytest.raises(ValueError, match=re.escape("a patch of (8, 8) wants (C, *size), got (1, 30, 32, 28)")):
        RandCropLesion([8, 8])(*_item().values())
    with pytest.raises(ValueError, match="wanted one key"):
        RandCropLesiond(["image", "mask"], [8, 8])
