"""Files of detections: what is written is read again, and lies where it was found."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from monai_pipelines.data.box_files import read_boxes
from monai_pipelines.data.box_scans import scan_grid
from monai_pipelines.errors import ScanError
from monai_pipelines.metrics import Detections, Lesions, detection_hits, froc_curve
from monai_pipelines.phantoms import write_dicom_series
from monai_pipelines.report import write_detections, write_geojson, write_label_map
from monai_pipelines.slides import read_outlines

CLASSES = ["nodule", "=mass, solid"]


def _boxes(rng: np.random.Generator, num: int, dims: int) -> Any:
    low = rng.uniform(-300, 300, (num, dims))
    return np.concatenate([low, low + rng.uniform(0.5, 60, (num, dims))], axis=1).astype(np.float32)


def _rows(dims: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number, count in enumerate((5, 0, 40, 1)):
        labels = rng.integers(0, 2, count)
        found = Detections(_boxes(rng, count, dims), rng.uniform(0, 1, count).astype(np.float32), labels)
        rows.append({"image": f"folder/p{number} é,1.nii.gz", "patient": f"p{number}", "split": "test", "found": found})
    return [*rows, {"image": "bad.nii.gz", "patient": "p9", "split": "test", "skipped": 'truncated, or "so"'}]


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("dims", [2, 3])
def test_boxes_come_back(tmp_path: Path, dims: int) -> None:
    rows = _rows(dims)
    write_detections(tmp_path / "d.csv", rows, CLASSES, threshold=[0.5, None])
    table = read_boxes(tmp_path / "d.csv")
    assert (table.dims, table.problems) == (dims, [])
    assert [image for _, image in table.without] == [rows[1]["image"], "bad.nii.gz"]
    wanted = [
        (row["image"], CLASSES[label], box)
        for row in rows[:-1]
        for box, label in zip(row["found"].boxes, row["found"].labels, strict=True)
    ]
    assert [(row.image, row.name) for row in table.rows] == [(image, name) for image, name, _ in wanted]
    np.testing.assert_allclose([row.box for row in table.rows], [box for *_, box in wanted], atol=1e-3)
    lines = _read(tmp_path / "d.csv")
    assert len(lines) == 48
    assert lines[-1]["skipped"] == rows[-1]["skipped"]
    scores = np.concatenate([row["found"].scores for row in rows[:-1]])
    boxed = [line for line in lines if line["class"]]
    np.testing.assert_allclose([float(line["score"]) for line in boxed], scores, rtol=1e-5)
    for line in boxed:
        assert line["shown"] == str(int(line["class"] == "nodule" and float(line["score"]) >= 0.5))
        assert line["patient"] == line["image"][7:9]


def test_a_scan_is_written_in_lps_with_center_and_diameter(tmp_path: Path) -> None:
    found = Detections([[1, 2, 3, 5, 12, 6]], [0.5])
    write_detections(tmp_path / "d.csv", [{"image": "a", "found": found, "verdict": "series 2 chosen"}], ["nodule"])
    [line] = _read(tmp_path / "d.csv")
    corners = [float(line[f"{axis}_{end}_mm"]) for end in ("min", "max") for axis in "xyz"]
    assert corners == [-5, -12, 3, -1, -2, 6]
    assert [float(line[name]) for name in ("center_x_mm", "center_y_mm", "center_z_mm", "diameter_mm")] == [
        *(-3, -7, 4.5, 10)
    ]
    assert (line["space"], line["verdict"]) == ("LPS", "series 2 chosen")
    assert not {"shown", "hit", "patient", "split"} & line.keys()


def test_nothing_found_at_all(tmp_path: Path) -> None:
    for width in (0, 4, 6):
        found = Detections(np.zeros((0, width)), [])
        write_detections(tmp_path / "d.csv", [{"image": "a", "found": found}], ["nodule"], [0.5])
        table = read_boxes(tmp_path / "d.csv")
        assert (table.rows, [image for _, image in table.without], table.dims) == ([], ["a"], 3 if width == 6 else 2)


def test_hits_by_hand(tmp_path: Path) -> None:
    lesions = Lesions([[0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 24, 24]], [0, 0, 1], [False, True, False])
    boxes = [[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [50, 50, 60, 60], [20, 20, 24, 24], [0, 0, 10, 10]]
    found = Detections(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0, 0, 0, 0, 1, 1])
    rows = [{"image": "a", "found": found, "lesions": lesions}, {"image": "b", "found": found}]
    rows += [{"image": "c", "found": Detections([], []), "lesions": lesions}]
    write_detections(tmp_path / "d.csv", rows, CLASSES)
    hits = ["lesion", "lesion", "ignored", "none", "lesion", "none"]
    assert [line["hit"] for line in _read(tmp_path / "d.csv")] == [*hits, *[""] * 6, ""]


@pytest.mark.parametrize("iou", [None, 0.2])
def test_hits_agree_with_the_froc(iou: float | None) -> None:
    rng = np.random.default_rng(1)
    lesions = [Lesions(_boxes(rng, 30, 2), None, rng.uniform(size=30) < 0.5) for _ in range(5)]
    found = [Detections(_boxes(rng, 60, 2), rng.uniform(size=60)) for _ in range(5)]
    hits = detection_hits(found, lesions, iou=iou)
    curve = froc_curve(found, lesions, iou=iou)
    num_false = sum(hit == "none" for image in hits for hit in image)
    assert 0 < num_false < 300
    assert curve.false_positives_per_image[-1] == num_false / 5
    assert {"lesion", "ignored"} <= {hit for image in hits for hit in image}


def test_wrong_rows(tmp_path: Path) -> None:
    file, found = tmp_path / "d.csv", Detections([[0, 0, 1, 1]], [0.5])
    with pytest.raises(ValueError, match="class names must differ"):
        write_detections(file, [], ["a", "a"])
    with pytest.raises(ValueError, match="wanted 1 thresholds"):
        write_detections(file, [{"image": "a", "found": found}], ["a"], [0.1, 0.2])
    with pytest.raises(ValueError, match="a: wanted detections or the reason"):
        write_detections(file, [{"image": "a"}], ["a"])
    in_3d = Detections([[0, 0, 0, 1, 1, 1]], [0.5])
    with pytest.raises(ValueError, match="6 in others"):
        write_detections(file, [{"image": "a", "found": found}, {"image": "b", "found": in_3d, "lesions": None}], ["a"])
    with pytest.raises(ValueError, match=r"labels must be 0\.\.0"):
        write_detections(file, [{"image": "a", "found": found._replace(labels=[1])}], ["a"])
    assert not list(tmp_path.iterdir())


def test_geojson_in_pixels(tmp_path: Path) -> None:
    found = Detections([[10, 20, 30, 50], [1.5, 2.5, 3.5, 5.5]], [0.75, 0.5], [1, 0])
    names = ["a/b.png", "a b.png", "A_B.png", "../..", "x" * 300 + ".png"]
    rows = [{"image": name, "found": found} for name in names]
    rows += [{"image": "empty", "found": Detections([], [])}, {"image": "bad", "skipped": "truncated"}]
    files = write_geojson(tmp_path / "out", rows, CLASSES)
    assert sorted((tmp_path / "out").iterdir()) == sorted(files.values())
    assert list(files) == [*names, "empty"]
    assert len({file.name.lower() for file in files.values()}) == 6
    assert all(len(file.name) < 200 for file in files.values())
    assert json.loads(files["empty"].read_text()) == {"type": "FeatureCollection", "features": []}
    content = json.loads(files["a b.png"].read_text())
    assert [one["properties"]["classification"]["name"] for one in content["features"]] == CLASSES[::-1]
    assert [one["properties"]["measurements"]["score"] for one in content["features"]] == [0.75, 0.5]
    [outline, _] = read_outlines(files["a b.png"])
    assert outline[0].tolist() == [[20, 10], [50, 10], [50, 30], [20, 30], [20, 10]]
    with pytest.raises(ValueError, match="wanted boxes in 2D"):
        write_geojson(tmp_path, [{"image": "a", "found": Detections([[0, 0, 0, 1, 1, 1]], [0.5])}], ["a"])


# ---- label maps


def _rotated(*degrees: float) -> Any:
    turns = []
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turns.append(turn)
    return turns[0] @ turns[1] @ turns[2]


GRIDS = {
    "straight": np.diag([1.0, 1, 1]),
    "flipped": np.diag([-0.7, -0.7, 2.5]),
    "all flipped": np.diag([-0.7, 0.9, -2.5]),
    "axes swapped": np.diag([0.8, 1.5, 1.1])[[2, 0, 1]],
    "oblique": _rotated(20, -15, 40) @ np.diag([0.7, 0.8, 1.5]),
    "oblique and flipped": _rotated(-30, 10, 25) @ np.diag([-1.0, 0.7, -2.0]),
}
SHAPE = (60, 50, 40)


def _write_scan(folder: Path, kind: str, linear: Any) -> tuple[Path, Any]:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array([12.3, -45.6, 78.9]) - linear @ (np.array(SHAPE) - 1) / 2
    values = np.zeros(SHAPE, np.int16)
    if kind == "dicom":
        return write_dicom_series(folder / "dicom", values, affine), affine
    if kind == "nii.gz":
        nib.save(nib.Nifti1Image(values, affine), folder / "ct.nii.gz")
        return folder / "ct.nii.gz", affine
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    lps = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(folder / f"ct.{kind}"))
    return folder / f"ct.{kind}", affine


def _reference_label(boxes: Any, affine: Any, shape: Any) -> Any:
    """Every voxel against every box, the lowest number wins."""
    centers = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    label = np.zeros(shape, int)
    for number in range(len(boxes), 0, -1):
        box = boxes[number - 1]
        label[((centers >= box[:3]) & (centers < box[3:])).all(-1)] = number
    return label


@pytest.mark.parametrize(
    ("kind", "grid"),
    [*(("nii.gz", grid) for grid in GRIDS), ("dicom", "flipped"), ("dicom", "oblique"), ("nrrd", "oblique and flipped"),
     ("mha", "all flipped")],
)  # fmt: skip
def test_labels_lie_in_their_boxes(tmp_path: Path, kind: str, grid: str) -> None:
    scan, affine = _write_scan(tmp_path, kind, GRIDS[grid])
    rng = np.random.default_rng(0)
    centers = (
        np.array([12.3, -45.6, 78.9]) + np.array([[-9, -9, -9], [9, 9, 9], [-9, 9, 0]]) + rng.uniform(0, 1, (3, 3))
    )
    half = rng.uniform(4, 7, (3, 3))
    boxes = np.concatenate([centers - half, centers + half], axis=1)
    order = [2, 0, 1]  # not that of the scores
    found = Detections(boxes[order], np.array([0.9, 0.8, 0.7])[order], [0, 1, 0])
    label = write_label_map(tmp_path / "found.nii.gz", found, CLASSES, scan)
    image: Any = nib.load(tmp_path / "found.nii.gz")
    known = scan_grid(scan)
    assert known is not None
    np.testing.assert_allclose(image.affine, known[0], atol=1e-4)
    np.testing.assert_allclose(image.affine, affine, atol=1e-3)
    assert (image.shape, image.get_data_dtype()) == (SHAPE, np.uint8)
    np.testing.assert_array_equal(np.asarray(image.dataobj), label)
    np.testing.assert_array_equal(label, _reference_label(boxes, known[0], SHAPE))
    voxel = np.abs(image.affine[:3, :3]).sum(axis=1)  # its extent along each axis
    for number, box in enumerate(boxes, start=1):
        at = nib.affines.apply_affine(image.affine, np.argwhere(label == number))
        assert len(at)
        assert (np.abs(at.min(axis=0) - box[:3]) <= voxel).all()
        assert (np.abs(at.max(axis=0) - box[3:]) <= voxel).all()
    listed = json.loads((tmp_path / "found.json").read_text())
    assert [(one["label"], one["class"], one["score"]) for one in listed] == [
        (1, CLASSES[1], 0.9), (2, CLASSES[0], 0.8), (3, CLASSES[0], 0.7)
    ]  # fmt: skip
    assert [one["voxels"] for one in listed] == [(label == number).sum() for number in (1, 2, 3)]


def test_the_higher_score_wins_and_thresholds_hide(tmp_path: Path) -> None:
    scan, _ = _write_scan(tmp_path, "nii.gz", GRIDS["straight"])
    low = np.array([0, -50, 80.0])
    boxes = [[*low, *low + 6], [*low, *low + 4], [*low + 10, *low + 12]]
    found = Detections(boxes, [0.5, 0.9, 0.8], [0, 0, 1])
    label = write_label_map(tmp_path / "a.nii", found, CLASSES, scan)
    assert [int((label == n).sum()) for n in (1, 2, 3)] == [64, 8, 216 - 64]
    label = write_label_map(tmp_path / "a.nii", found, CLASSES, scan, [0.6, None])
    assert np.unique(label).tolist() == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.nii", "ct.nii.gz"]
    assert [one["voxels"] for one in json.loads((tmp_path / "a.json").read_text())] == [64]
    label = write_label_map(tmp_path / "none.nii", Detections([], []), CLASSES, scan)
    assert not label.any()
    many = Detections(np.tile(boxes[0], (300, 1)), np.linspace(1, 0, 300))
    write_label_map(tmp_path / "a.nii", many, CLASSES, scan)
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.uint16  # type: ignore[attr-defined]


def test_a_box_between_thick_slices_is_not_lost(tmp_path: Path) -> None:
    scan, affine = _write_scan(tmp_path, "nii.gz", np.diag([1.0, 1, 8]))
    center = nib.affines.apply_affine(affine, [20, 20, 20.4])
    half = np.array([5, 5, 2])
    found = Detections([[*center - half, *center + half]], [0.5])
    where = np.argwhere(write_label_map(tmp_path / "a.nii.gz", found, CLASSES, scan))
    assert (where.min(axis=0).tolist(), where.max(axis=0).tolist()) == ([15, 15, 20], [24, 24, 20])
    outside = Detections([[900, 900, 900, 901, 901, 901]], [0.5])
    assert not write_label_map(tmp_path / "a.nii.gz", outside, CLASSES, scan).any()
    assert json.loads((tmp_path / "a.json").read_text())[0]["voxels"] == 0


def test_label_maps_of_real_scans(tmp_path: Path, shared_data: Path) -> None:
    for name in ("ct_3mm.nii.gz", "A0002/series-3"):
        grid = scan_grid(shared_data / "ct" / name)
        assert grid is not None
        affine, shape = grid
        center = nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
        half = np.array([12, 15, 20])
        found = Detections([[*center - half, *center + half]], [0.5])
        write_label_map(tmp_path / "found.nii.gz", found, CLASSES, shared_data / "ct" / name)
        image: Any = nib.load(tmp_path / "found.nii.gz")
        at = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj)))
        voxel = np.abs(affine[:3, :3]).sum(axis=1)
        assert (np.abs(at.min(axis=0) - center + half) <= voxel).all()
        assert (np.abs(at.max(axis=0) - center - half) <= voxel).all()


def test_wrong_label_maps(tmp_path: Path) -> None:
    scan, _ = _write_scan(tmp_path, "nii.gz", GRIDS["straight"])
    found = Detections([[0, 0, 0, 1, 1, 1]], [0.5])
    with pytest.raises(ValueError, match=r"wanted a file \.nii or \.nii\.gz, got a\.mha"):
        write_label_map(tmp_path / "a.mha", found, CLASSES, scan)
    with pytest.raises(ValueError, match="got 2D"):
        write_label_map(tmp_path / "a.nii", Detections([[0, 0, 1, 1]], [0.5]), CLASSES, scan)
    with pytest.raises(ScanError, match="header cannot be read"):
        write_label_map(tmp_path / "a.nii", found, CLASSES, tmp_path / "missing.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["ct.nii.gz"]
