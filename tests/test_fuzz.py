"""Damaged files: read rightly, or refused by an error of this package; never another error, a crash or a wrong place.

Each test reads its files in a process of its own, which must not die, hang, or take more than 2 GB. What is different
without a word has damaged pixel bytes, which no uncompressed format can notice: where they are whole, it is not.
"""

from __future__ import annotations

import random
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from monai_pipelines.data.rows import read_rows
from monai_pipelines.errors import CohortError, ScanError
from monai_pipelines.slides import open_slide
from monai_pipelines.transforms import LoadCT
from monai_pipelines.transforms.image2d.decode import decode_image
from tests.new_process import CONTEXT
from tests.slides.slide_files import levels, write_lossless, write_slide
from tests.transforms.ct.spoiling import AFFINE, HU, write_healthy

MAX_BYTES = 2 * 2**30  # of the process, libraries among them
CASE_S = 60
TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")


def sizes(few: int, many: int) -> list:
    return [few, pytest.param(many, marks=pytest.mark.nightly)]


def outcomes_of(work: Callable[[int, Path], Counter[str]], num: int, folder: Path) -> Counter[str]:
    """What `work` counts in a process of its own; if that dies, the test fails."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        outcomes, peak_bytes = pool.submit(_measured, work, num, folder).result()
    print(dict(outcomes), f"{peak_bytes / 2**20:.0f} MB")
    assert peak_bytes < MAX_BYTES
    return outcomes


def _measured(work: Callable[[int, Path], Counter[str]], num: int, folder: Path) -> tuple[Counter[str], int]:
    return work(num, folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cases(num: int) -> Iterator[int]:
    """Numbers; the process is ended where one takes too long."""
    for index in range(num):
        signal.alarm(CASE_S)
        yield index
    signal.alarm(0)


def damage(data: bytes, draw: random.Random, start: int = 0) -> bytes:
    """Some flipped bits, bytes replaced or removed, or the end cut, from `start` on."""
    out, kind = bytearray(data), draw.choice(["flip", "replace", "remove", "cut", "insert"])
    for _ in range(draw.choice([1, 1, 3, 20])):
        at = draw.randrange(start, len(out))
        if kind == "flip":
            out[at] ^= 1 << draw.randrange(8)
        elif kind == "replace":
            out[at] = draw.randrange(256)
        elif kind == "remove":
            del out[at : at + draw.choice([1, 2, 8])]
        elif kind == "insert":
            out[at:at] = draw.randbytes(draw.choice([1, 2, 8]))
        else:
            return bytes(out[:at])
        if len(out) <= start + 1:
            break
    return bytes(out)


@pytest.mark.slow
@pytest.mark.parametrize("num", sizes(40, 2000))
def test_dicom(num: int, tmp_path: Path) -> None:
    """One slice of a series is damaged: anywhere, a tag removed, or one character of geometry or rescale changed."""
    outcomes = outcomes_of(_dicom, num, tmp_path)
    assert set(outcomes) <= {"equal", "refused", "another place", "told", "damaged pixel bytes"}
    assert outcomes["another place"] <= num * 0.02
    assert outcomes["refused"] > num * 0.4


def _dicom(num: int, folder: Path) -> Counter[str]:
    scan, draw, outcomes = write_healthy(folder / "scan"), random.Random(0), Counter[str]()
    file = sorted(scan.iterdir())[6]
    whole = file.read_bytes()
    start = len(whole) - HU[..., 0].size * 2  # of the value of PixelData, the last
    assert pydicom.dcmread(file).PixelData == whole[start:]
    for index in cases(num):
        kind = ("bytes", "header", "tag", "character")[index % 4]
        if kind in ("bytes", "header"):
            end = len(whole) if kind == "bytes" else start
            file.write_bytes(damage(whole[:end], draw) + whole[end:])
        else:
            header = pydicom.dcmread(file) if file.write_bytes(whole) else None
            if kind == "tag":
                del header[draw.choice([e.tag for e in header])]
            else:
                name = draw.choice(TAGS)
                text = bytearray(str(header.get_item(name).value or b"0", "ascii").encode())
                text[draw.randrange(len(text))] = draw.choice(b"0123456789.-+eE \\,xN\0")
                header._dict[header[name].tag] = header.get_item(name)._replace(value=bytes(text))
            header.save_as(file)
        found = outcome(scan)
        if found == "other voxels":
            found = _with_whole_pixels(scan, file, whole, start)
        outcomes[found] += 1
    file.write_bytes(whole)
    assert outcome(scan) == "equal"
    return outcomes


def _with_whole_pixels(scan: Path, file: Path, whole: bytes, start: int) -> str:
    """Proof that the bytes of PixelData alone make other voxels: those before them are whole, or change nothing."""
    damaged = file.read_bytes()
    if damaged[start:] == whole[start:]:
        return "other voxels"
    if damaged[:start] == whole[:start]:
        return "damaged pixel bytes"
    file.write_bytes(damaged[:start] + whole[start:])
    return "other voxels" if outcome(scan) == "other voxels" else "damaged pixel bytes"


def outcome(path: Path) -> str:
    try:
        volume = LoadCT()(path)
    except ScanError as error:
        return "refused" if ";" in error.reason else "refused without a way out"
    there, here = (nib.affines.apply_affine(a, [[0, 0, 0], [31, 27, 13]]) for a in (volume.affine.numpy(), AFFINE))
    if volume.shape[1:] != HU.shape or not np.allclose(there, here, atol=0.5):
        return "another place"
    if np.array_equal(volume[0], HU):
        return "equal"
    return "other voxels" if volume.meta["verdict"] == "ok" else "told"


@pytest.mark.slow
@pytest.mark.parametrize("num", sizes(30, 500))
def test_volumes(num: int, tmp_path: Path) -> None:
    outcomes = outcomes_of(_volumes, num, tmp_path)
    assert set(outcomes) <= {"read", "refused"}
    assert outcomes["refused"] > num / 4


def _volumes(num: int, folder: Path) -> Counter[str]:
    draw, outcomes = random.Random(1), Counter[str]()
    names = ("a.nii", "a.nii.gz", "a.nrrd", "a.mha")
    for name in names[:2]:
        nib.save(nib.Nifti1Image(HU, AFFINE), folder / name)
    for name in names[2:]:
        sitk.WriteImage(sitk.ReadImage(str(folder / "a.nii")), str(folder / name))
    for index in cases(num):
        name = names[index % 4]
        whole = (folder / name).read_bytes()
        header = 352 if name.endswith(".nii") else len(whole) if name.endswith(".gz") else 400
        end = len(whole) if index % 8 < 4 else min(header, len(whole))
        (folder / f"bad-{name}").write_bytes(damage(whole[:end], draw) + whole[end:])
        try:
            LoadCT()(folder / f"bad-{name}")
            outcomes["read"] += 1
        except ScanError as error:
            outcomes["refused" if ";" in error.reason else "refused without a way out"] += 1
    return outcomes


@pytest.mark.parametrize("num", sizes(60, 300))
def test_images(num: int, tmp_path: Path) -> None:
    assert outcomes_of(_images, num, tmp_path)["refused"] > num / 4


def _images(num: int, folder: Path) -> Counter[str]:
    draw, outcomes = random.Random(2), Counter[str]()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    files = [folder / f"a.{suffix}" for suffix in ("png", "jpeg", "tif", "bmp")]
    for file in files:
        Image.fromarray(pixels).save(file)
    for index in cases(num):
        file = files[index % 4]
        bad = folder / f"bad{file.suffix}"
        bad.write_bytes(damage(file.read_bytes(), draw))
        try:
            decode_image(bad)
            outcomes["read"] += 1
        except ScanError:
            outcomes["refused"] += 1
    return outcomes


@pytest.mark.parametrize("num", sizes(40, 200))
def test_slides(num: int, tmp_path: Path) -> None:
    outcomes = outcomes_of(_slides, num, tmp_path)
    assert outcomes["refused"] > num / 4
    assert outcomes["read"] > num / 20
    assert set(outcomes) == {"read", "refused"}


def _slides(num: int, folder: Path) -> Counter[str]:
    draw, outcomes, pyramid = random.Random(4), Counter[str](), levels(150, 200, (1, 2))
    planes = np.moveaxis(pyramid[0], -1, 0)
    files = [folder / f"{name}.tif" for name in ("jpeg", "aperio", "lossless", "sub_ifds", "strips", "planes")]
    write_slide(files[0], pyramid)
    write_slide(files[1], pyramid, description="Aperio Image Library v1\r\n200x150 |AppMag = 20|MPP = 0.5")
    write_lossless(files[2], pyramid, mpp=0.5)
    write_slide(files[3], pyramid, sub_ifds=True)
    tifffile.imwrite(files[4], pyramid[0], photometric="rgb", compression="zlib", rowsperstrip=16)
    names = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
    tifffile.imwrite(files[5], planes, ome=True, photometric="minisblack", tile=(64, 64), metadata=names)
    for file in files:
        assert open_slide(file, mpp=0.5).size == (200, 150)
    for index in cases(num):
        file, bad = files[index % len(files)], folder / "bad.tif"
        whole = file.read_bytes()
        with tifffile.TiffFile(file) as opened:
            header = opened.pages[0].dataoffsets[0] if index % 2 else len(whole)
        bad.write_bytes(damage(whole[:header], draw) + whole[header:])
        try:
            slide = open_slide(bad, mpp=None if index % 3 else 0.5)
            slide.thumbnail(2)
            slide.read_region(-10, -10, 200, 100, len(slide.level_sizes) - 1)
            outcomes["read"] += 1
        except ScanError as error:
            outcomes["refused" if ";" in error.reason else "refused without a way out"] += 1
    return outcomes


@pytest.mark.parametrize("num", sizes(60, 200))
def test_tables(num: int, tmp_path: Path) -> None:
    assert outcomes_of(_tables, num, tmp_path).total() == num


def _tables(num: int, folder: Path) -> Counter[str]:
    draw, outcomes, file = random.Random(3), Counter[str](), folder / "table.csv"
    text = "image,label,patient\n" + "".join(f'"scan {k}.nii",{k % 2},p{k}\n' for k in range(20))
    for index in cases(num):
        data = text.encode(("utf-8", "utf-16", "cp1252")[index % 3])
        file.write_bytes(damage(data, draw))
        try:
            read_rows(file, ["image", "label"])
            outcomes["read"] += 1
        except CohortError:
            outcomes["refused"] += 1
    return outcomes
