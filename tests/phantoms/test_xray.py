from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_voi_lut
from scipy.ndimage import gaussian_filter, map_coordinates

from monai_pipelines.phantoms import ChestXray, chest_xray, write_chest_xray_cohort
from monai_pipelines.phantoms.canvas import Tubes
from monai_pipelines.phantoms.chest import FINDINGS, draw_chest, paint_chest
from monai_pipelines.phantoms.dicom import write_dicom_xray
from monai_pipelines.phantoms.xray import Beam
from tests.phantoms.written_files import read_rows

SMALL = {"size": 64, "progress": False}
AP = Beam(1200.0, 0.03, -0.04, (5.0, -10.0), 2.0, (90, 100))


def _stored_as(path: Path) -> str:
    return path.suffix if path.suffix != ".dcm" else pydicom.dcmread(path).PhotometricInterpretation


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chest_xray_cohort(tmp_path_factory.mktemp("xrays"), 16, seed=3, num_workers=1, **SMALL)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("findings")
    return write_chest_xray_cohort(folder, 24, seed=3, multilabel=True, num_workers=1, **SMALL)


def test_table(cohort: Path) -> None:
    rows = read_rows(cohort)
    assert list(rows[0]) == ["image", "label", "patient", "view"]
    assert len(rows) == 18
    label = {row["patient"]: row["label"] for row in rows}
    assert Counter(label.values()) == {"normal": 8, "pneumonia": 8}
    assert all(row["label"] == label[row["patient"]] for row in rows)
    assert {row["view"] for row in rows} == {"AP", "PA"}


def test_file_type_does_not_reveal_the_class(cohort: Path) -> None:
    first = [row for row in read_rows(cohort) if Path(row["image"]).stem.endswith("_1")]
    counts = Counter((row["label"], _stored_as(cohort.parent / row["image"])) for row in first)
    kinds = ("MONOCHROME1", "MONOCHROME2", ".png", ".jpeg")
    assert counts == {(label, kind): 2 for label in ("normal", "pneumonia") for kind in kinds}


def test_boxes_follow_the_labels(cohort: Path, findings: Path) -> None:
    boxes = read_rows(cohort.parent / "truth/boxes.csv")
    assert list(boxes[0]) == ["image", "finding", "x", "y", "width", "height"]
    with_boxes = {box["image"] for box in boxes if box["finding"] == "opacity"}
    assert with_boxes == {row["image"] for row in read_rows(cohort) if row["label"] == "pneumonia"}
    assert {box["finding"] for box in boxes} <= {"opacity", "effusion"}
    for row in read_rows(findings):
        names = {
            box["finding"] for box in read_rows(findings.parent / "truth/boxes.csv") if box["image"] == row["image"]
        }
        assert "|".join(name for name in FINDINGS if name in names) == row["label"].replace("No Finding", "")


def test_each_finding_is_in_a_third_and_they_come_together(findings: Path) -> None:
    label = {row["patient"]: row["label"].split("|") for row in read_rows(findings)}
    assert Counter(name for names in label.values() for name in names if name in FINDINGS) == dict.fromkeys(FINDINGS, 8)
    assert {len(names) for names in label.values()} >= {1, 2}
    assert ["No Finding"] in label.values()


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("seed", range(3))
def test_box_is_where_the_finding_changed_the_image(finding: str, seed: int) -> None:
    without, with_it = chest_xray(seed, size=128), chest_xray(seed, (finding,), size=128)
    assert without.boxes == []
    assert with_it.signal.shape == without.signal.shape
    assert {box.finding for box in with_it.boxes} == {finding}
    change = gaussian_filter(with_it.signal - without.signal, 1)
    inside = np.zeros(change.shape, dtype=bool)
    for box in with_it.boxes:
        inside[box.y : box.y + box.height, box.x : box.x + box.width] = True
    assert 0 < inside.mean() < 0.6
    assert inside.flat[np.argmax(change)]
    assert change[inside].mean() > change[~inside].mean() + 0.02


def test_dense_is_white_and_the_heart_on_the_right() -> None:
    signals = [chest_xray(seed, size=64).signal for seed in range(4)]
    for signal in signals:
        rows, columns = signal.shape
        chest = slice(rows // 3, 2 * rows // 3)
        assert signal[chest, columns // 2 - 3 : columns // 2 + 3].mean() > signal[chest, 12:22].mean() + 0.2
    left, right = (
        np.mean([s[len(s) // 2 : int(0.7 * len(s)), half].mean() for s in signals])
        for half in (slice(20, 30), slice(34, 44))
    )
    assert right > left


def test_projection_by_hand() -> None:
    beam = Beam(1000.0, 0.0, 0.0, (0.0, 0.0), 2.0, (101, 101))
    rows, columns, enlarged = beam.project(np.array([[0, 0, 0], [30, 0, 40], [30, 200, 40], [30, -200, 40.0]]))
    np.testing.assert_allclose(enlarged, [1, 1, 1.25, 1 / 1.2])
    np.testing.assert_allclose(rows, [50, 30, 25, 50 - 20 / 1.2])
    np.testing.assert_allclose(columns, [50, 35, 50 - 15 * 1.25, 50 - 15 / 1.2])
    behind = beam._replace(source_mm=-1000.0)
    np.testing.assert_allclose(behind.project(np.array([[30, 200, 40.0]]))[2], 1 / 1.2)


def _reference_integral(beam: Beam, volume: np.ndarray, axes: list[np.ndarray], row: int, column: int) -> float:
    """Integrates along one ray in small steps, in HU x mm along y."""
    depth = np.arange(axes[1][0], axes[1][-1], 0.5)
    enlarged = beam.source_mm / (beam.source_mm - depth)
    x = ((beam.shape[1] - 1) / 2 - column) * beam.pixel_mm + beam.center_mm[0] - beam.yaw * depth
    z = ((beam.shape[0] - 1) / 2 - row) * beam.pixel_mm + beam.center_mm[1] - beam.pitch * depth
    places = [(at - axis[0]) / (axis[1] - axis[0]) for at, axis in zip((x / enlarged, depth, z / enlarged), axes)]  # noqa: B905
    return float(map_coordinates(volume, places, order=1).sum() * 0.5)


@pytest.mark.parametrize("beam", [AP, AP._replace(source_mm=-1800.0)])
def test_volume_is_summed_along_the_rays(beam: Beam) -> None:
    axes = [np.linspace(-60, 60, 31), np.linspace(-50, 50, 21), np.linspace(-50, 60, 28)]
    noise = np.random.default_rng(0).normal(size=(31, 21, 28)).astype(np.float32)
    volume = 500 + 300 * gaussian_filter(noise, 2) * 8
    image = beam.through_volume(volume, tuple(np.ix_(*axes)))
    for row, column in ((30, 40), (45, 50), (50, 62), (60, 35)):
        wanted = _reference_integral(beam, volume, axes, row, column)
        edges = (volume[:, 0].mean() + volume[:, -1].mean()) / 2 * 5
        assert image[row, column] == pytest.approx(wanted + edges, rel=0.04)


@pytest.mark.parametrize("radius_mm", [1.0, 9.0])
def test_tubes_keep_their_volume_and_chord(radius_mm: float) -> None:
    radius = np.array([radius_mm])
    tube = Tubes(np.array([[-30, 0, -35.0]]), np.array([[30, 0, 45.0]]), radius, radius)
    image = AP.through_tubes(tube, np.array([2.0]))
    assert image.sum() * AP.pixel_mm**2 == pytest.approx(2 * np.pi * radius_mm**2 * 100, rel=0.03)
    if radius_mm > 5:
        row, column, _ = AP.project(np.array([[0, 0, 5.0]]))
        assert map_coordinates(image, [row, column], order=1)[0] == pytest.approx(2 * 2 * radius_mm, rel=0.02)


def test_findings_lie_in_the_lungs_and_are_denser() -> None:
    for seed in range(3):
        canvas, added = paint_chest(draw_chest(np.random.default_rng(seed), FINDINGS))
        assert {kind for kind, _, _ in added} == set(FINDINGS)
        for _, box, hu in added:
            assert hu.min() >= -1e-3
            assert hu.max() > 150
            assert canvas.hu[box][hu > 150].max() < 500


def _reference_window(stored: np.ndarray, center: float, width: float) -> np.ndarray:
    """DICOM PS3.3 C.11.2.1.2.1, to 0..1."""
    shown = (stored - (center - 0.5)) / (width - 1) + 0.5
    shown[stored <= center - 0.5 - (width - 1) / 2] = 0
    shown[stored > center - 0.5 + (width - 1) / 2] = 1
    return shown


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_shows_the_signal(photometric: str, tmp_path: Path) -> None:
    signal = np.linspace(-0.4, 1.4, 35 * 41, dtype=np.float32).reshape(35, 41)
    write_dicom_xray(tmp_path / "a.dcm", ChestXray(signal, "AP", 1.25, []), photometric, "phantom-0007", "1")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    assert (file.Rows, file.Columns, file.BitsStored, file.PixelRepresentation) == (35, 41, 12, 0)
    stored = file.pixel_array
    assert 0 <= stored.min() < stored.max() <= 4095
    shown = _reference_window(stored.astype(float), float(file.WindowCenter), float(file.WindowWidth))
    by_pydicom = apply_voi_lut(stored, file) / 4095
    if photometric == "MONOCHROME1":
        shown, by_pydicom = 1 - shown, 1 - by_pydicom
    np.testing.assert_allclose(shown, np.clip(signal, 0, 1), atol=0.6 / 2400)
    np.testing.assert_allclose(by_pydicom, shown, atol=1e-6)
    assert (file.PatientID, file.ViewPosition, file.Modality) == ("phantom-0007", "AP", "CR")
    np.testing.assert_allclose(np.array(file.ImagerPixelSpacing, dtype=float), 1.25)


def test_files_match_their_names(cohort: Path) -> None:
    uids = []
    for row in read_rows(cohort):
        path = cohort.parent / row["image"]
        if path.suffix == ".dcm":
            file = pydicom.dcmread(path)
            assert (file.PatientID, file.ViewPosition) == (row["patient"], row["view"])
            assert file.Columns == 64
            uids.append(file.SOPInstanceUID)
        else:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.width) == (path.suffix[1:].upper(), "L", 64)
    assert len(set(uids)) == len(uids) > 4


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_patients must be at least 2, got 1"):
        write_chest_xray_cohort(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="size must be at least 64 columns, got 32"):
        write_chest_xray_cohort(tmp_path / "a", 2, size=32)
    with pytest.raises(ValueError, match=r"must be of opacity, nodule, effusion, got \['oedema'\]"):
        chest_xray(0, ("oedema",))
    assert not (tmp_path / "a").exists()
