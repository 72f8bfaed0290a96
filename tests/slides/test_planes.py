"""TIFFs of several planes: channels, focal planes, time points; of gray levels and of 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import open_slide
from tests.slides.slide_files import levels

TILED = {"tile": (64, 64)}
SIZE = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}


def _write_ome(path: Path, pyramid: list[np.ndarray], axes: str, names: list[str] | None = None, **layout: Any) -> Path:
    channels = {"Channel": {"Name": names}} if names else {}
    layout = {"photometric": "rgb" if axes.endswith("S") else "minisblack", "compression": "zlib", **layout}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pyramid[0], subifds=len(pyramid) - 1, metadata={"axes": axes, **SIZE, **channels}, **layout)
        for level in pyramid[1:]:
            file.write(level, subfiletype=1, **layout)
    return path


def _planes(pyramid: list[np.ndarray], order: str = "RGB") -> list[np.ndarray]:
    return [np.stack([level[..., "RGB".index(color)] for color in order]) for level in pyramid]


@pytest.mark.parametrize("downsamples", [(1,), (1, 2, 4)], ids=["one level", "SubIFDs"])
@pytest.mark.parametrize("layout", [TILED, {}, {"compression": None}], ids=["tiles", "strips", "plain"])
@pytest.mark.parametrize("names", [["Red", "Green", "Blue"], ["b", "g", "r"]])
def test_planes_named_as_colors_are_rgb(tmp_path: Path, downsamples: tuple, layout: dict, names: list[str]) -> None:
    pyramid = levels(300, 400, downsamples)
    stacked = _planes(pyramid, "".join(name[0].upper() for name in names))
    slide = open_slide(_write_ome(tmp_path / "slide.ome.tif", stacked, "CYX", names, **layout))
    assert (slide.mpp, slide.level_downsamples) == (0.5, downsamples)
    for level, pixels in enumerate(pyramid):
        height, width, _ = pixels.shape
        region = slide.read_region(-(2**level), 2**level, width, height, level)
        assert (region[:, 0] == 255).all()
        assert (region[-1] == 255).all()
        assert np.array_equal(region[:-1, 1:], pixels[1:, :-1])


@pytest.mark.parametrize("downsamples", [(1,), (1, 2)], ids=["one level", "SubIFDs"])
@pytest.mark.parametrize("layout", [TILED, {}], ids=["tiles", "strips"])
def test_other_planes_are_refused(tmp_path: Path, downsamples: tuple, layout: dict) -> None:
    pyramid = levels(300, 400, downsamples)
    gray, planes = [level[..., 0] for level in pyramid], _planes(pyramid)
    deep = [level.astype(np.uint16) * 257 for level in planes]
    stacks = {axes: [np.stack([level] * 4) for level in pyramid] for axes in ("ZYXS", "TYXS")}
    cases: list[tuple[list[np.ndarray], str, list[str] | None, str]] = [
        (
            planes,
            "CYX",
            ["DAPI", "FITC", "Cy5"],
            r"got 3 channels of other names \(fluorescence\?\); export",
        ),
        (planes, "CYX", ["Red", "Green", "Red"], "got 3 channels of other names"),
        (planes, "CYX", None, r"got 3 channels without names .*; export .*, or name its channels Red, Green and Blue"),
        (
            [level[:2] for level in planes],
            "CYX",
            ["Red", "Green"],
            "wanted one image in color, got 2 channels; export one",
        ),
        (
            deep,
            "CYX",
            ["R", "G", "B"],
            r"wanted interleaved RGB of 8 bits, got 1 channel\(s\) of uint16, .*; convert it",
        ),
        (stacks["ZYXS"], "ZYXS", None, "wanted one image in color, got 4 focal planes; export one as RGB"),
        (stacks["TYXS"], "TYXS", None, "wanted one image in color, got 4 time points; export one as RGB"),
        ([level[..., 0] for level in stacks["ZYXS"]], "ZYX", None, "got 4 focal planes; export one as RGB"),
        (gray, "YX", None, r"wanted a slide in color, got gray levels \(fluorescence\?\); export it as RGB"),
        ([level.astype(np.uint16) for level in gray], "YX", None, "wanted a slide in color, got gray levels"),
    ]
    for pyramid_of_case, axes, names, message in cases:
        path = _write_ome(tmp_path / "slide.ome.tif", pyramid_of_case, axes, names, **layout)
        with pytest.raises(ScanError, match=message):
            open_slide(path)


def test_pages_of_one_size_without_ome(tmp_path: Path) -> None:
    path, pixels = tmp_path / "slide.tif", levels(300, 400)[0]
    tifffile.imwrite(path, np.stack([pixels] * 3), photometric="rgb", metadata=None, **TILED)
    with pytest.raises(ScanError, match="wanted one image in color, got 3 pages of one size; export one as RGB"):
        open_slide(path, mpp=0.5)


def test_pixels_in_another_file(tmp_path: Path) -> None:
    path = _write_ome(tmp_path / "a.ome.tif", levels(300, 400), "YXS")
    other = _write_ome(tmp_path / "b.ome.tif", levels(300, 400, seed=1), "YXS")
    with tifffile.TiffFile(other) as file:
        other_id = file.ome_metadata.split('UUID="')[1][:45]
    with tifffile.TiffFile(path, mode="r+") as file:
        named = f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">{other_id}</UUID></TiffData>'
        text = file.ome_metadata.replace("µ", "&#181;").replace('<TiffData IFD="0" PlaneCount="1"/>', named)
        assert named in text
        file.pages[0].tags["ImageDescription"].overwrite(text)
    with pytest.raises(
        ScanError, match="wanted all pixels in this file, some are missing or in other files; export it"
    ):
        open_slide(path)


def test_tiles_of_16_bits_become_8(tmp_path: Path) -> None:
    path, pixels = tmp_path / "slide.tif", np.random.default_rng(0).integers(0, 65536, (300, 400, 3), dtype=np.uint16)
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **TILED)
    assert np.array_equal(open_slide(path, mpp=0.5).read_region(0, 0, 400, 300), (pixels.astype(int) + 128) // 257)


def test_channels_of_one_page(tmp_path: Path) -> None:
    pyramid = levels(300, 400)
    layout = {"photometric": "rgb", "planarconfig": "separate"}
    path = _write_ome(tmp_path / "slide.ome.tif", _planes(pyramid), "SYX", **layout, **TILED)
    assert np.array_equal(open_slide(path, mpp=0.5).read_region(0, 0, 400, 300), pyramid[0])
    path = _write_ome(tmp_path / "slide.ome.tif", _planes(pyramid), "SYX", **layout)
    with pytest.raises(ScanError, match="photometric RGB, in separate planes; convert it"):
        open_slide(path, mpp=0.5)


def test_a_level_of_another_picture(tmp_path: Path) -> None:
    path, (full, half) = tmp_path / "slide.tif", levels(600, 800, (1, 2))
    with tifffile.TiffWriter(path) as file:
        layout = {"photometric": "rgb", "metadata": None, **TILED}
        file.write(full, **layout)
        file.write(half[:200], subfiletype=1, **layout)
    with pytest.raises(ScanError, match=r"level 1 of 400 x 200 pixels is not level 0 of 800 x 600 made smaller"):
        open_slide(path, mpp=0.5)
