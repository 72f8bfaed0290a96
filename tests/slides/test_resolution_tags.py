"""Resolution tags of a TIFF that are no resolution: shown by an error, or ignored where the caller knows better."""

from __future__ import annotations

import logging
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import tifffile

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import open_slide
from tests.slides.slide_files import levels

ASCII, SHORT, LONG, RATIONAL, SRATIONAL, FLOAT, DOUBLE = 2, 3, 4, 5, 10, 11, 12  # types of tags
CENTIMETER = (SHORT, 3)


def _write(path: Path, tile: tuple[int, int] | None, x: tuple[int, Any], y: tuple[int, Any], unit: tuple) -> Path:
    tifffile.imwrite(path, levels(100, 120)[0], photometric="rgb", metadata=None, tile=tile)
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        for name, (kind, value) in (("XResolution", x), ("YResolution", y), ("ResolutionUnit", unit)):
            tags[name].overwrite(value, dtype=kind)
    return path


@pytest.mark.parametrize("tile", [(64, 64), None], ids=["OpenSlide", "tifffile"])
@pytest.mark.parametrize(
    ("x", "y", "unit"),
    [
        ((RATIONAL, (0, 1)), None, CENTIMETER),
        ((RATIONAL, (1, 0)), None, CENTIMETER),
        ((RATIONAL, (0, 0)), None, CENTIMETER),
        ((RATIONAL, (2**32 - 1, 1)), None, CENTIMETER),
        ((SRATIONAL, (-20_000, 1)), None, CENTIMETER),
        ((FLOAT, nan), None, CENTIMETER),
        ((DOUBLE, inf), None, CENTIMETER),
        ((LONG, 20_000), None, CENTIMETER),
        ((ASCII, "fine"), None, CENTIMETER),
        ((RATIONAL, (20_000, 1)), (RATIONAL, (1, 1)), CENTIMETER),
        ((RATIONAL, (20_000, 1)), (RATIONAL, (10_000, 1)), CENTIMETER),
        ((RATIONAL, (20_000, 1)), None, (SHORT, 1)),
        ((RATIONAL, (20_000, 1)), None, (SHORT, 9)),
    ],
)
def test_no_resolution(
    tmp_path: Path,
    tile: tuple[int, int] | None,
    x: tuple,
    y: tuple | None,
    unit: tuple,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "tifffile")
    path = _write(tmp_path / "slide.tif", tile, x, y or x, unit)
    with pytest.raises(ScanError, match=r"wanted (a resolution|square pixels).*, got .*set it: knob `slide_mpp`"):
        open_slide(path)
    assert open_slide(path, mpp=0.25).mpp == 0.25


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        ((RATIONAL, (0, 1)), "got TIFF XResolution of 0 per centimeter; set it"),
        ((RATIONAL, (1, 0)), r"got TIFF XResolution of '\(1, 0\)' per centimeter; set it"),
        ((DOUBLE, nan), "got TIFF XResolution of nan per centimeter; set it"),
        ((ASCII, "fine"), "got TIFF XResolution of 'fine' per centimeter; set it"),
    ],
)
def test_the_error_shows_what_came(tmp_path: Path, x: tuple, shown: str) -> None:
    with pytest.raises(ScanError, match=shown):
        open_slide(_write(tmp_path / "slide.tif", None, x, x, CENTIMETER))


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_floats_are_read(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    number = (FLOAT, 20_000.0)
    assert open_slide(_write(tmp_path / "slide.tif", tile, number, number, CENTIMETER)).mpp == pytest.approx(0.5)
