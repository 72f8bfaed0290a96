"""Which slides open, at which resolution, and the errors of those that do not."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import simplejpeg
import tifffile

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide, open_slide
from monai_pipelines.slides.geometry import fit_tile
from monai_pipelines.slides.handles import open_reader
from monai_pipelines.slides.opening import mpp_of
from monai_pipelines.slides.segments import JpegSegments
from tests.slides.slide_files import COMPRESSION, JPEG, PHOTOMETRIC, YCBCR, levels, write_lossless, write_slide

OME = '<Image><Pixels SizeX="9" PhysicalSizeX="0.25" PhysicalSizeY="0.25"{}></Pixels></Image>'
OME_NAMED = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>'
    '<Pixels PhysicalSizeX="{0}" PhysicalSizeXUnit="{1}" PhysicalSizeY="{0}" PhysicalSizeYUnit="{1}"/></Image></OME>'
)


def _tiff(path: Path, pixels: np.ndarray, **kwargs: Any) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "metadata": None, **kwargs})
    return path


@pytest.mark.parametrize(
    ("properties", "mpp"),
    [
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5", "tiff.ImageDescription": OME.format("")}, 0.25),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.252", "tiff.XResolution": "1"}, 0.251),
        ({"tiff.XResolution": "20000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}, 0.5),
        ({"tiff.XResolution": "50800", "tiff.YResolution": "50800", "tiff.ResolutionUnit": "inch"}, 0.5),
        ({"openslide.mpp-x": "352", "openslide.mpp-y": "352", "tiff.ImageDescription": OME.format("")}, 0.25),
        ({"tiff.ImageDescription": OME.format(' PhysicalSizeXUnit="µm"')}, 0.25),
        ({"openslide.mpp-x": "1e-4", "openslide.mpp-y": "1e-4"}, "got mpp of 0.0001; set it: knob `slide_mpp`"),
        ({}, "got none; set it: knob `slide_mpp` of the chain, or column `mpp` of the table"),
        ({"openslide.mpp-x": "0.25"}, "got mpp of 0.25 x nothing; set it: knob `slide_mpp`"),
        ({"openslide.mpp-x": "?", "openslide.mpp-y": "nan"}, "0.1 to 2 um per pixel, got mpp of '\\?' x nan;"),
        (
            {"tiff.XResolution": "20000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "none"},
            "got TIFF XResolution of 20000 per none;",
        ),
        (
            {"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"},
            "got TIFF XResolution of 72 per inch;",
        ),
        ({"tiff.ImageDescription": OME.format(' PhysicalSizeXUnit="\N{GREEK SMALL LETTER MU}m"')}, 0.25),
        ({"tiff.ImageDescription": OME.format("").replace('"', "'")}, 0.25),
        ({"tiff.ImageDescription": OME_NAMED.format("250", "nm")}, 0.25),
        ({"tiff.ImageDescription": OME_NAMED.format("0.00025", "mm")}, 0.25),
        ({"tiff.ImageDescription": OME.format(' PhysicalSizeXUnit="pixel"')}, "got OME's PhysicalSizeX of 0.25 pixel"),
        ({"tiff.ImageDescription": OME.format(' PhysicalSizeXUnit="nm"')}, "got OME's PhysicalSizeX of 0.25 nm"),
        ({"tiff.ImageDescription": OME.format("")[:-9]}, "got none"),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}, r"wanted square pixels, got 0.25 x 0.26 um \(mpp\)"),
    ],
)
def test_resolution(properties: dict[str, str], mpp: float | str) -> None:
    if isinstance(mpp, float):
        assert mpp_of("slide.svs", properties) == pytest.approx(mpp)
    else:
        with pytest.raises(ScanError, match=f"slide.svs: .*{mpp}"):
            mpp_of("slide.svs", properties)


@pytest.mark.parametrize(("unit", "per_unit"), [("centimeter", 20_000), ("inch", 50_800)])
def test_centimeter_and_inch_of_a_file(tmp_path: Path, unit: str, per_unit: float) -> None:
    resolution = {"resolution": (per_unit, per_unit), "resolutionunit": unit}
    for tile in ({"tile": (64, 64)}, {}):  # by OpenSlide, by tifffile
        slide = open_slide(_tiff(tmp_path / "slide.tif", levels(100, 120)[0], **resolution, **tile))
        assert slide.mpp == pytest.approx(0.5)
        assert slide.backend == ("openslide" if tile else "tifffile")


def test_resolution_of_the_caller_precedes_the_files(tmp_path: Path, shared_data: Path) -> None:
    path = write_slide(tmp_path / "slide.tif", levels(100, 120), mpp=0.5)
    assert open_slide(path, mpp=0.25).mpp == 0.25
    for mpp in (0, 1e-4, 5, float("nan")):
        with pytest.raises(ValueError, match=r"mpp must lie in 0.1..2 um per pixel, got"):
            open_slide(path, mpp=mpp)
    real = shared_data / "wsi" / "TCGA-CR-7395-01A-01-TS1.svs"
    with pytest.raises(ScanError, match=r"wanted a resolution .* got none; set it: knob `slide_mpp`"):
        open_slide(real)
    assert open_slide(real, mpp=0.25).tile_size(256, 0.5) == (256, 0.5, 1, 256, 512)


@pytest.mark.parametrize(
    ("slide_mpp", "mpp", "expected"),
    [
        (0.499, 0.5, (256, 0.499, 0, 256, 256)),
        (0.2525, 0.5, (256, 0.505, 0, 512, 512)),
        (0.25, 1.0, (256, 1.0, 1, 256, 1024)),
        (0.25, 2.0, (256, 2.0, 1, 512, 2048)),
        (0.25, 0.8, (256, 0.7998046875, 0, 819, 819)),
        (0.253, 1.0, (256, 1.000140625, 0, 1012, 1012)),  # 4 is more than 1 % above 3.953
        (0.505, 0.5, (256, 0.505, 0, 256, 256)),
        (0.506, 0.5, None),
    ],
)
def test_tile_sizes(slide_mpp: float, mpp: float, expected: tuple[float, ...] | None) -> None:
    size = fit_tile(256, mpp, slide_mpp, (1, 4, 16))
    assert size == (None if expected is None else pytest.approx(expected))


def _assert_reads_as_written(slide: Slide, pyramid: list[np.ndarray], off: float = 0) -> None:
    assert slide.backend == "tifffile"
    assert slide.level_downsamples == tuple(2.0**level for level in range(len(pyramid)))
    for level, pixels in enumerate(pyramid):
        height, width, _ = pixels.shape
        region = slide.read_region(-(2**level), 2**level, width, height, level).astype(int)
        assert (region[:, 0] == 255).all()
        assert (region[-1] == 255).all()
        assert np.abs(region[:-1, 1:] - pixels[1:, :-1]).mean() <= off


@pytest.mark.parametrize("kind", ["plain", "zlib", "low strips", "one strip"])
def test_strips(tmp_path: Path, kind: str) -> None:
    layout = {
        "plain": {},
        "zlib": {"compression": "zlib", "predictor": True},
        "low strips": {"rowsperstrip": 7},
        "one strip": {"rowsperstrip": 2**31},
    }
    pyramid = levels(150, 200)
    _assert_reads_as_written(open_slide(_tiff(tmp_path / "slide.tif", pyramid[0], **layout[kind]), mpp=0.5), pyramid)


def test_jpeg_strips(tmp_path: Path) -> None:
    pyramid = levels(150, 200)
    strips = [simplejpeg.encode_jpeg(pyramid[0][top : top + 16], 90, "RGB", "444") for top in range(0, 150, 16)]
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, iter(strips), shape=(150, 200, 3), dtype=np.uint8, photometric="rgb", compression="zlib", rowsperstrip=16
    )
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[COMPRESSION].overwrite(JPEG)
        file.pages[0].tags[PHOTOMETRIC].overwrite(YCBCR)
    slide = open_slide(path, mpp=0.5)
    _assert_reads_as_written(slide, pyramid, off=5)
    small, downsample = slide.thumbnail(4)
    assert (small.shape, downsample) == ((18, 25, 3), 8)
    assert np.abs(small - pyramid[0][:144].reshape(18, 8, 25, 8, 3).mean(axis=(1, 3))).mean() < 1


@pytest.mark.parametrize("tiled", [True, False], ids=["tiles", "strips"])
def test_ome_tiff(tmp_path: Path, tiled: bool) -> None:
    """Its smaller levels are in SubIFDs, which OpenSlide ignores."""
    pyramid, path = levels(300, 400, (1, 2, 4)), tmp_path / "slide.ome.tif"
    layout: dict[str, Any] = {"photometric": "rgb", "compression": "zlib", "tile": (64, 64) if tiled else None}
    with tifffile.TiffWriter(path, ome=True) as file:
        physical = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
        file.write(pyramid[0], subifds=2, metadata=physical, **layout)
        for level in pyramid[1:]:
            file.write(level, subfiletype=1, **layout)
    slide = open_slide(path)
    assert slide.mpp == 0.5
    _assert_reads_as_written(slide, pyramid)


def test_jpeg_tiles_in_sub_ifds(tmp_path: Path) -> None:
    pyramid = levels(300, 400, (1, 2, 4))
    slide = open_slide(write_slide(tmp_path / "slide.tif", pyramid, sub_ifds=True))
    reader = open_reader(slide.path, slide.backend, slide.stamp)
    assert all(isinstance(segments, JpegSegments) for segments in reader._segments)
    _assert_reads_as_written(slide, pyramid, off=5)


def test_properties_are_read_only(tmp_path: Path) -> None:
    pixels, resolution = levels(100, 120)[0], {"resolution": (20_000, 20_000), "resolutionunit": "centimeter"}
    for tile, vendor in (({"tile": (64, 64)}, "generic-tiff"), ({}, "tiff")):  # by OpenSlide, by tifffile
        slide = open_slide(_tiff(tmp_path / "slide.tif", pixels, description="stained", **resolution, **tile))
        assert slide.properties["openslide.vendor"] == slide.vendor == vendor
        assert slide.properties["tiff.ImageDescription"] == "stained"
        assert float(slide.properties["tiff.XResolution"]) == 20_000
        with pytest.raises(TypeError, match="does not support item assignment"):
            slide.properties["tiff.XResolution"] = "1"  # type: ignore[index]
        assert pickle.loads(pickle.dumps(slide)).properties == slide.properties


def test_color_profile(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for tile in ({"tile": (64, 64)}, {}):
        path = _tiff(tmp_path / "slide.tif", levels(100, 120)[0], iccprofile=profile, **tile)
        assert open_slide(path, mpp=0.5).color_profile == profile
    assert open_slide(write_slide(path, levels(100, 120))).color_profile is None


def test_folder_of_a_dicom_series(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "a.dcm").write_text("no DICOM")
    (tmp_path / "notes.txt").write_text("no slide")
    with pytest.raises(ScanError, match=r"found no \.dcm that OpenSlide opens"):
        open_slide(tmp_path)
    shutil.copy(shared_data / "wsi" / "highdicom_sm_image.dcm", tmp_path / "b.dcm")
    slide = open_slide(tmp_path)
    assert (slide.path, slide.vendor, slide.size, slide.mpp) == (str(tmp_path / "b.dcm"), "dicom", (50, 50), 0.499)
    assert slide.read_region(0, 0, 60, 40).shape == (40, 60, 3)
    with pytest.raises(ScanError, match=r"got neither \(OpenSlide: OpenSlideError\)"):
        open_slide(shared_data / "wsi" / "pathml_small_dicom.dcm")


def test_folder_of_several_dicom_series_raises(tmp_path: Path, shared_data: Path) -> None:
    data = pydicom.dcmread(shared_data / "wsi" / "highdicom_sm_image.dcm")
    data.save_as(tmp_path / "b.dcm")
    data.SeriesInstanceUID = pydicom.uid.generate_uid()
    data.save_as(tmp_path / "c.dcm")
    with pytest.raises(ScanError, match=f"{tmp_path}: wanted one DICOM series, found 2; give each a folder, or name"):
        open_slide(tmp_path)
    assert open_slide(tmp_path / "c.dcm").size == (50, 50)


def test_files_that_are_not_slides(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    with pytest.raises(ScanError, match=f"{path}: wanted a slide, found no such file"):
        open_slide(path)
    rgb = levels(100, 120)[0]
    cases: list[tuple[Any, str]] = [
        (b"", "the file is empty"),
        (b"a table, by mistake", "wanted a slide that OpenSlide opens, or a TIFF, got neither"),
        (b"II*\0" + bytes(4), "wanted a TIFF with an image, this one has none"),
        (b"II*\0\xff\xff\0\0", "truncated: it ends before its list of images does"),
        ({"pixels": rgb[..., 0], "photometric": "minisblack"}, "wanted a slide in color, got gray levels"),
        ({"pixels": rgb.astype(np.uint16)}, r"wanted interleaved RGB of 8 bits, got 3 channel\(s\) of uint16"),
        ({"pixels": rgb[..., 0], "photometric": "minisblack", "tile": (64, 64)}, "wanted a slide in color"),
    ]
    for content, message in cases:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            _tiff(path, content.pop("pixels"), **content)
        with pytest.raises(ScanError, match=message):
            open_slide(path, mpp=0.5)


@pytest.mark.parametrize("kind", ["jpeg", "sub_ifds", "odd", "zlib strips", "plain strip"])
def test_broken_tags_raise(tmp_path: Path, kind: str) -> None:
    """Each of 100 files is read or raises a ScanError."""
    path, pyramid = tmp_path / "slide.tif", levels(101, 121, (1, 2))
    if kind == "odd":
        write_lossless(path, pyramid, mpp=0.5)
    elif "strip" in kind:
        _tiff(path, pyramid[0], **({"compression": "zlib", "rowsperstrip": 16} if "zlib" in kind else {}))
    else:
        write_slide(path, pyramid, sub_ifds=kind == "sub_ifds")
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        pages = [page for top in file.pages for page in (top, *(top.pages or ()))]
        places = [page.offset + byte for page in pages for byte in range(2 + 12 * len(page.tags) + 4)]
    rng, num_errors = np.random.default_rng(0), 0
    for place in rng.choice(places, 100):
        broken = bytearray(data)
        broken[place] ^= rng.integers(1, 256)
        path.write_bytes(broken)
        try:
            region = open_slide(path, mpp=0.5).read_region(5, 5, 64, 64)
        except ScanError:
            num_errors += 1
        else:
            assert region.shape == (64, 64, 3)
    assert 20 < num_errors < 90


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files(tmp_path: Path, shared_data: Path, share: float) -> None:
    made = write_slide(tmp_path / "made.tif", levels(300, 400, (1, 2, 4)))
    strips = _tiff(tmp_path / "strips.tif", levels(300, 400)[0])
    for path in [made, strips, *(shared_data / "wsi").glob("*.svs"), *(shared_data / "wsi").glob("*.ndpi")]:
        data = path.read_bytes()
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ScanError, match="truncated: "):
            open_slide(cut, mpp=0.5)


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs decodes it")
def test_compression_that_needs_another_package(tmp_path: Path) -> None:
    path = _tiff(tmp_path / "slide.tif", levels(100, 120)[0])
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[COMPRESSION].overwrite(34712)  # JPEG 2000
    with pytest.raises(ScanError, match=r"tifffile cannot decode JPEG2000 .* `pip install imagecodecs`"):
        open_slide(path, mpp=0.5)


def test_real_slide_of_seven_levels(shared_data: Path) -> None:
    slide = open_slide(shared_data / "wsi" / "test3-DAPI-2-_387_.ndpi")
    assert slide.level_downsamples == (1, 2, 4, 8, 16, 32, 64)
    assert slide.mpp == pytest.approx(0.228, abs=0.001)
    small, downsample = slide.thumbnail(8)
    assert (small.shape, downsample) == ((152, 124, 3), 32)
    assert small.mean() < 20  # fluorescence


def test_levels_with_odd_sizes(tmp_path: Path) -> None:
    pyramid = levels(1100, 1300, (1, 2, 4, 8, 16, 32, 64))
    slide = open_slide(write_lossless(tmp_path / "slide.tif", pyramid, mpp=0.5))
    for level, pixels in enumerate(pyramid):
        height, width, _ = pixels.shape
        assert np.array_equal(slide.read_region(0, 0, width, height, level), pixels)
        assert np.array_equal(slide.read_region(5 << level, 3 << level, 9, 8, level), pixels[3:11, 5:14])
