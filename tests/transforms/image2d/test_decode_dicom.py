"""DICOM images against pixels computed from the standard, or by pydicom or GDCM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing, pixel_array
from pydicom.uid import JPEGBaseline8Bit

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms.image2d.decode import decode_image
from tests.dicom_files import write_image

ROWS, COLUMNS = np.indices((24, 31))
GRAY = (5 * ROWS + 4 * COLUMNS).astype(np.uint8)
STORED = (100 + 90 * ROWS + 50 * COLUMNS).astype(np.uint16)  # 100..3670 of 12 bits
RGB = np.stack([8 * COLUMNS, 10 * ROWS, 240 - 3 * ROWS - 2 * COLUMNS], axis=-1).astype(np.uint8)


def shown(path: Path) -> np.ndarray:
    decoded = decode_image(path)
    assert decoded.file_type == "dicom"
    assert decoded.pixels.dtype == np.float32
    return decoded.pixels[..., 0]


def file(name: str) -> Path:
    return Path(str(get_testdata_file(name)))


# ---- gray values


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_bits_and_inversion(tmp_path: Path, bits: int, photometric: str) -> None:
    """Without a window: the full range of 8 bits, else minimum to maximum."""
    stored = GRAY if bits == 8 else STORED
    gray = GRAY / 255 if bits == 8 else (STORED - 100.0) / (3670 - 100)
    path = write_image(tmp_path / "a.dcm", stored, bits, PhotometricInterpretation=photometric)
    expected = 1 - gray if photometric == "MONOCHROME1" else gray
    np.testing.assert_allclose(shown(path), expected, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bits"), [(np.int8, 8), (np.int16, 12), (np.int16, 16)])
def test_signed(tmp_path: Path, dtype: type, bits: int) -> None:
    stored = (3 * ROWS + 4 * COLUMNS - 100).astype(dtype)
    low, high = (-128, 127) if bits == 8 else (-100, stored.max())
    path = write_image(tmp_path / "a.dcm", stored, bits)
    np.testing.assert_allclose(shown(path), (stored - float(low)) / (float(high) - low), atol=1e-6)


def _reference_window(values: np.ndarray, function: str, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and .2, pixel by pixel, y from 0 to 1."""

    def y(x: float) -> float:
        if function == "SIGMOID":
            with np.errstate(over="ignore"):
                return 1 / (1 + np.exp(-4 * (x - center) / width))
        c, w = (center, width) if function == "LINEAR_EXACT" else (center - 0.5, width - 1)
        if x <= c - w / 2:
            return 0
        return 1 if x > c + w / 2 else (x - c) / w + 0.5

    return np.vectorize(y, otypes=[float])(values)


@pytest.mark.parametrize("rescale", [None, (1, 0), (2, -1000), (-0.5, 30)])
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("window", [(1800, 900), (400.5, 1), (0, 4000)])
def test_window(
    tmp_path: Path, window: tuple[float, float], function: str | None, rescale: tuple[float, float] | None
) -> None:
    tags: dict[str, Any] = {"WindowCenter": window[0], "WindowWidth": window[1]}
    tags |= {"VOILUTFunction": function} if function else {}
    tags |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]} if rescale else {}
    path = write_image(tmp_path / "a.dcm", STORED, 12, **tags)
    slope, intercept = rescale or (1, 0)
    expected = _reference_window(slope * STORED.astype(float) + intercept, function or "LINEAR", *window)
    np.testing.assert_allclose(shown(path), expected, atol=1e-6)


def test_window_agrees_with_pydicom() -> None:
    path = file("693_J2KI.dcm")
    header = pydicom.dcmread(path)
    values = pixel_array(header) * float(header.RescaleSlope) + float(header.RescaleIntercept)
    windowed = apply_windowing(values, header)
    low, high = windowed.min(), windowed.max()
    assert shown(path).min() == 0
    assert shown(path).max() == 1
    np.testing.assert_allclose(shown(path), (windowed - low) / (high - low), atol=1e-6)


def test_first_of_several_windows(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.dcm", STORED, 12, WindowCenter=[1000, 2000], WindowWidth=[500, 900])
    np.testing.assert_allclose(shown(path), _reference_window(STORED, "LINEAR", 1000, 500), atol=1e-6)


def test_hand_worked_window(tmp_path: Path) -> None:
    """Level 100.5, width 101: 50 is black, 100 gray, 150 white; inverted for MONOCHROME1."""
    stored = np.array([[0, 50, 75, 100, 150, 4000]], np.uint16)
    tags = {"WindowCenter": 100.5, "WindowWidth": 101, "PhotometricInterpretation": "MONOCHROME1"}
    path = write_image(tmp_path / "a.dcm", stored, 12, **tags)
    np.testing.assert_allclose(shown(path)[0], [1, 1, 0.75, 0.5, 0, 0], atol=1e-6)


def _lut(descriptor: list[int], entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "OW", entries.tobytes() + b"\0" * (entries.nbytes % 2))
    return item


@pytest.mark.parametrize("entry_bits", [8, 12, 16])
@pytest.mark.parametrize("in_words", [False, True])
def test_voi_lut(tmp_path: Path, entry_bits: int, in_words: bool) -> None:
    """Values beyond the LUT get its ends; it takes precedence over a window; 8-bit entries are bytes or words."""
    first, count = 300, 3001
    curve = (2**entry_bits - 1) * (np.arange(count) / (count - 1)) ** 2
    entries = curve.astype(np.uint8 if entry_bits == 8 and not in_words else np.uint16)
    item = _lut([count, first, entry_bits], entries)
    path = write_image(tmp_path / "a.dcm", STORED, 12, VOILUTSequence=[item], WindowCenter=9, WindowWidth=3)
    index = [[min(max(int(v) - first, 0), count - 1) for v in row] for row in STORED]
    np.testing.assert_allclose(shown(path), entries[np.array(index)] / (2**entry_bits - 1), atol=1e-6)


def test_modality_lut_precedes_the_window(tmp_path: Path) -> None:
    entries = (2 * np.arange(4096) + 7).astype(np.uint16)
    item = _lut([4096, 0, 16], entries)
    item.ModalityLUTType = "OD"
    tags = {"ModalityLUTSequence": [item], "WindowCenter": 3000, "WindowWidth": 2000}
    path = write_image(tmp_path / "a.dcm", STORED, 12, **tags)
    np.testing.assert_allclose(shown(path), _reference_window(2 * STORED + 7.0, "LINEAR", 3000, 2000), atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("limit", "padded"), [(None, [4095]), (4090, [4095, 4093, 4090])])
def test_padding_is_black_and_ignored_by_stretching(
    tmp_path: Path, photometric: str, limit: int | None, padded: list[int]
) -> None:
    stored = STORED.copy()
    stored[0, : len(padded)] = padded
    tags: dict[str, Any] = {"PixelPaddingValue": 4095} | ({"PixelPaddingRangeLimit": limit} if limit else {})
    path = write_image(tmp_path / "a.dcm", stored, 12, PhotometricInterpretation=photometric, **tags)
    inside = np.isin(stored, padded, invert=True)
    gray = (stored - float(stored[inside].min())) / (3670.0 - stored[inside].min())
    expected = np.where(inside, 1 - gray if photometric == "MONOCHROME1" else gray, 0)
    np.testing.assert_allclose(shown(path), expected, atol=1e-6)


def test_uniform_image(tmp_path: Path) -> None:
    assert not shown(write_image(tmp_path / "a.dcm", np.full((4, 5), 700, np.uint16), 12)).any()
    pad = write_image(tmp_path / "b.dcm", np.full((4, 5), 700, np.uint16), 12, PixelPaddingValue=700)
    assert not shown(pad).any()


@pytest.mark.parametrize("name", ["MR_small_bigendian", "MR_small_implicit", "MR_small_RLE", "MR_small_jp2klossless"])
def test_transfer_syntaxes(name: str) -> None:
    np.testing.assert_array_equal(shown(file(f"{name}.dcm")), shown(file("MR_small.dcm")))


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless", "JPEGLSNearLossless_16", "JPGExtended"])
def test_transfer_syntaxes_that_pydicom_cannot_decode(name: str, capfd: pytest.CaptureFixture) -> None:
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(file(f"{name}.dcm"))))[0].astype(float)
    header = pydicom.dcmread(file(f"{name}.dcm"))
    if "WindowWidth" in header:
        expected = _reference_window(values, "LINEAR", header.WindowCenter, header.WindowWidth)
    else:
        expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(shown(file(f"{name}.dcm")), expected, atol=1e-6)


# ---- colors


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb(tmp_path: Path, planar: int) -> None:
    data = (RGB if planar == 0 else np.ascontiguousarray(RGB.transpose(2, 0, 1))).tobytes()
    path = write_image(tmp_path / "a.dcm", RGB, PlanarConfiguration=planar, PixelData=data)
    np.testing.assert_array_equal(decode_image(path).pixels, RGB)
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode_image(path, 1).pixels[..., 0], luma, atol=0.51)


def test_rgb_of_16_bits(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 257
    path = write_image(tmp_path / "a.dcm", deep)
    np.testing.assert_allclose(decode_image(path).pixels, RGB / 255, atol=1e-6)
    np.testing.assert_allclose(decode_image(path, 1).pixels[..., 0], RGB / 255 @ [0.299, 0.587, 0.114], atol=1e-6)


def test_ybr_full(tmp_path: Path) -> None:
    """PS3.3 C.7.6.3.1.2."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ybr = np.rint(RGB @ matrix.T + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    path = write_image(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(decode_image(path).pixels, RGB, atol=3)


@pytest.mark.parametrize("entry_bits", [8, 16])
def test_palette(tmp_path: Path, entry_bits: int) -> None:
    tables = np.random.default_rng(0).integers(0, 2**entry_bits, (3, 200)).astype(f"u{entry_bits // 8}")
    index = (6 * ROWS + 4 * COLUMNS).astype(np.uint8)
    assert index.max() > 209
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [200, 10, entry_bits]
        tags[f"{color}PaletteColorLookupTableData"] = table.tobytes()
    path = write_image(tmp_path / "a.dcm", index, **tags)
    expected = tables.T[np.clip(index.astype(int) - 10, 0, 199)]
    if entry_bits == 8:
        np.testing.assert_array_equal(decode_image(path).pixels, expected)
    else:
        np.testing.assert_allclose(decode_image(path).pixels, expected / 65535, atol=1e-6)


def _as_jpeg(path: Path, data: bytes) -> None:
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.PixelData = encapsulate([data])
    header["PixelData"].is_undefined_length = True
    header.save_as(path)


def test_jpeg_inside_and_truncated(tmp_path: Path) -> None:
    write_image(tmp_path / "a.dcm", np.kron(RGB, np.ones((8, 8, 1), np.uint8)), PhotometricInterpretation="YBR_FULL")
    Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    data = (tmp_path / "a.jpg").read_bytes()
    _as_jpeg(tmp_path / "a.dcm", data)
    pixels = decode_image(tmp_path / "a.dcm").pixels
    assert np.abs(pixels[4::8, 4::8].astype(int) - RGB).max() <= 12
    for tail in (b"", bytes(2000)):
        _as_jpeg(tmp_path / "a.dcm", data[: len(data) // 2] + tail)
        with pytest.raises(ScanError, match="truncated: the end of its last frame is missing"):
            decode_image(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_jpeg_gdcm", "SC_rgb_rle", "SC_rgb_gdcm_KY", "SC_rgb_jls_lossy_line", "SC_ybr_full_422_uncompressed"],
)
def test_color_bars(name: str) -> None:
    """One picture in many encodings: 10 rows each of red, green, blue and mixtures."""
    expected = decode_image(file("SC_rgb_rle.dcm")).pixels.astype(int)
    assert expected[5, 50].tolist() == [255, 0, 0]
    assert np.abs(decode_image(file(f"{name}.dcm")).pixels.astype(int) - expected).mean() < 2


# ---- spacing, errors


@pytest.mark.parametrize("tag", ["PixelSpacing", "ImagerPixelSpacing"])
def test_spacing(tmp_path: Path, tag: str) -> None:
    path = write_image(tmp_path / "a.dcm", GRAY, **{tag: [0.2, 0.1]})
    assert decode_image(path).spacing_mm == (0.2, 0.1)
    assert decode_image(write_image(tmp_path / "b.dcm", GRAY)).spacing_mm is None


def test_detected_without_suffix(tmp_path: Path) -> None:
    np.testing.assert_allclose(shown(write_image(tmp_path / "IM0001", GRAY)), GRAY / 255, atol=1e-6)


def test_frames() -> None:
    with pytest.raises(ScanError, match="wanted one image, got 2 frames; save the frame you want as a separate file"):
        decode_image(file("SC_rgb_rle_2frame.dcm"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("test-SR", "no image: not DICOM"), ("MR_truncated", "truncated: wanted 8192 bytes of pixels, got 8130")],
)
def test_no_image(name: str, reason: str) -> None:
    with pytest.raises(ScanError, match=reason):
        decode_image(file(f"{name}.dcm"))


def test_undecodable_pixels(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(ScanError, match=r"cannot be decoded \(JPEG 2000"):
        decode_image(file("JPEG2000-embedded-sequence-delimiter.dcm"))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (
            {"WindowCenter": 50, "WindowWidth": 0},
            "WindowWidth: wanted 1 or more, or more than 0 if exact or sigmoid, got 0",
        ),
        ({"Rows": 60_000, "Columns": 60_000}, "wanted at most 100,000,000 pixels, got 60000 x 60000"),
        ({"Rows": 25}, "truncated: wanted 775 bytes of pixels, got 744"),
    ],
)
def test_errors_have_no_patient_data(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    path = write_image(tmp_path / "a.dcm", GRAY, **tags)
    with pytest.raises(ScanError, match=reason) as error:
        decode_image(path)
    assert "secret" not in str(error.value).lower()


# ---- without file meta


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_data_set_without_file_meta(tmp_path: Path, implicit: bool, little: bool) -> None:
    whole = write_image(tmp_path / "a.dcm", STORED, 12, WindowCenter=1500, WindowWidth=2000)
    bare = Dataset()
    bare.update(pydicom.dcmread(whole))
    bare.PixelData = STORED.astype("<u2" if little else ">u2").tobytes()
    bare.save_as(tmp_path / "b.dcm", implicit_vr=implicit, little_endian=little)
    assert b"DICM" not in (tmp_path / "b.dcm").read_bytes()
    np.testing.assert_array_equal(shown(tmp_path / "b.dcm"), shown(whole))
