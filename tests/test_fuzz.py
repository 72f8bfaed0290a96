"""Damaged files: read rightly, or refused by an error of this package; never another error, a crash or a wrong place.

What is different without an error has damaged pixel bytes, which no uncompressed format can notice; they are counted.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image

from monai_pipelines.data.rows import read_rows
from monai_pipelines.errors import CohortError, ScanError
from monai_pipelines.transforms import LoadCT
from monai_pipelines.transforms.image2d.decode import decode_image
from tests.transforms.ct.spoiling import AFFINE, HU, write_healthy

TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")


def sizes(few: int, many: int) -> list:
    return [few, pytest.param(many, marks=pytest.mark.nightly)]


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
    folder, draw, outcomes = write_healthy(tmp_path / "scan"), random.Random(0), Counter[str]()
    file = sorted(folder.iterdir())[6]
    whole = file.read_bytes()
    num_pixel_bytes = HU[..., 0].size * 2
    for index in range(num):
        kind = ("bytes", "header", "tag", "character")[index % 4]
        if kind in ("bytes", "header"):
            end = len(whole) if kind == "bytes" else len(whole) - num_pixel_bytes
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
        outcomes[outcome(folder)] += 1
    file.write_bytes(whole)
    assert outcome(folder) == "equal"
    print(dict(outcomes))
    assert "refused without a way out" not in outcomes
    assert outcomes["another place"] <= outcomes.total() * 0.02, outcomes
    assert outcomes["refused"] > outcomes.total() * 0.4, outcomes


def outcome(path: Path) -> str:
    try:
        volume = LoadCT()(path)
    except ScanError as error:
        return "refused" if ";" in error.reason else "refused without a way out"
    there, here = (nib.affines.apply_affine(a, [[0, 0, 0], [31, 27, 13]]) for a in (volume.affine.numpy(), AFFINE))
    if volume.shape[1:] != HU.shape or not np.allclose(there, here, atol=0.5):
        return "another place"
    return "equal" if np.array_equal(volume[0], HU) else "other voxels"


@pytest.mark.slow
@pytest.mark.parametrize("num", sizes(30, 500))
@pytest.mark.filterwarnings("ignore")
def test_volumes(num: int, tmp_path: Path) -> None:
    draw, outcomes = random.Random(1), Counter[str]()
    names = ("a.nii", "a.nii.gz", "a.nrrd", "a.mha")
    for name in names[:2]:
        nib.save(nib.Nifti1Image(HU, AFFINE), tmp_path / name)
    for name in names[2:]:
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / name))
    for index in range(num):
        name = names[index % 4]
        whole = (tmp_path / name).read_bytes()
        header = 352 if name.endswith(".nii") else len(whole) if name.endswith(".gz") else 400
        end = len(whole) if index % 8 < 4 else min(header, len(whole))
        (tmp_path / f"bad-{name}").write_bytes(damage(whole[:end], draw) + whole[end:])
        try:
            LoadCT()(tmp_path / f"bad-{name}")
            outcomes["read"] += 1
        except ScanError as error:
            outcomes["refused" if ";" in error.reason else "refused without a way out"] += 1
    assert set(outcomes) <= {"read", "refused"}
    assert outcomes["refused"] > num / 4, outcomes


@pytest.mark.parametrize("num", sizes(60, 300))
@pytest.mark.filterwarnings("ignore")
def test_images(num: int, tmp_path: Path) -> None:
    draw, outcomes = random.Random(2), Counter[str]()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    files = [tmp_path / f"a.{suffix}" for suffix in ("png", "jpeg", "tif", "bmp")]
    for file in files:
        Image.fromarray(pixels).save(file)
    for index in range(num):
        file = files[index % 4]
        bad = tmp_path / f"bad{file.suffix}"
        bad.write_bytes(damage(file.read_bytes(), draw))
        try:
            decode_image(bad)
            outcomes["read"] += 1
        except ScanError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > num / 4, outcomes


@pytest.mark.parametrize("num", sizes(60, 200))
def test_tables(num: int, tmp_path: Path) -> None:
    draw, file = random.Random(3), tmp_path / "table.csv"
    text = "image,label,patient\n" + "".join(f'"scan {k}.nii",{k % 2},p{k}\n' for k in range(20))
    for index in range(num):
        data = text.encode(("utf-8", "utf-16", "cp1252")[index % 3])
        file.write_bytes(damage(data, draw))
        with suppress(CohortError):
            read_rows(file, ["image", "label"])
