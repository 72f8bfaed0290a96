"""What libraries say while a file is read does not reach the terminal: it is dropped, or part of the verdict."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEGLosslessSV1

from monai_pipelines.errors import ScanError
from monai_pipelines.remarks import logged_remarks, printed_remarks
from monai_pipelines.slides import open_slide
from monai_pipelines.transforms import LoadCT
from tests.slides.slide_files import levels
from tests.transforms.ct.spoiling import AFFINE, HU, compress, write_healthy


def test_handlers_and_stderr_are_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("a.library")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    with suppress(ValueError), logged_remarks("a.library") as logged, printed_remarks() as printed:
        logger.warning("%d odd", 1)
        os.write(2, b"odd\nodder\n")
        subprocess.run(["sh", "-c", "echo a child too >&2"], check=True)
        raise ValueError("inside")
    assert (logged, printed) == (["1 odd"], ["odd", "odder", "a child too"])
    assert (logger.handlers, logger.propagate) == ([handler], True)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    logger.removeHandler(handler)


def _nifti(place: int, value: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = folder / "a.nii"
        nib.save(nib.Nifti1Image(HU, AFFINE), file)
        data = bytearray(file.read_bytes())
        data[place : place + len(value)] = value
        file.write_bytes(data)
        return file

    return write


def _cut_meta_image(folder: Path) -> Path:
    file = folder / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(HU.T), str(file))
    file.write_bytes(file.read_bytes()[:-100])
    return file


@pytest.mark.parametrize(
    ("write", "verdict"),
    [
        (_nifti(76, struct.pack("<f", 7)), "ok"),
        (_nifti(80, struct.pack("<f", -2)), "pixdim[1,2,3] should be positive; setting to abs of pixdim values"),
        (_nifti(0, struct.pack("<i", 300)), "sizeof_hdr should be 348; set sizeof_hdr to 348"),
        (_nifti(252, struct.pack("<h", 77)), "qform_code 77 not valid; setting to 0"),
        (_nifti(344, b"abc\0"), None),
        (_cut_meta_image, None),
    ],
)
def test_volumes(
    tmp_path: Path, write: Callable[[Path], Path], verdict: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    if verdict is None:
        with pytest.raises(ScanError, match="unreadable"):
            LoadCT()(path)
    else:
        volume = LoadCT()(path)
        assert volume.meta["verdict"] == verdict
        assert np.array_equal(volume[0], HU)
    assert capfd.readouterr() == ("", "")


def test_a_decoder_that_warns_of_corrupt_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """GDCM gives pixels all the same."""
    folder = write_healthy(tmp_path / "scan")
    compress(JPEGLosslessSV1, "JPEG")(folder)
    assert np.array_equal(LoadCT()(folder)[0], HU)
    file = sorted(folder.iterdir())[4]
    header = pydicom.dcmread(file)
    whole = get_frame(header.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    header.PixelData = encapsulate([whole[: len(whole) // 2] + b"\xff\xd9"])
    header["PixelData"].is_undefined_length = True
    header.save_as(file)
    with pytest.raises(ScanError, match=r"cannot be decoded \(JPEG Lossless.*, corrupt\); copy it again, or store it"):
        LoadCT()(folder)
    assert capfd.readouterr() == ("", "")


def test_slides(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, levels(100, 120)[0], photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ResolutionUnit"].overwrite(9, dtype=3)
    caplog.clear()
    assert open_slide(path, mpp=0.5).size == (120, 100)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
