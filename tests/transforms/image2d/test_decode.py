from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms.image2d.decode import decode_image

ROWS, COLUMNS = np.indices((40, 56))
RGB = np.stack([4 * COLUMNS, 5 * ROWS, 230 - 2 * ROWS - COLUMNS], axis=-1).astype(np.uint8)
GRAY = (2 * ROWS + 2 * COLUMNS).astype(np.uint8)
ALPHA = (255 - 4 * COLUMNS).astype(np.uint8)
DEEP = (GRAY.astype(np.uint16) * 300 + ROWS).astype(np.uint16)


def pixels(path: Path, channels: Any = None) -> np.ndarray:
    return decode_image(path, channels).pixels


def saved(path: Path, image: np.ndarray | Image.Image, **options: Any) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def _reference_on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return color.reshape(*alpha.shape, -1) * share + 255 * (1 - share)


def _reference_luma(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., 0] * 0.299 + rgb[..., 1] * 0.587 + rgb[..., 2] * 0.114


# ---- file types


@pytest.mark.parametrize(
    ("suffix", "file_type"), [("png", "png"), ("tif", "tiff"), ("bmp", "bmp"), ("webp", "other"), ("ppm", "other")]
)
def test_colors_and_grays(tmp_path: Path, suffix: str, file_type: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    color = decode_image(saved(tmp_path / f"a.{suffix}", RGB, **options))
    assert (color.file_type, color.pixels.shape[:2], color.spacing_mm) == (file_type, (40, 56), None)
    assert color.pixels.dtype == np.uint8
    np.testing.assert_array_equal(color.pixels, RGB)
    if suffix != "webp":
        np.testing.assert_array_equal(pixels(saved(tmp_path / f"b.{suffix}", GRAY)), GRAY[..., None])


def test_channels(tmp_path: Path) -> None:
    color, gray = saved(tmp_path / "a.png", RGB), saved(tmp_path / "b.png", GRAY)
    np.testing.assert_array_equal(pixels(color, 3), RGB)
    np.testing.assert_array_equal(pixels(gray, 3), np.stack([GRAY] * 3, axis=-1))
    np.testing.assert_array_equal(pixels(gray, 1), GRAY[..., None])
    np.testing.assert_allclose(pixels(color, 1)[..., 0], _reference_luma(RGB), atol=0.51)


def test_hand_worked_luma(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8))
    assert pixels(path, 1).ravel().tolist() == [76, 150, 29, 18]


def test_type_is_detected_from_content(tmp_path: Path) -> None:
    assert decode_image(saved(tmp_path / "a.jpg", RGB, format="PNG")).file_type == "png"


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(tmp_path: Path, progressive: bool) -> None:
    color = decode_image(saved(tmp_path / "a.jpg", RGB, quality=98, subsampling=0, progressive=progressive))
    assert color.file_type == "jpeg"
    assert np.abs(color.pixels.astype(int) - RGB).max() <= 4
    gray = pixels(saved(tmp_path / "b.jpg", GRAY, quality=98), 3)
    assert np.abs(gray.astype(int) - GRAY[..., None]).max() <= 3


@pytest.mark.parametrize("kind", ["adobe", "bare", "tiff"])
def test_cmyk(tmp_path: Path, kind: str) -> None:
    inks = np.concatenate([RGB, GRAY[..., None] // 3], axis=-1)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    path = tmp_path / "a.jpg"
    if kind == "tiff":
        tifffile.imwrite(path, inks, photometric="separated")
    elif kind == "adobe":  # Pillow stores 255 - ink, with an APP14 segment
        Image.fromarray(inks, "CMYK").save(path, quality=98)
    else:
        Image.fromarray(255 - inks, "CMYK").save(path, quality=98)
        data = path.read_bytes()
        start = data.index(b"\xff\xee")
        path.write_bytes(data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :])
    assert np.abs(pixels(path) - expected).max() <= 5


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("num_colors", [2, 16, 256])
def test_palette(tmp_path: Path, num_colors: int, transparent: bool) -> None:
    rng = np.random.default_rng(0)
    palette, alpha = rng.integers(0, 256, (num_colors, 3)), rng.integers(0, 256, num_colors)
    index = rng.integers(0, num_colors, GRAY.shape).astype(np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    options = {"transparency": bytes(alpha.tolist())} if transparent else {}
    path = saved(tmp_path / "a.png", image, **options)
    expected = _reference_on_white(palette[index], alpha[index]) if transparent else palette[index]
    np.testing.assert_allclose(pixels(path), expected, atol=1)
    assert pixels(path, 1).shape == (40, 56, 1)


def test_transparency_is_blended_with_white(tmp_path: Path) -> None:
    rgba = saved(tmp_path / "a.png", np.dstack([RGB, ALPHA]))
    np.testing.assert_allclose(pixels(rgba), _reference_on_white(RGB, ALPHA), atol=1)
    gray_alpha = saved(tmp_path / "b.png", Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"))
    np.testing.assert_allclose(pixels(gray_alpha), _reference_on_white(GRAY, ALPHA), atol=1)
    key = saved(tmp_path / "c.png", RGB, transparency=tuple(RGB[3, 4].tolist()))
    expected = RGB.copy()
    expected[3, 4] = 255
    np.testing.assert_array_equal(pixels(key), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_bit(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(GRAY > 90))
    np.testing.assert_array_equal(pixels(path)[..., 0], np.where(GRAY > 90, 255, 0))


def _png(depth: int, color_type: int, values: np.ndarray) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, color_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_16_bit_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png(16, 0, DEEP.astype(">u2")))
    assert pixels(path).dtype == np.float32
    np.testing.assert_allclose(pixels(path)[..., 0], DEEP / 65535, rtol=1e-6)
    assert pixels(path, 3).shape == (40, 56, 3)
    path.write_bytes(_png(16, 2, np.dstack([DEEP, DEEP // 2, DEEP // 3]).astype(">u2")))
    np.testing.assert_array_equal(pixels(path), np.dstack([DEEP, DEEP // 2, DEEP // 3]) // 256)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("order", "photometric"), [("<", "minisblack"), (">", "minisblack"), ("<", "miniswhite")])
def test_16_bit_tiff(tmp_path: Path, order: str, compression: str | None, photometric: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DEEP, byteorder=order, compression=compression, photometric=photometric)
    shown = DEEP / 65535 if photometric == "minisblack" else 1 - DEEP / 65535
    np.testing.assert_allclose(pixels(path)[..., 0], shown, atol=1e-6)
    tifffile.imwrite(path, GRAY, byteorder=order, compression=compression, photometric=photometric)
    np.testing.assert_array_equal(pixels(path)[..., 0], GRAY if photometric == "minisblack" else 255 - GRAY)


def test_12_bit_tiff(tmp_path: Path) -> None:
    """Two values in three bytes; white is 4095, as the tag BitsPerSample says."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 12) + bytes([0xFF, 0xF4, 0x00, 0]) + struct.pack("<H", len(tags))
    (tmp_path / "a.tif").write_bytes(content + directory + bytes(4))
    np.testing.assert_allclose(pixels(tmp_path / "a.tif").ravel(), [1, 1024 / 4095], rtol=1e-6)


def test_tiff_layout_that_pillow_lacks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP, byteorder=">", photometric="miniswhite")
    with pytest.raises(ScanError, match="or a layout Pillow lacks; convert it to PNG"):
        decode_image(tmp_path / "a.tif")


def test_floating_point_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, (GRAY / 255).astype(np.float32))
    np.testing.assert_allclose(pixels(path)[..., 0], GRAY / 255, rtol=1e-6)


# ---- orientation

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # stored pixels -> display, EXIF 2.3
    1: np.asarray,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),  # a quarter turn clockwise
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 98, "subsampling": 0} if suffix == "jpg" else {}
    decoded = decode_image(saved(tmp_path / f"a.{suffix}", RGB, exif=exif, **options))
    expected = UPRIGHT[orientation](RGB)
    assert decoded.pixels.shape[:2] == expected.shape[:2]
    assert np.abs(decoded.pixels.astype(int) - expected).max() <= (4 if suffix == "jpg" else 0)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RGB, quality=98, subsampling=0, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12")
    assert np.abs(pixels(path).astype(int) - RGB).max() <= 4


# ---- unusable files


def noise(height: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, 64, 3), dtype=np.uint8)


KINDS = ("jpg", "progressive.jpg", "thumbnail.jpg", "png", "tif", "lzw.tif", "bmp", "gif")
NO_END = ("tif", "bmp", "gif")  # zeros in these are pixels


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("kind", "tail"), [*((k, b"") for k in KINDS), *((k, bytes(3000)) for k in KINDS if k not in NO_END)]
)
def test_truncated(tmp_path: Path, kind: str, tail: bytes, share: float) -> None:
    options: dict[str, Any] = {"progressive.jpg": {"progressive": True}, "lzw.tif": {"compression": "tiff_lzw"}}.get(
        kind, {}
    )
    if kind == "thumbnail.jpg":  # a JPEG with its own end within the EXIF block
        inner = io.BytesIO()
        Image.fromarray(RGB).save(inner, "JPEG")
        options = {"exif": Image.Exif().tobytes() + inner.getvalue()}
    path = saved(tmp_path / f"a.{kind}", noise(), **options)
    assert pixels(path).shape == (64, 64, 3)
    data = path.read_bytes()
    assert data.count(b"\xff\xd8") == {"thumbnail.jpg": 2, "jpg": 1}.get(kind, data.count(b"\xff\xd8"))
    path.write_bytes(data[: int(share * len(data))] + tail)
    with pytest.raises(ScanError, match=r"truncated|start missing"):
        decode_image(path)


def test_truncated_jpeg_is_an_error_despite_pillow_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = saved(tmp_path / "a.jpg", noise())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ScanError, match="truncated JPEG: its end is missing; copy it again"):
        decode_image(path)


def test_bytes_after_the_end_are_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RGB)
    before = pixels(path)
    path.write_bytes(path.read_bytes() + bytes(100))
    np.testing.assert_array_equal(pixels(path), before)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "0 bytes, all empty; copy it again"),
        ("a.jpg", bytes(5000), "5000 bytes, all empty"),
        ("a.png", b"dog,cat\n1,2\n" * 30, "not PNG, JPEG, TIFF, BMP or DICOM"),
        ("a.dcm", b"dog,cat\n1,2\n" * 30, "no image: not DICOM|unreadable"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(40), "start missing"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not PNG, JPEG, TIFF, BMP or DICOM"),
    ],
)
def test_no_image(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScanError, match=reason) as error:
        decode_image(tmp_path / name)
    assert error.value.path == str(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="'No such file or directory'; paths in a table are relative to the table"):
        decode_image(tmp_path / "a.png")
    with pytest.raises(ScanError, match="wanted an image file, got 'Is a directory'; name a file"):
        decode_image(tmp_path)


@pytest.mark.parametrize("side", [10_001, 20_000])
def test_too_many_pixels(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data + _png(8, 2, RGB)[33:])
    with pytest.raises(ScanError, match=r"wanted at most 100,000,000 pixels, got (10001 x 10001|more than twice)"):
        decode_image(tmp_path / "a.png")


def test_several_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RGB, RGB]), photometric="rgb")
    with pytest.raises(ScanError, match="wanted one image, got 2 pages; save the page you want as a separate file"):
        decode_image(tmp_path / "a.tif")
    frames = [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ScanError, match="got 2 pages"):
        decode_image(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (np.array([[0.5, np.nan]], np.float32), "wanted values in 0..1, got nan to nan"),
        (np.array([[0, 4095]], np.float32), "wanted values in 0..1, got 0 to 4095; rescale them"),
        (np.array([[-5, 70]], np.int16), "wanted values in 0..65535, got -5 to 70"),
    ],
)
def test_values_out_of_range(tmp_path: Path, values: np.ndarray, got: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(ScanError, match=got):
        decode_image(tmp_path / "a.tif")


def test_real_images(shared_data: Path) -> None:
    files = sorted(p for p in (shared_data / "chest_xray").rglob("*.jpeg"))
    assert len(files) == 660
    for path in files[::40]:
        decoded = decode_image(path, 1)
        assert (decoded.file_type, decoded.pixels.shape) == ("jpeg", (224, 224, 1))
        assert 20 < decoded.pixels.mean() < 220
