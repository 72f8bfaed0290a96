"""Which pages of a TIFF make one image in color: one of RGB, or three of gray named red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree

import tifffile

from monai_pipelines.errors import ScanError

_AXES = {"Z": "focal planes", "T": "time points", "C": "channels"}  # tifffile's letters
_COLORS = ("red", "green", "blue")


def color_pages(path: str, file: tifffile.TiffFile) -> list[list[Any]]:
    """The pages of each level of a TIFF's first image: one of RGB, or those of red, green and blue.

    Args:
        path: of the slide, for the error.
        file: open.

    Raises:
        ScanError: no image, focal planes, time points, channels that are not named as colors, pages in other files.
    """
    if not file.series:
        raise ScanError(path, "wanted a TIFF with an image, this one has none")
    series = file.series[0]
    sizes = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"}
    order = _order(path, file) if sizes == {"C": 3} else [0]
    if sizes and order == [0]:
        got = " and ".join(f"{size} {_AXES.get(axis, 'pages of one size')}" for axis, size in sizes.items())
        raise ScanError(path, f"wanted one image in color, got {got}; export one as RGB")
    levels = [[_page(path, file, level.pages, plane) for plane in order] for level in series.levels]
    if len(order) == 1 and levels[0][0].samplesperpixel == 1:
        raise ScanError(path, "wanted a slide in color, got gray levels (fluorescence?); export it as RGB")
    return levels


def _order(path: str, file: tifffile.TiffFile) -> list[int]:
    """Which of three channels is red, green and blue, by the names that OME-XML gives them."""
    names: list[str] = []
    with suppress(ElementTree.ParseError):
        root = ElementTree.fromstring(file.ome_metadata or "")
        pixels = next(root.iterfind(".//{*}Pixels"), root)
        names = [channel.get("Name", "") for channel in pixels.iterfind("{*}Channel")]
    found = [name.strip().lower() for name in names]
    for colors in (_COLORS, tuple(color[0] for color in _COLORS)):
        if sorted(found) == sorted(colors):
            return [found.index(color) for color in colors]
    named = "of other names" if any(names) else "without names"  # not quoted: a file may name a patient
    raise ScanError(
        path,
        f"wanted red, green and blue, got 3 channels {named} (fluorescence?); export a bright-field slide as RGB, or "
        "name its channels Red, Green and Blue in the OME-XML",
    )


def _page(path: str, file: tifffile.TiffFile, pages: Sequence[Any], index: int) -> Any:
    page = pages[index] if index < len(pages) else None
    if page is None or page.parent is not file:
        raise ScanError(path, "wanted all pixels in this file, some are missing or in other files; export it as one")
    return page.aspage()
