"""Detection chains: the boxes of files lie on the lesions in the tensor, and come back to where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_pipelines import load_chain
from monai_pipelines.data import PreparedDataset, read_detection_cohort
from monai_pipelines.data.box_files import read_boxes
from monai_pipelines.data.box_scans import join_slices, scan_series, slice_uids
from monai_pipelines.transforms import LoadXray, PlaceBoxesd
from monai_pipelines.transforms.boxes import BOX_KEYS, boxes_to_original
from tests.dicom_files import write_image

CENTER, RADIUS = np.array([12.0, -25, 140]), 8.0
WORLD = np.array([[*(CENTER - RADIUS), *(CENTER + RADIUS)]])
TILT = Rotation.from_euler("xyz", [10, -15, 20], degrees=True).as_matrix()
SCANS = {
    "straight": np.diag([1.0, 1, 2.5]),
    "flipped": np.diag([-1.0, -1, 2.5]),
    "oblique, flipped, permuted": (TILT * [-0.9, 0.9, -2])[:, [2, 0, 1]],
}


def _scan(file: Path, matrix: np.ndarray) -> str:
    """A ball of tissue in air."""
    shape = (70, 60, 50)
    affine = nib.affines.from_matvec(matrix, CENTER - matrix @ [40, 28, 22])
    places = nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))
    hu = np.where(np.linalg.norm(places - CENTER, axis=-1) < RADIUS, 400, -1000)
    nib.save(nib.Nifti1Image(hu.astype(np.int16), affine), file)
    return str(file)


def _around(values: Any) -> np.ndarray:
    found = np.argwhere(np.asarray(values)[0] > (values.min() + values.max()).item() / 2)
    return np.concatenate([found.min(axis=0), found.max(axis=0) + 1])


def _item(image: str, boxes: np.ndarray) -> dict[str, Any]:
    num = len(boxes)
    return {"image": image, "boxes": boxes, "box_labels": np.zeros(num, np.int64), "box_ignore": np.zeros(num, bool)}


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.8, 1.2, 2)])
def test_boxes_of_a_ct(name: str, spacing_mm: tuple[float, ...], tmp_path: Path) -> None:
    chain = load_chain("lung_ct_detection", spacing_mm=spacing_mm)
    out = chain(_item(_scan(tmp_path / "scan.nii", SCANS[name]), WORLD))
    assert out["image"].dtype == torch.float32
    voxel = np.linalg.norm(SCANS[name], axis=0).max() / np.min(spacing_mm)
    assert np.abs(out["boxes"][0].numpy() - _around(out["image"])).max() < 0.5 + voxel / 2
    back = boxes_to_original(out["boxes"], out["box_affine"]).numpy()
    assert np.abs(back - WORLD).max() < 0.01
    augmented = load_chain("augment_ct", steps={"noise": None}, elastic_prob=1, flip_prob=0.5).set_random_state(3)(out)
    assert np.abs(augmented["boxes"][0].numpy() - _around(augmented["image"])).max() < 1 + voxel / 2
    without = chain(_item(str(tmp_path / "scan.nii"), np.empty((0, 6))))
    assert without["boxes"].shape == (0, 6)


def _picture(folder: Path, kind: str) -> str:
    pixels = np.zeros((100, 140), np.uint8)
    pixels[40:64, 60:90] = 200
    if kind == "dicom":
        return str(write_image(folder / "x.dcm", pixels, PixelSpacing=[0.3, 0.2]))
    if kind == "turned":  # stored on its side, upright by its EXIF orientation
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(pixels)).save(folder / "x.jpg", exif=exif, quality=95)
        return str(folder / "x.jpg")
    Image.fromarray(pixels).save(folder / "x.png")
    return str(folder / "x.png")


@pytest.mark.parametrize("kind", ["png", "dicom", "turned"])
@pytest.mark.parametrize("knobs", [{"size": [64, 64]}, {"size": [200, 90], "fit": "crop"}, {"fit": "stretch"}])
def test_boxes_of_an_xray(kind: str, knobs: dict[str, Any], tmp_path: Path) -> None:
    image, box = _picture(tmp_path, kind), np.array([[40.0, 60, 64, 90]])
    chain = load_chain("xray_detection", **knobs)
    out = chain(_item(image, box))
    assert np.abs(out["boxes"][0].numpy() - _around(out["image"])).max() < 1.5
    torch.testing.assert_close(
        boxes_to_original(out["boxes"], out["box_affine"]), torch.tensor(box).float(), atol=1e-3, rtol=0
    )
    fixed = chain.until("normalize")(_item(image, box))
    augmented = load_chain("augment_image2d", fill=0.0, steps={"color": None}).set_random_state(1)(fixed)
    assert np.abs(augmented["boxes"][0].numpy() - _around(augmented["image"])).max() < 12, "rotated corners stand out"


def test_prediction_needs_no_boxes(tmp_path: Path) -> None:
    out = load_chain("xray_detection")({"image": _picture(tmp_path, "png")})
    assert set(out) == {"image", "box_affine"}
    assert load_chain("xray_detection")(_picture(tmp_path, "png")).shape == (1, 512, 512)


@pytest.mark.parametrize("name", ["lung_ct_detection", "xray_detection"])
def test_cached_images_get_the_boxes_of_the_table(name: str, tmp_path: Path) -> None:
    """Boxes never come from the cache, so that a corrected table is what counts."""
    scan = name == "lung_ct_detection"
    image = _scan(tmp_path / "scan.nii", SCANS["flipped"]) if scan else _picture(tmp_path, "dicom")
    item = _item(image, WORLD if scan else np.array([[40.0, 60, 64, 90]]))
    chain = load_chain(name, spacing_mm=[2, 2, 2]) if scan else load_chain(name)
    for _ in range(2):
        data = PreparedDataset([item], chain, tmp_path / "cache", outputs=("image", "box_affine"))
        placed = PlaceBoxesd("image")(data[0])
        for key in (*BOX_KEYS, "box_affine"):
            torch.testing.assert_close(placed[key], chain(item)[key])


# ---- real images


def test_real_xrays_with_boxes(shared_data: Path) -> None:
    """Opacities are brighter than the rest of the picture's middle."""
    cohort = read_detection_cohort(shared_data / "chest_xray_boxes", patient_pattern=r"/(\d+)_")
    items = [*cohort.train, *cohort.validation, *cohort.test]
    assert (len(items), sum(len(item["boxes"]) for item in items)) == (24, 23)
    assert sum(not len(item["boxes"]) for item in items) == 8
    chain = load_chain("xray_detection", size=[256, 200], mean=0, std=1)
    for item in items:
        out = chain(item)
        assert len(out["boxes"]) == len(item["boxes"])
        back = boxes_to_original(out["boxes"], out["box_affine"])
        torch.testing.assert_close(back, torch.tensor(item["boxes"]).float(), atol=1e-2, rtol=0)
        original = LoadXray()(item["image"])
        for box, placed in zip(item["boxes"].astype(int), out["boxes"].round().int().tolist(), strict=True):
            shown = out["image"][0, placed[0] : placed[2], placed[1] : placed[3]].mean()
            stored = original[0, box[0] : box[2], box[1] : box[3]].mean()
            assert abs(float(shown) - float(stored)) < 0.02, "the same part of the picture"


def test_real_ct_with_boxes_on_slices(shared_data: Path, tmp_path: Path) -> None:
    """Three series of two patients, annotated slice by slice, and a scan without a lesion."""
    ct = shared_data / "ct"
    rows = {"A0001/series-2": "train", "ct_3mm.nii.gz": "train", "A0002/series-2": "val", "A0002/series-3": "test"}
    lines = [f"{ct / name},{name},{split}" for name, split in rows.items()]
    (tmp_path / "table.csv").write_text("\n".join(["image,patient,split", *lines]))
    cohort = read_detection_cohort(tmp_path, ct / "annotation")
    chain = load_chain("lung_ct_detection", spacing_mm=[2, 2, 4], window_hu=[-1000, 200])
    first, healthy = cohort.train
    assert healthy["boxes"].shape == (0, 6)
    for item, num_slices in ((first, 11), (cohort.validation[0], 8), (cohort.test[0], 10)):
        file = next(Path(item["image"]).iterdir())
        thick = float(pydicom.dcmread(file, stop_before_pixels=True).SliceThickness)
        assert item["boxes"].shape == (1, 6)
        assert item["boxes"][0, 5] - item["boxes"][0, 2] == pytest.approx(num_slices * thick)
        out = chain(item)
        low, high = out["boxes"][0, :3].int().tolist(), out["boxes"][0, 3:].int().tolist()
        middle = tuple(slice((5 * a + 3 * b) // 8, (3 * a + 5 * b) // 8) for a, b in zip(low, high, strict=True))
        assert out["image"][0][middle].mean() > 0.45, "a tumor in the box; lung is at 0.2"


def test_real_boxes_on_one_of_two_series(shared_data: Path) -> None:
    """Of two series in a folder those slices count that are read."""
    series = scan_series(shared_data / "ct/A0002")
    assert series is not None
    rows = read_boxes(shared_data / "ct/annotation/A0002").rows
    joined = join_slices(series, [row for row in rows if row.image in slice_uids(series)])
    assert len(joined) == 1
    assert len(series.slices) == 30
