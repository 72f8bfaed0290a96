"""Where a network looked on a slide: attention over the thumbnail, and the tiles themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.stats import rankdata

from monai_pipelines.report.figures import plain
from monai_pipelines.report.pictures import bar_length, scale_bar

Scale = Literal["mean", "rank"]

_COLUMNS = 8  # tiles in a row of the sheet
_DRAWN_PX = 1500  # of a thumbnail: larger ones are shrunk
_COLORMAP = mpl.colormaps["RdYlBu_r"]


class _Heat(NamedTuple):
    values: NDArray[np.float64]  # (N,), mapped to colors
    norm: Normalize
    label: str
    ticks: Mapping[float, str]


def attention_figure(
    thumbnail: NDArray[np.uint8],
    downsample: float,
    coords: ArrayLike,
    level0_px: int,
    values: ArrayLike,
    slide_mpp: float | None = None,
    title: str = "",
    scale: Scale = "mean",
    outlines: Sequence[NDArray[np.float64]] = (),
) -> Figure:
    """The slide, and beside or below it the attention of its tiles over the slide in gray, with a color bar.

    Args:
        thumbnail: (h, w, 3) uint8.
        downsample: level-0 pixels per pixel of the thumbnail.
        coords: (N, 2) level-0 (x, y) of the tiles' upper left corners.
        level0_px: side of a tile in level-0 pixels.
        values: (N,) attention; where tiles overlap, their mean is drawn.
        slide_mpp: micrometres per level-0 pixel, for the scale bar in mm; None draws none.
        title: one line.
        scale: of the colors. "mean": multiples of the mean tile's attention, logarithmic, with the range of 99% of the
            tiles (between 2 and 64 times); mean attention has the pale color in the middle. "rank": percentile within
            the slide, which shows order where differences are tiny or huge.
        outlines: closed polygons (P, 2) in level-0 pixels, drawn as black lines: a pathologist's annotation.

    Raises:
        ValueError: a wrong number of values, or an unknown scale.

    Example:
        >>> figure = attention_figure(np.zeros((8, 16, 3), np.uint8), 32, [[0, 0], [256, 0]], 256, [0.9, 0.1], 0.5)
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['Slide', 'Attention']
    """
    corners = np.asarray(coords)
    heat = _heat(values, scale)
    if len(heat.values) != len(corners):
        raise ValueError(f"attention_figure: wanted a value for each of {len(corners)} tiles, got {len(heat.values)}")
    if factor := max(thumbnail.shape[:2]) // _DRAWN_PX:
        thumbnail, downsample = np.asarray(Image.fromarray(thumbnail).reduce(factor + 1)), downsample * (factor + 1)
    height, width = thumbnail.shape[:2]
    wide = width > 1.5 * height
    across = 8.0 if wide else float(np.clip(6.5 * width / height, 1.5, 5))
    down = min(across * height / width, 6.5)
    size = (across + 1.4, 2 * down + 1.2) if wide else (2 * across + 1.6, down + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    slide, map_ = figure.subplots(*((2, 1) if wide else (1, 2)))
    gray = np.asarray(thumbnail, dtype=np.float64).mean(axis=2)
    painted = _painted((height, width), corners / downsample, level0_px / downsample, heat.values)
    slide.imshow(thumbnail)
    map_.imshow(128 + gray / 2, cmap="gray", vmin=0, vmax=255)
    drawn = map_.imshow(painted, cmap=_COLORMAP, norm=heat.norm, alpha=0.75, interpolation="nearest")
    low, high = heat.values.min() < (heat.norm.vmin or 0), heat.values.max() > (heat.norm.vmax or 0)
    extend = ("neither", "min", "max", "both")[low + 2 * high]
    bar = figure.colorbar(drawn, ax=[slide, map_], extend=extend, shrink=0.8, aspect=25, pad=0.015)
    bar.set_ticks(list(heat.ticks), labels=list(heat.ticks.values()))
    bar.set_label(heat.label, fontsize=11)
    for axes, name in ((slide, "Slide with annotation" if outlines else "Slide"), (map_, "Attention")):
        for ring in outlines:
            axes.plot(*(np.vstack([ring, ring[:1]]) / downsample - 0.5).T, color="black", linewidth=1)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
        axes.set_title(name, fontsize=11)
        axes.spines[:].set_color("#d0d7de")
        if slide_mpp is not None:
            scale_bar(axes, bar_length((width - 0.5) * slide_mpp * downsample / 1000), 1000 / (slide_mpp * downsample))
    if title:
        figure.suptitle(plain(title, 90, lines=1), fontsize=12, weight="bold")
    return figure


def tiles_figure(
    top: Sequence[NDArray[np.uint8]],
    bottom: Sequence[NDArray[np.uint8]],
    top_captions: Sequence[str],
    bottom_captions: Sequence[str],
    title: str = "",
) -> Figure:
    """Contact sheet of the tiles with the most and the least attention.

    Args:
        top: (h, w, 3) uint8 each, highest first.
        bottom: the same, lowest first.
        top_captions, bottom_captions: one short text per tile.
        title: one line.

    Raises:
        ValueError: no tiles, or a wrong number of captions.

    Example:
        >>> tile = np.zeros((8, 8, 3), np.uint8)
        >>> len(tiles_figure([tile] * 2, [tile] * 2, ["9x", "4x"], ["0x", "0x"]).subfigs)
        2
    """
    parts = (("Most attention", top, top_captions), ("Least attention", bottom, bottom_captions))
    if not len(top) or not len(bottom) or any(len(tiles) != len(captions) for _, tiles, captions in parts):
        numbers = ", ".join(f"{len(tiles)} and {len(captions)}" for _, tiles, captions in parts)
        raise ValueError(f"tiles_figure: wanted top and bottom tiles and a caption for each, got {numbers}")
    columns = min(_COLUMNS, max(len(top), len(bottom)))
    rows = [math.ceil(len(tiles) / columns) for _, tiles, _ in parts]
    heights = [1.85 * num + 0.4 for num in rows]
    figure = Figure(figsize=(1.6 * columns, sum(heights) + 0.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    for part, num, (name, tiles, captions) in zip(halves, rows, parts, strict=True):
        panels = part.subplots(num, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, tile, caption in zip(panels, tiles, captions, strict=False):
            axes.imshow(tile)
            axes.set_title(plain(caption, 24, lines=2), fontsize=9)
        part.suptitle(name, fontsize=11, x=0.01, ha="left")
    if title:
        figure.suptitle(plain(title, 20 * columns, lines=1), fontsize=12, weight="bold")
    return figure


def heat_colors(values: ArrayLike, scale: Scale = "mean") -> NDArray[np.uint8]:
    """(N, 3) uint8: the colors that :func:`attention_figure` gives to tiles of these values."""
    heat = _heat(values, scale)
    return _COLORMAP(heat.norm(heat.values), bytes=True)[:, :3]


def _heat(values: ArrayLike, scale: Scale) -> _Heat:
    attention = np.asarray(values, dtype=np.float64)
    if scale == "rank":
        percent = 100 * (rankdata(attention) - 0.5) / len(attention)
        ticks = {float(tick): f"{tick}" for tick in (0, 25, 50, 75, 100)}
        label = "Attention, percentile within the slide"
        return _Heat(percent, Normalize(0, 100), label, ticks)
    if scale != "mean":
        raise ValueError(f'attention_figure: scale must be "mean" or "rank", got {scale!r}')
    times = np.log2(np.maximum(attention / attention.mean(), 1e-12))
    limit = math.ceil(np.clip(np.percentile(np.abs(times), 99), 1, 6))
    step = 1 if limit < 4 else 2
    powers = range(-(limit // step) * step, limit + 1, step)
    ticks = {float(power): f"{2**power}\u00d7" if power >= 0 else f"1/{2**-power}\u00d7" for power in powers}
    label = "Attention, times that of the mean tile"
    return _Heat(times, Normalize(-limit, limit), label, ticks)


def _painted(
    shape: tuple[int, int], corners: NDArray[Any], side: float, values: NDArray[np.float64]
) -> np.ma.MaskedArray[Any, Any]:
    """Values of the tiles on the pixels of the thumbnail, masked outside the tiles."""
    total, count = np.zeros(shape), np.zeros(shape)
    low = np.rint(corners).astype(int)
    high = np.maximum(np.rint(corners + side).astype(int), low + 1)
    for (x0, y0), (x1, y1), value in zip(low, high, values, strict=True):
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    return np.ma.masked_where(count == 0, total / np.maximum(count, 1))
