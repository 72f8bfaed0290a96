from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from monai.transforms import LoadImage
from scipy.spatial.transform import Rotation

from monai_pipelines.phantoms import SCANNERS, Scanner, thorax_phantom, write_dicom_series

CORNERS = np.array([[0, 0, 0, 1], [3, 0, 0, 1], [0, 5, 0, 1], [0, 0, 4, 1], [3, 5, 4, 1]], dtype=float)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix() * [0.7, 1.3, 2.5]
OBLIQUE[:3, 3] = [11.5, -70.25, 33.0]
AFFINES = {
    "usual": np.array([[-0.8, 0, 0, 90], [0, -0.8, 0, 100], [0, 0, 2.5, -300], [0, 0, 0, 1]]),
    "head first": np.array([[-0.8, 0, 0, 90], [0, -0.8, 0, 100], [0, 0, -2.5, -300], [0, 0, 0, 1]]),
    "coronal": np.array([[-0.8, 0, 0, 90], [0, 0, 2.5, 100], [0, -0.8, 0, -300], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
}


def _volume(shape: tuple[int, int, int] = (7, 9, 6)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 2000, shape).astype(np.int16)


def _by_sitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) HU and the RAS affine."""
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def _by_monai(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    image = LoadImage(reader="PydicomReader")(folder)
    return image.numpy(), image.affine.numpy()


def _by_pydicom(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """By the standard's formula, slices in the order of their instance numbers."""
    files = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda file: file.InstanceNumber)
    row, column = np.reshape(files[0].ImageOrientationPatient, (2, 3)).astype(float)
    positions = np.array([file.ImagePositionPatient for file in files], dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = row * files[0].PixelSpacing[1]
    affine[:3, 1] = column * files[0].PixelSpacing[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(files) - 1)
    affine[:3, 3] = positions[0]
    hu = np.stack(
        [file.pixel_array.T.astype(int) * int(file.RescaleSlope) + int(file.RescaleIntercept) for file in files],
        axis=-1,
    )
    return hu, np.diag([-1, -1, 1, 1]) @ affine


def _assert_same_volume(hu: np.ndarray, affine: np.ndarray, got_hu: np.ndarray, got_affine: np.ndarray) -> None:
    """The other volume may have its slices in reverse."""
    last = np.array([0, 0, hu.shape[2] - 1, 1.0])
    if np.linalg.norm(got_affine[:3, 3] - (affine @ last)[:3]) < 1e-3:
        got_affine = got_affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, hu.shape[2] - 1], [0, 0, 0, 1.0]])
        got_hu = got_hu[:, :, ::-1]
    np.testing.assert_allclose(CORNERS @ got_affine.T, CORNERS @ affine.T, atol=1e-3)
    np.testing.assert_array_equal(got_hu, hu)


@pytest.mark.parametrize("scanner", SCANNERS, ids=[scanner.name for scanner in SCANNERS])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("read", [_by_sitk, _by_monai, _by_pydicom])
def test_read_back(tmp_path: Path, scanner: Scanner, affine: np.ndarray, read) -> None:
    hu = _volume()
    write_dicom_series(tmp_path, hu, affine, scanner=scanner)
    _assert_same_volume(hu, affine, *read(tmp_path))


@pytest.mark.parametrize("scanner", SCANNERS, ids=[scanner.name for scanner in SCANNERS])
@pytest.mark.parametrize("read", [_by_sitk, _by_monai])
def test_phantom_in_other_readers(tmp_path: Path, scanner: Scanner, read) -> None:
    scan = thorax_phantom(2, diseased=False, matrix=48, slice_mm=12, scanner=scanner)
    write_dicom_series(tmp_path, scan.hu, scan.affine, scanner=scanner)
    _assert_same_volume(scan.hu, scan.affine, *read(tmp_path))


def test_files_in_order_and_out_of_order(tmp_path: Path) -> None:
    def places(scanner: Scanner) -> tuple[list[str], np.ndarray]:
        folder = write_dicom_series(tmp_path / scanner.name, _volume(), AFFINES["usual"], scanner=scanner)
        paths = sorted(folder.iterdir())
        return [path.suffix for path in paths], np.array([pydicom.dcmread(path).SliceLocation for path in paths])

    suffixes, feet_first = places(SCANNERS[0])
    assert suffixes == [".dcm"] * 6
    np.testing.assert_allclose(feet_first, -300 + 2.5 * np.arange(6))
    suffixes, hashed = places(SCANNERS[1])
    assert suffixes == [""] * 6
    assert not (np.diff(hashed) > 0).all()
    assert not (np.diff(hashed) < 0).all()
    np.testing.assert_allclose(places(SCANNERS[2])[1], feet_first[::-1])


def test_header(tmp_path: Path) -> None:
    scanner = SCANNERS[1]
    write_dicom_series(tmp_path, _volume(), OBLIQUE, scanner=scanner, patient_id="phantom-0007", scan_id="a")
    files = [pydicom.dcmread(path) for path in tmp_path.iterdir()]
    assert len({file.SOPInstanceUID for file in files}) == 6
    assert len({file.SeriesInstanceUID for file in files}) == 1
    first = files[0]
    assert first.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert (first.Modality, first.PatientID, str(first.PatientName)) == ("CT", "phantom-0007", "phantom-0007")
    assert (first.Rows, first.Columns) == (9, 7)
    np.testing.assert_allclose(np.array(first.PixelSpacing, dtype=float), [1.3, 0.7])
    assert (float(first.SliceThickness), float(first.SpacingBetweenSlices)) == (scanner.thickness_mm, 2.5)
    assert first.PixelPaddingValue == -2000
    assert first.RescaleIntercept + first.PixelPaddingValue == scanner.outside_hu


def test_scans_have_different_uids(tmp_path: Path) -> None:
    uids = set()
    for name in ("a", "b"):
        folder = write_dicom_series(tmp_path / name, _volume(), OBLIQUE, scan_id=name)
        uids |= {pydicom.dcmread(path).SOPInstanceUID for path in folder.iterdir()}
    assert len(uids) == 12


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hu must be \(X, Y, Z\), got shape \(7, 9\)"):
        write_dicom_series(tmp_path, _volume()[:, :, 0], OBLIQUE)
    sheared = OBLIQUE.copy()
    sheared[:3, 2] += 0.5 * sheared[:3, 1]
    with pytest.raises(ValueError, match="at right angles"):
        write_dicom_series(tmp_path, _volume(), sheared)
    unsigned = replace(SCANNERS[0], signed=False, intercept_hu=0)
    with pytest.raises(ValueError, match="stores uint16 from 0 HU on, got -10"):
        write_dicom_series(tmp_path, _volume(), OBLIQUE, scanner=unsigned)
    assert list(tmp_path.iterdir()) == []
