"""Images with boxes from the cohort to the detector's input: cached, cut into patches, batched, augmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_pipelines import load_chain
from monai_pipelines.data import ArrayDataset, DetectionSplits, PrepareDetection, make_loader, read_detection_cohort
from monai_pipelines.data.box_dataset import DetectionDataset, LesionPatches
from monai_pipelines.data.split import Cohort
from monai_pipelines.transforms import RandCropLesiond
from monai_pipelines.transforms.boxes import boxes_to_original

CHAIN = {"spacing_mm": [2, 2, 2], "window_hu": [-1000, 1000]}
NUM_WITH = 3  # of ten patients


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of several sizes; bright cubes of 12 mm in three of ten for training."""
    folder = tmp_path_factory.mktemp("cubes")
    rows, boxes = ["image,patient,split"], ["image,x_min_mm,y_min_mm,z_min_mm,x_max_mm,y_max_mm,z_max_mm,space,ignore"]
    for k, split in enumerate(["train"] * 10 + ["validation", "test"]):
        values = np.random.default_rng(k).integers(-900, -800, (24 + 2 * (k % 3), 24, 20)).astype(np.int16)
        if k < NUM_WITH or split != "train":
            values[5:11, 8:14, 10:16] = 900
            boxes.append(f"{k}.nii,{10 - 1},{16 - 1},{20 - 1},{22 - 1},{28 - 1},{32 - 1},RAS,0")
            boxes.append(f"{k}.nii,0,0,0,4,4,4,RAS,1")
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), folder / f"{k}.nii")
        rows.append(f"{k}.nii,p{k},{split}")
    (folder / "table.csv").write_text("\n".join(rows))
    (folder / "boxes.csv").write_text("\n".join(boxes))
    return folder


@pytest.fixture(scope="module")
def cohort(folder: Path) -> Cohort:
    return read_detection_cohort(folder, one_class="cube")


def _dataset(cohort: Cohort, cache_dir: Path | None = None, **options: Any) -> DetectionDataset:
    return DetectionDataset(cohort.train, load_chain("lung_ct_detection", **CHAIN), cache_dir, **options)


@pytest.mark.parametrize("cached", [False, True])
def test_boxes_lie_on_the_cubes_and_come_from_the_table(cohort: Cohort, cached: bool, tmp_path: Path) -> None:
    dataset = _dataset(cohort, tmp_path if cached else None)
    for item, row in zip(dataset, cohort.train, strict=True):
        shown = item["boxes"][~item["box_ignore"]]
        bright = np.argwhere(np.asarray(item["image"])[0] > 0.9)
        assert len(shown) == (len(bright) > 0)
        if len(shown):
            around = [*bright.min(axis=0), *bright.max(axis=0) + 1]
            np.testing.assert_allclose(shown[0], around, atol=0.01)
        np.testing.assert_array_equal(item["lesions"].boxes, row["boxes"])
        back = boxes_to_original(item["boxes"], item["box_affine"])
        np.testing.assert_allclose(back, row["boxes"], atol=1e-3)
    assert dataset.num_lesions == [int((~row["box_ignore"]).sum()) for row in cohort.train]
    if cached:  # another table of boxes, the same scans
        moved = [{**row, "boxes": row["boxes"] + 2} for row in cohort.train]
        again = DetectionDataset(moved, load_chain("lung_ct_detection", **CHAIN), tmp_path)
        shift = {
            round(float((new["boxes"] - old["boxes"]).max()), 3)
            for new, old in zip(again, dataset, strict=True)
            if len(old["boxes"])
        }
        assert shift == {1.0}


def test_unlabeled_scans_have_only_the_affine(cohort: Cohort) -> None:
    bare = [{key: row[key] for key in ("image", "name")} for row in cohort.train[:2]]
    dataset = DetectionDataset(bare, load_chain("lung_ct_detection", **CHAIN))
    assert set(dataset[0]) == {"image", "name", "box_affine"}
    batch = next(iter(make_loader(dataset, 2)))
    images, targets = PrepareDetection()(batch)
    assert (len(images), targets) == (2, None)


def test_patches_of_mostly_empty_scans(cohort: Cohort) -> None:
    splits = DetectionSplits(
        cohort, load_chain("lung_ct_detection", **CHAIN), crop=RandCropLesiond("image", [12, 12, 12], lesion_prob=1)
    )
    assert isinstance(splits.train, LesionPatches)
    assert isinstance(splits.test, DetectionDataset)
    prepare = PrepareDetection().for_training(load_chain("augment_ct", elastic_prob=0, shift_voxels=1, flip_prob=0.5))
    for sampling in ("shuffle", "weighted", "lesions"):
        num = dict.fromkeys(("with", "without"), 0)
        loader = make_loader(splits.train, 5, sampling)
        for _ in range(20):
            for batch in loader:
                images, targets, args, kwargs = prepare(batch, "cpu")
                assert images.shape == (10, 1, 12, 12, 12)
                assert args == (targets,)
                assert kwargs == {}
                for image, target in zip(images, targets, strict=True):
                    boxes = target.boxes[~target.ignore].round().int().tolist()
                    num["with" if boxes else "without"] += 1
                    for x, y, z, x2, y2, z2 in boxes:
                        assert float(image[0, x:x2, y:y2, z:z2].mean()) > 0.5
        share = num["with"] / sum(num.values())
        assert share == pytest.approx({"shuffle": 0.3}.get(sampling, 0.5), abs=0.12)


def test_scans_of_several_sizes_are_a_list_in_evaluation_and_an_error_in_training(cohort: Cohort) -> None:
    dataset = _dataset(cohort)
    batch = next(iter(make_loader(dataset, len(dataset))))
    images, targets = PrepareDetection()(batch, "cpu")
    assert [tuple(image.shape) for image in images] == [tuple(item["image"].shape) for item in dataset]
    assert len(targets) == len(dataset)
    with pytest.raises(ValueError, match=r"a batch has images of several sizes, such as .*: train on patches"):
        PrepareDetection().for_training(None)(batch, "cpu")


def test_wrong_arguments(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="wanted a chain with one step PlaceBoxesd, such as lung_ct_detection, got 0"):
        DetectionDataset(cohort.train, load_chain("lung_ct_detection", steps={"boxes": None}, **CHAIN))
    with pytest.raises(ValueError, match="num_patches must be 1 or more, got 0"):
        LesionPatches(_dataset(cohort), None, 0)


def test_sampling_by_lesions_is_for_detectors() -> None:
    with pytest.raises(ValueError, match="sampling 'lesions' wants a data set of a detector"):
        make_loader(ArrayDataset(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), [0, 1, 0, 1]), 2, "lesions")
