from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from monai.transforms import LoadImage
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless
from scipy.spatial.transform import Rotation

from monai_pipelines.errors import ScanError
from monai_pipelines.phantoms import SCANNERS, Scanner, ThoraxScan, thorax_phantom, write_dicom_series
from monai_pipelines.transforms import LoadCT
from monai_pipelines.transforms.ct.volume import AIR_HU
from tests.transforms.ct.comparing import assert_same_scan, itk_affine, reference_sitk

NIBABEL_DATA = Path(nib.__file__).parent / "tests" / "data"
NUM_PIXEL_BYTES = 48 * 48 * 2
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [12, -20, 31], degrees=True).as_matrix()
Change = Callable[[Dataset, int], None]


@pytest.fixture(scope="session")
def scan() -> ThoraxScan:
    return thorax_phantom(3, diseased=True, matrix=48, slice_mm=24, scanner=SCANNERS[0])


@pytest.fixture
def series(scan: ThoraxScan, tmp_path: Path) -> Path:
    return write_dicom_series(tmp_path / "series", scan.hu, scan.affine, patient_id="Jane Doe")


def rewrite(folder: Path, change: Change) -> None:
    """Change each slice; `index` counts from the feet up."""
    files = {file: pydicom.dcmread(file) for file in folder.iterdir()}
    for index, file in enumerate(sorted(files, key=lambda f: files[f].ImagePositionPatient[2])):
        change(files[file], index)
        files[file].save_as(file)


def _reference_pydicom(folder: Path) -> np.ndarray:
    """HU (X, Y, Z) of an axial series, from the feet up: pydicom's pixels, slope and intercept by hand."""
    headers = sorted((pydicom.dcmread(f) for f in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    planes = [d.pixel_array.T.astype(float) * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in headers]
    return np.stack(planes, axis=-1)


# ---- DICOM series


@pytest.mark.parametrize("scanner", SCANNERS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "place",
    [np.eye(4), np.diag([1, 1, -1, 1]), np.diag([1, 1.7, 1, 1]), OBLIQUE @ np.diag([1.3, 1, 1, 1])],
    ids=["axial", "head to feet", "oblong pixels", "oblique"],
)
def test_series_agrees_with_phantom_simpleitk_and_monai(
    scan: ThoraxScan, tmp_path: Path, place: np.ndarray, scanner: Scanner
) -> None:
    affine = place @ scan.affine
    folder = write_dicom_series(tmp_path / "scan", scan.hu, affine, scanner=scanner)
    volume = LoadCT()(folder)
    assert volume.shape == (1, *scan.hu.shape)
    assert str(volume.dtype) == "torch.int16"
    assert_same_scan(volume, scan.hu, affine)
    image = reference_sitk(folder)
    assert_same_scan(volume, sitk.GetArrayFromImage(image).T, itk_affine(image))
    other = LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True)(folder)
    assert_same_scan(volume, other[0].numpy(), other.affine.numpy())


def test_slices_are_ordered_by_position_alone(scan: ThoraxScan, series: Path) -> None:
    order = np.random.default_rng(0).permutation(scan.hu.shape[2])

    def scramble(header: Dataset, index: int) -> None:
        header.InstanceNumber = int(order[index])
        header.SliceLocation = float(order[index])
        if index == 3:
            del header.InstanceNumber

    rewrite(series, scramble)
    for number, file in enumerate(sorted(series.iterdir())):
        file.rename(series / f"{order[number]:03d}_shuffled")
    assert_same_scan(LoadCT()(series), scan.hu, scan.affine)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    "rescale",
    [lambda i: (1, -1024), lambda i: (1 + i % 3, -1000 - 10 * i), lambda i: (0.37, -811.5), lambda i: (1, -0.5)],
    ids=["integers", "per slice", "fractions", "half"],
)
def test_slope_and_intercept_are_per_slice(
    scan: ThoraxScan, tmp_path: Path, rescale: Callable[[int], tuple[float, float]], signed: bool
) -> None:
    scanner = replace(SCANNERS[0], signed=signed, intercept_hu=-1024)
    series = write_dicom_series(tmp_path / "scan", scan.hu, scan.affine, scanner=scanner)

    def change(header: Dataset, index: int) -> None:
        header.RescaleSlope, header.RescaleIntercept = rescale(index)

    rewrite(series, change)
    volume = LoadCT()(series)
    assert ("differs between slices" in volume.meta["verdict"]) == (rescale(0) != rescale(1))
    np.testing.assert_array_equal(volume[0], np.rint(_reference_pydicom(series)))
    image = sitk.GetArrayFromImage(reference_sitk(series)).T
    np.testing.assert_allclose(volume[0].numpy(), image, atol=0.51)


def test_values_beyond_int16_are_clipped(series: Path) -> None:
    """Padding of -32768 with an intercept of -1024 must not wrap around to bone."""

    def pad(header: Dataset, index: int) -> None:
        pixels = header.pixel_array.copy()
        pixels[0, :2] = -32768, 32767
        header.PixelData = pixels.tobytes()
        header.RescaleIntercept = (-1024, 1024)[index % 2]

    rewrite(series, pad)
    volume = LoadCT()(series)[0]
    assert volume[:2, 0, 0].tolist() == [-32768, 32767 - 1024]
    assert volume[:2, 0, 1].tolist() == [-32768 + 1024, 32767]


def test_compressed_series(scan: ThoraxScan, series: Path) -> None:
    rewrite(series, lambda header, index: header.compress(RLELossless, generate_instance_uid=False))
    assert_same_scan(LoadCT()(series), scan.hu, scan.affine)


def test_other_files_in_the_folder_are_skipped(scan: ThoraxScan, series: Path) -> None:
    (series / "notes.txt").write_text("not an image")
    (series / ".hidden").write_bytes(b"")
    assert_same_scan(LoadCT()(series), scan.hu, scan.affine)


def test_meta_has_no_patient_data(series: Path) -> None:
    meta = LoadCT()(series).meta
    assert set(meta) == {"filename_or_obj", "verdict", "scanner", "affine", "space"}
    assert meta["filename_or_obj"] == str(series)


# ---- single files


def test_one_slice(scan: ThoraxScan, series: Path) -> None:
    file = sorted(series.iterdir())[0]
    affine = scan.affine @ np.diag([1, 1, SCANNERS[0].thickness_mm / scan.affine[2, 2], 1])
    assert_same_scan(LoadCT()(file), scan.hu[:, :, :1], affine)


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_real_dicom_files_of_pydicom(name: str) -> None:
    path = get_testdata_file(name, download=False)
    image = sitk.ReadImage(str(path))
    volume, header = LoadCT()(path), pydicom.dcmread(path)
    wanted = sitk.GetArrayFromImage(image).T
    if "PixelPaddingValue" in header:
        wanted[wanted == header.PixelPaddingValue * header.RescaleSlope + header.RescaleIntercept] = AIR_HU
    np.testing.assert_array_equal(volume[0], wanted)
    np.testing.assert_allclose(volume.affine[:, [0, 1, 3]], itk_affine(image)[:, [0, 1, 3]], atol=1e-4)


def test_hand_worked_corner_of_a_pydicom_file() -> None:
    """First stored pixels 175, 180, 166 with intercept -1024; ImagePositionPatient -158.135803, -179.035797, -75.7."""
    volume = LoadCT()(get_testdata_file("CT_small.dcm", download=False))
    assert volume[0, :3, 0, 0].tolist() == [-849, -844, -858]
    np.testing.assert_allclose(volume.affine[:3, 3], [158.135803, 179.035797, -75.699997], atol=1e-5)
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-0.661468, -0.661468, 5.0]), atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("place", [np.eye(4), OBLIQUE], ids=["axial", "oblique"])
def test_other_formats_agree_with_their_dicom_source(
    scan: ThoraxScan, tmp_path: Path, suffix: str, place: np.ndarray
) -> None:
    folder = write_dicom_series(tmp_path / "scan", scan.hu, place @ scan.affine)
    file = tmp_path / f"scan{suffix}"
    sitk.WriteImage(reference_sitk(folder), str(file))
    dicom = LoadCT()(folder)
    assert_same_scan(LoadCT()(file), dicom[0].numpy(), dicom.affine.numpy())


def test_nifti_of_floats_with_slope(tmp_path: Path) -> None:
    values = np.linspace(-1024, 3000, 60).reshape(3, 4, 5)
    image = nib.Nifti1Image(values, OBLIQUE)
    image.header.set_data_dtype(np.uint8)
    nib.save(image, tmp_path / "a.nii")
    volume = LoadCT()(tmp_path / "a.nii")
    np.testing.assert_allclose(volume[0].numpy(), values, atol=4024 / 255 / 2 + 0.5)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)


def test_real_nifti_of_nibabel() -> None:
    image = nib.load(NIBABEL_DATA / "anatomical.nii")
    assert_same_scan(LoadCT()(NIBABEL_DATA / "anatomical.nii"), image.get_fdata(), image.affine)


def test_plain_and_compressed_nifti_side_by_side(tmp_path: Path) -> None:
    for name, hu in (("x.nii", -5), ("x.nii.gz", 7)):
        nib.save(nib.Nifti1Image(np.full((2, 3, 4), hu, np.int16), np.eye(4)), tmp_path / name)
    assert LoadCT()(tmp_path / "x.nii").unique().tolist() == [-5]
    assert LoadCT()(tmp_path / "x.nii.gz").unique().tolist() == [7]


# ---- bad input


def refused(path: Path, named: Path | None = None) -> str:
    """The error's reason; the error must name the file."""
    with pytest.raises(ScanError) as caught:
        LoadCT()(path)
    assert caught.value.path == str(named or path)
    assert str(caught.value).startswith(f"{named or path}: ")
    return caught.value.reason


def test_no_series(series: Path, tmp_path: Path) -> None:
    assert "no such file or folder; paths in a table are relative" in refused(tmp_path / "nothing")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "got no files; name the series folder itself" in refused(folder)
    (folder / "notes.txt").write_text("not an image")
    assert "got 1 x file that is not DICOM; name the series folder" in refused(folder)
    assert "this is none of them" in refused(folder / "notes.txt")


@pytest.mark.parametrize(
    ("end", "way_out"),
    [
        (60, "copy it again or remove it"),
        (700, "export the series again"),
        (-NUM_PIXEL_BYTES - 3, "export the series again"),
        (-NUM_PIXEL_BYTES // 2, "copy it again"),
        (-1, "copy it again"),
    ],
    ids=["in the preamble", "in the header", "within a tag", "in the pixels", "by a byte"],
)
def test_truncated_dicom(series: Path, end: int, way_out: str) -> None:
    file = sorted(series.iterdir())[4]
    file.write_bytes(file.read_bytes()[:end])
    assert refused(series, named=file).endswith(way_out)
    assert refused(file)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_volume(scan: ThoraxScan, tmp_path: Path, suffix: str, share: float) -> None:
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(scan.hu), str(whole))
    part.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    assert "unreadable" in refused(part)
    assert refused(part).endswith("copy or convert it again")


def test_damaged_compressed_nifti(scan: ThoraxScan, tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(scan.hu, scan.affine), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:3000] + bytes(500) + whole[3500:])
    assert "unreadable NIfTI" in refused(file)


def test_single_slice_series(series: Path) -> None:
    for file in sorted(series.iterdir())[1:]:
        file.unlink()
    assert "wanted a series, got a single slice; to read it alone, name the file" in refused(series)


def drop(name: str) -> Change:
    return lambda header, index: delattr(header, name)


def one(name: str, value: object) -> Change:
    return lambda header, index: setattr(header, name, value) if index == 2 else None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one("Modality", "MR"), "wanted a CT slice, got Modality MR"),
        (drop("ImagePositionPatient"), "ImagePositionPatient: wanted 3 numbers from -100000 to 100000, got none"),
        (drop("ImageOrientationPatient"), "ImageOrientationPatient: wanted 6 numbers from -1.01 to 1.01, got none"),
        (drop("PixelSpacing"), "PixelSpacing: wanted 2 numbers from 0.01 to 20, got none"),
        (one("SamplesPerPixel", 3), "wanted one value per pixel, got a color image"),
    ],
    ids=["MR", "no position", "no orientation", "no spacing", "RGB"],
)
def test_slices_that_are_not_ct(series: Path, change: Change, reason: str) -> None:
    rewrite(series, change)
    with pytest.raises(ScanError) as caught:
        LoadCT()(series)
    assert Path(caught.value.path).parent == series
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("SeriesInstanceUID", "1.2.3", "24.00 to 48.00 mm apart: some are missing"),
        ("Rows", 24, "2 different Rows x Columns: (24, 48), (48, 48); keep one series per folder"),
        ("PixelSpacing", [1, 1], "2 different PixelSpacing"),
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, 1], "2 different ImageOrientationPatient"),
    ],
)
def test_slices_that_differ(series: Path, name: str, value: object, reason: str) -> None:
    rewrite(series, one(name, value))
    assert reason in refused(series)


def test_missing_slice(series: Path) -> None:
    sorted(series.iterdir())[5].unlink()
    assert "24.00 to 48.00 mm apart: some are missing; export the whole series" in refused(series)


def test_duplicate_slice(series: Path) -> None:
    file = shutil.copy(sorted(series.iterdir())[5], series / "again.dcm")
    header = pydicom.dcmread(file)
    header.SOPInstanceUID = "1.2.3"
    header.save_as(file)
    assert "two slices at the same position; remove duplicates" in refused(series)


def test_gantry_tilt(series: Path) -> None:
    """Slices 24 mm apart, shifted by 24 mm * tan(10 degrees)."""

    def tilt(header: Dataset, index: int) -> None:
        x, y, z = (float(v) for v in header.ImagePositionPatient)
        header.ImagePositionPatient = [x, round(y + index * 24 * np.tan(np.deg2rad(10)), 4), z]

    rewrite(series, tilt)
    assert "gantry tilt of 10.0 degrees; read it with tilt='correct'" in refused(series)


def test_small_irregularities_pass(scan: ThoraxScan, series: Path) -> None:
    """Positions written with few digits."""

    def jitter(header: Dataset, index: int) -> None:
        x, y, z = (float(v) for v in header.ImagePositionPatient)
        header.ImagePositionPatient = [round(x, 1), y, round(z, 1)]

    rewrite(series, jitter)
    np.testing.assert_allclose(LoadCT()(series).affine, scan.affine, atol=0.06)


def test_nan(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 4), np.float32)
    values[1, 2, 3], values[0, 0, 0] = np.nan, np.inf
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    assert "2 voxels are NaN or infinite; replace them by -1024" in refused(tmp_path / "a.nii")
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.mha"))
    assert "NaN or infinite voxels; replace" in refused(tmp_path / "a.mha")


def test_real_files_that_are_not_ct_volumes() -> None:
    assert "wanted a CT slice, got Modality MR" in refused(Path(get_testdata_file("MR_small.dcm", download=False)))
    assert "wanted one volume (X, Y, Z), got shape (128, 96, 24, 2)" in refused(NIBABEL_DATA / "example4d.nii.gz")


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 2), (4, 4, 4)], ids=["2D", "4D", "RGB"])
def test_itk_images_that_are_not_volumes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = sitk.Image(shape, sitk.sitkVectorUInt8, 3) if len(shape) == 3 else sitk.Image(shape, sitk.sitkInt16)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    assert "wanted one volume of single values, got" in refused(tmp_path / "a.mha")


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], np.complex64], ids=["RGB", "complex"])
def test_nifti_that_is_not_ct(tmp_path: Path, dtype: object) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), dtype), np.eye(4)), tmp_path / "a.nii")
    assert "wanted one real number per voxel" in refused(tmp_path / "a.nii")
