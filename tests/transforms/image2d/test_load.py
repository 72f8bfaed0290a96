from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import LoadImage2D, LoadXray
from tests.dicom_files import write_image

ROWS, COLUMNS = np.indices((30, 44))
GRAY = (4 * ROWS + 3 * COLUMNS).astype(np.uint8)
DEEP = (GRAY.astype(np.uint16) * 257 - 100 * (GRAY > 0)).astype(np.uint16)
RGB = np.stack([5 * COLUMNS, 8 * ROWS, GRAY], axis=-1).astype(np.uint8)


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, Path]:
    """A folder of mixed file types."""
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    Image.fromarray(GRAY).save(tmp_path / "gray.tif")
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    write_image(
        tmp_path / "inverted.dcm", 4095 - 16 * GRAY.astype(np.uint16), 12, PhotometricInterpretation="MONOCHROME1"
    )
    return {path.stem: path for path in tmp_path.iterdir()}


GRAYS = {  # of the files in `mixed`
    "rgb": RGB @ np.array([0.299, 0.587, 0.114]) / 255,
    "gray": GRAY / 255,
    "deep": DEEP / 65535,
    "inverted": GRAY / GRAY.max(),
}


def test_xrays_have_one_dtype(mixed: dict[str, Path]) -> None:
    for name, path in mixed.items():
        out = LoadXray()(path)
        assert (out.shape, out.dtype) == ((1, 30, 44), torch.float32)
        np.testing.assert_allclose(out[0].numpy(), GRAYS[name], atol=0.51 / 255 if name == "rgb" else 1e-6)


def test_photographs_have_one_dtype(mixed: dict[str, Path]) -> None:
    for name, path in mixed.items():
        gray, color = LoadImage2D(channels=1)(path), LoadImage2D()(path)
        assert (gray.shape, color.shape) == ((1, 30, 44), (3, 30, 44))
        assert gray.dtype == color.dtype == torch.uint8
        np.testing.assert_allclose(gray[0].numpy(), 255 * GRAYS[name], atol=0.51)
        if name == "rgb":
            np.testing.assert_array_equal(color.numpy(), RGB.transpose(2, 0, 1))
        else:
            assert torch.equal(color, gray.expand(3, -1, -1))


@pytest.mark.parametrize("load", [LoadImage2D(), LoadXray()], ids=["photo", "xray"])
def test_result_is_writable_and_contiguous(load: LoadImage2D | LoadXray, mixed: dict[str, Path]) -> None:
    for path in mixed.values():
        out = load(path)
        assert out.is_contiguous()
        out.as_tensor().zero_()
        assert load(path).any()


def test_meta_has_spacing_and_file_type_but_no_name_or_patient(tmp_path: Path) -> None:
    path = write_image(tmp_path / "doe_john.dcm", GRAY, PixelSpacing=[0.2, 0.1])
    out = LoadXray()(path)
    np.testing.assert_allclose(out.affine, np.diag([0.2, 0.1, 1, 1]))
    assert out.meta["file_type"] == "dicom"
    assert not any(word in repr(out.meta).lower() for word in ("doe", "secret"))
    Image.fromarray(RGB).save(tmp_path / "a.png", dpi=(300, 300))
    plain = LoadImage2D()(tmp_path / "a.png")
    assert torch.equal(plain.affine, torch.eye(4, dtype=torch.float64))
    assert plain.meta["file_type"] == "png"


def test_path_as_text_and_errors(tmp_path: Path, mixed: dict[str, Path]) -> None:
    assert isinstance(LoadImage2D()(str(mixed["rgb"])), MetaTensor)
    with pytest.raises(ScanError, match=r"none\.png: wanted an image file"):
        LoadImage2D()(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"LoadImage2D: channels must be 1 \(gray\) or 3 \(RGB\), got 4"):
        LoadImage2D(channels=4)


def test_real_xrays_with_boxes(shared_data: Path) -> None:
    files = sorted(p for p in (shared_data / "chest_xray_boxes" / "images").iterdir())
    assert len(files) == 24
    for path in files[::6]:
        out = LoadXray()(path)
        assert tuple(out.shape) == (1, 1024, 1024)
        assert out.max() <= 1
        assert 0.1 < out.mean() < 0.9


# ---- images that are loaded already


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda v: MetaTensor(torch.from_numpy(v))])
def test_arrays_give_what_their_file_gives(mixed: dict[str, Path], kind: Any) -> None:
    for name, pixels in (("rgb", RGB), ("gray", GRAY[..., None])):
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        for load in (LoadXray(), LoadImage2D(1), LoadImage2D(3)):
            wanted = load(mixed[name])
            for image in (values, values / np.float32(255), values / 255):
                out = load(kind(image))
                assert (out.shape, out.dtype) == (wanted.shape, wanted.dtype)
                atol = 1 if out.dtype == torch.uint8 else 0.51 / 255
                torch.testing.assert_close(out.as_tensor().float(), wanted.as_tensor().float(), atol=atol, rtol=0)
            assert out.meta["file_type"] == "other"
            torch.testing.assert_close(out.meta["original_affine"], out.affine)


def test_meta_of_an_image_is_kept() -> None:
    affine = torch.diag(torch.tensor([0.5, 0.4, 1, 1], dtype=torch.float64))
    out = LoadXray()(MetaTensor(torch.zeros(1, 4, 6), affine=affine, meta={"patient": "a", "file_type": "png"}))
    assert (out.meta["patient"], out.meta["file_type"]) == ("a", "png")
    torch.testing.assert_close(out.affine, affine)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB, r"wanted \(1 or 3, H, W\), .* got shape \(30, 44, 3\); channels come first"),
        (GRAY, r"got shape \(30, 44\)$"),
        (np.zeros((4, 8, 8), np.uint8), r"got shape \(4, 8, 8\)$"),
        (np.zeros((3, 0, 8), np.uint8), "got shape"),
        (DEEP.astype(np.int32)[None], r"wanted uint8, or floating point in \[0, 1\], got torch.int32, 0 to"),
        (np.full((1, 4, 4), 255.0), "got torch.float64, 255 to 255; scale it first"),
        (np.full((1, 4, 4), np.nan, np.float32), "nan"),
    ],
)
def test_other_arrays_are_errors(image: np.ndarray, message: str) -> None:
    for load in (LoadXray(), LoadImage2D()):
        with pytest.raises(ScanError, match=message):
            load(image)
