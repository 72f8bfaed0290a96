from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import LoadCT
from tests.transforms.ct import spoiling, spoiling_formats
from tests.transforms.ct.comparing import assert_same_scan, itk_affine, reference_sitk


def test_real_mixed_series(shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two kernels of one study in one folder: one is chosen and the other named; by UID each is read."""
    folders = [shared_data / "ct" / "A0002" / name for name in ("series-2", "series-3")]
    for folder in folders:
        for file in folder.iterdir():
            shutil.copy(file, tmp_path / f"{folder.name}_{file.name}")
    chosen = LoadCT()(tmp_path)
    pattern = r"series (\d+) \(30 slices every 8 mm, kernel (\w+)\) chosen, not series (\d+) \(30 slices every 8 mm, .*"
    number, kernel, other = re.fullmatch(pattern, chosen.meta["verdict"]).groups()
    assert number != other
    assert chosen.meta["verdict"] in caplog.text
    with pytest.raises(ScanError, match=r"2 series: series .*; choose one by number, UID or description"):
        LoadCT(series="error")(tmp_path)
    found = []
    for folder in folders:
        header = pydicom.dcmread(next(folder.iterdir()))
        image = reference_sitk(folder)
        wanted = sitk.GetArrayFromImage(image).T
        for policy in (header.SeriesInstanceUID, int(header.SeriesNumber)):
            volume = LoadCT(series=policy)(tmp_path)
            assert_same_scan(volume, wanted, itk_affine(image))
        found.append(np.array_equal(volume, chosen))
        assert found[-1] == (str(header.SeriesNumber) == number)
        assert not found[-1] or header.ConvolutionKernel == kernel
    assert sum(found) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        spoiling_formats.enhanced(),
        spoiling_formats.enhanced(syntax=RLELossless),
        spoiling.compress(RLELossless),
        spoiling.compress(JPEGLosslessSV1, "JPEG"),
        spoiling.compress(JPEG2000Lossless, "JPEG2000"),
        spoiling.gzipped,
        spoiling.big_endian,
        spoiling.edit(spoiling.overlay_bits),
        spoiling.edit(spoiling.signed_12_bits),
    ],
    ids=["enhanced", "enhanced RLE", "RLE", "JPEG", "JPEG 2000", "gzip", "big endian", "overlay", "signed 12 bits"],
)
def test_a_real_series_in_other_forms(shared_data: Path, tmp_path: Path, spoil: spoiling.Spoil) -> None:
    """Every eighth slice of a real series, its values limited to 12 bits."""
    folder = tmp_path / "scan"
    folder.mkdir()
    headers = [pydicom.dcmread(file) for file in (shared_data / "ct" / "A0001" / "series-2").iterdir()]
    for index, header in enumerate(sorted(headers, key=lambda h: h.ImagePositionPatient[2])[::8]):
        hu = header.pixel_array * header.RescaleSlope + header.RescaleIntercept
        header.PixelData = np.clip(hu + 1024, 0, 2047 + 1024).astype("<u2").tobytes()
        header.PixelRepresentation, header.BitsStored, header.HighBit = 0, 16, 15
        header.RescaleIntercept = -1024
        for name in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
            if name in header:
                delattr(header, name)
        header.save_as(folder / f"{index:02d}.dcm")
    healthy = LoadCT()(folder)
    changed = LoadCT()(spoil(folder) or folder)
    assert_same_scan(changed, healthy[0].numpy(), healthy.affine.numpy())
