"""The boxes beside phantom cohorts enclose the lesions."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_pipelines.data import read_detection_cohort
from monai_pipelines.phantoms import write_chest_xray_cohort, write_lung_ct_cohort
from monai_pipelines.transforms import LoadCT
from tests.phantoms.written_files import hash_files, read_rows


@pytest.mark.parametrize(("lesion_mm", "matrix", "slice_mm"), [((20, 40), 96, 5), ((5, 12), 160, 2)])
def test_lesions_of_scans_lie_in_their_boxes(
    lesion_mm: tuple[float, float], matrix: int, slice_mm: float, tmp_path: Path
) -> None:
    table = write_lung_ct_cohort(
        tmp_path / "cohort",
        6,
        seed=1,
        matrix=matrix,
        slice_mm=slice_mm,
        lesion_mm=lesion_mm,
        num_workers=1,
        progress=False,
    )
    cohort = read_detection_cohort(table, one_class="lesion")
    truth = {row["image"] for row in read_rows(table.parent / "truth/lesions.csv")}
    items = [*cohort.train, *cohort.validation, *cohort.test]
    assert {item["name"] for item in items if len(item["boxes"])} == truth
    assert 0 < len(truth) < len(items)
    kinds = read_rows(table.parent / "boxes.csv")
    for item in items:
        if not len(item["boxes"]):
            continue
        scan = LoadCT()(item["image"])
        places = nib.affines.apply_affine(scan.affine.numpy(), np.stack(np.indices(scan.shape[1:]), -1))
        for box, kind in zip(item["boxes"], [row for row in kinds if row["image"] == item["name"]], strict=True):
            size = box[3:] - box[:3]
            assert (size > lesion_mm[0] - 0.1).all()
            assert (size < lesion_mm[1] + 0.1).all()
            if kind["class"] == "ground_glass":
                continue
            inside = ((places > box[:3] + 0.3 * size) & (places < box[3:] - 0.3 * size)).all(axis=-1)
            if inside.any():
                assert np.median(scan[0].numpy()[inside]) > -250, "its core is solid"


def test_boxes_of_xrays(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    table = write_chest_xray_cohort(folder, 24, seed=2, multilabel=True, size=64, num_workers=1, progress=False)
    boxes, truth = read_rows(folder / "boxes.csv"), read_rows(folder / "truth/boxes.csv")
    assert [list(row.values()) for row in boxes] == [list(row.values()) for row in truth]
    cohort = read_detection_cohort(table)
    assert cohort.classes == ("effusion", "nodule", "opacity")
    items = [*cohort.train, *cohort.validation, *cohort.test]
    assert sum(len(item["boxes"]) for item in items) == len(boxes)
    for item in items:
        assert {cohort.classes[k] for k in item["box_labels"]} == {
            row["class"] for row in boxes if row["image"] == item["name"]
        }
    assert any(not len(item["boxes"]) for item in items)


def test_boxes_do_not_change_with_the_number_of_processes(tmp_path: Path) -> None:
    one, two = (
        hash_files(write_chest_xray_cohort(tmp_path / str(n), 4, size=64, num_workers=n, progress=False).parent)
        for n in (1, 2)
    )
    assert one == two
