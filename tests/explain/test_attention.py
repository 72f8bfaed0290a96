from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import percentileofscore

from monai_pipelines.explain.attention import attention_figure, heat_colors, tiles_figure

SIDE = 512  # level-0 pixels of a tile
DOWNSAMPLE = 32


def _thumbnail(height=40, width=50):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _figure(coords, values, **options):
    return attention_figure(_thumbnail(), DOWNSAMPLE, coords, SIDE, values, **options)


def _heat(figure):
    """The heat map and its normalization."""
    return figure.axes[1].images[1].get_array(), figure.axes[1].images[1].norm


def test_heat_lies_on_the_tiles():
    """16 pixels of the thumbnail each, at level-0 coordinates over the downsample."""
    coords = np.array([[0, 0], [512, 320], [1120, 768]])
    figure = _figure(coords, [0.7, 0.1, 0.2])
    painted, _ = _heat(figure)
    wanted = np.full((40, 50), np.nan)
    for (x, y), value in zip(coords // DOWNSAMPLE, [0.7, 0.1, 0.2], strict=True):
        wanted[y : y + 16, x : x + 16] = math.log2(3 * value)
    np.testing.assert_allclose(painted.filled(np.nan), wanted)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), _thumbnail())
    assert {axes.get_xlim() + axes.get_ylim() for axes in figure.axes[:2]} == {(-0.5, 49.5, 39.5, -0.5)}


def test_tiles_beyond_the_edge_and_overlapping_tiles():
    painted, _ = _heat(_figure([[0, 0], [256, 0], [1400, 1100]], [1, 4, 1]))
    assert painted[0, 0] == pytest.approx(-1)
    assert painted[0, 8] == pytest.approx(0)  # the mean of log2(1/2) and log2(2)
    assert painted[0, 16] == pytest.approx(1)
    assert painted.mask[39, 43]
    assert not painted.mask[39, 44]


def test_huge_thumbnails_are_shrunk_with_their_overlays():
    thumbnail = _thumbnail(1000, 3200)
    figure = attention_figure(thumbnail, 4, [[3000, 1200]], 600, [1.0], outlines=[np.full((3, 2), 1200.0)])
    painted, _ = _heat(figure)
    rows, columns = np.nonzero(~painted.mask)
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [100, 149, 250, 299]
    wanted = thumbnail[:999, :3198].reshape(333, 3, 1066, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[:333, :1066], wanted, atol=1)
    assert figure.axes[0].lines[0].get_xydata()[0].tolist() == [99.5, 99.5]


def test_tiles_smaller_than_a_pixel_are_visible():
    painted, _ = _heat(attention_figure(_thumbnail(), 32, [[64, 96]], 8, [1.0]))
    assert np.argwhere(~painted.mask).tolist() == [[3, 2]]


@pytest.mark.parametrize(
    ("values", "limit", "ticks", "extend"),
    [
        ([0.25] * 4, 1, ["1/2x", "1x", "2x"], "neither"),
        ([1, 1, 1, 5], 2, ["1/4x", "1/2x", "1x", "2x", "4x"], "neither"),
        ([1, 1, 1, 1e-9], 6, ["1/64x", "1/16x", "1/4x", "1x", "4x", "16x", "64x"], "min"),
        ([2] * 40 + [0.05], 4, ["1/16x", "1/4x", "1x", "4x", "16x"], "min"),
    ],
)
def test_colors_are_multiples_of_the_mean(values, limit, ticks, extend):
    figure = _figure(np.arange(2 * len(values)).reshape(-1, 2), values)
    _, norm = _heat(figure)
    bar = figure.axes[2]
    assert (norm.vmin, norm.vmax) == (-limit, limit)
    assert [text.get_text().replace("\u00d7", "x") for text in bar.get_yticklabels()] == ticks
    assert bar.get_ylabel() == "Attention, times that of the mean tile"
    assert figure.axes[1].images[1].colorbar.extend == extend


def test_colors_by_rank():
    values = np.random.default_rng(1).integers(0, 6, 20) / 10
    coords = np.stack([np.arange(20) * SIDE, np.zeros(20, int)], axis=1)
    figure = attention_figure(_thumbnail(16, 320), DOWNSAMPLE, coords, SIDE, values, scale="rank")
    painted, norm = _heat(figure)
    wanted = [percentileofscore(values, value, "mean") for value in values]
    assert painted[5, 5::16].tolist() == pytest.approx(wanted)
    assert (norm.vmin, norm.vmax) == (0, 100)
    assert figure.axes[2].get_ylabel() == "Attention, percentile within the slide"


@pytest.mark.parametrize("scale", ["mean", "rank"])
def test_heat_colors_equal_those_of_the_figure(scale):
    values = np.random.default_rng(3).dirichlet([0.3] * 20)
    coords = np.stack([np.arange(20) * SIDE, np.zeros(20, int)], axis=1)
    heat = attention_figure(_thumbnail(16, 320), DOWNSAMPLE, coords, SIDE, values, scale=scale).axes[1].images[1]
    wanted = heat.cmap(heat.norm(heat.get_array()[5, 5::16]), bytes=True)[:, :3]
    np.testing.assert_array_equal(heat_colors(values, scale), wanted)


@pytest.mark.parametrize(("mpp", "downsample", "length_mm"), [(0.5, 16, 0.05), (0.25, 64, 0.1), (0.5, 1600, 5)])
def test_length_of_the_scale_bar(mpp, downsample, length_mm):
    figure = attention_figure(_thumbnail(), downsample, [[0, 0]], SIDE, [1.0], slide_mpp=mpp)
    for axes in figure.axes[:2]:
        (bar,), (text,) = axes.lines, axes.texts
        start, end = bar.get_xdata()
        assert text.get_text() == f"{length_mm:g} mm"
        assert (end - start) * downsample * mpp / 1000 == pytest.approx(length_mm)
        assert 5 < end - start < 12.5  # of 50 pixels


def test_no_scale_bar_without_mpp():
    assert not _figure([[0, 0]], [1.0]).axes[0].lines


def test_outlines_are_closed():
    ring = np.array([[0.0, 0.0], [640.0, 0.0], [640.0, 320.0]])
    figure = _figure([[0, 0]], [1.0], outlines=[ring])
    for axes in figure.axes[:2]:
        (line,) = axes.lines
        np.testing.assert_allclose(line.get_xydata(), [[-0.5, -0.5], [19.5, -0.5], [19.5, 9.5], [-0.5, -0.5]])
    assert figure.axes[0].get_title() == "Slide with annotation"


@pytest.mark.parametrize(("shape", "beside"), [((40, 50), True), ((90, 30), True), ((20, 80), False)])
def test_wide_slides_are_stacked(shape, beside):
    figure = attention_figure(_thumbnail(*shape), DOWNSAMPLE, [[0, 0]], SIDE, [1.0], title="a $x$")
    figure.draw_without_rendering()
    slide, heat = (axes.get_position() for axes in figure.axes[:2])
    assert (heat.x0 >= slide.x1) == beside
    assert (heat.y1 <= slide.y0) != beside
    assert figure.get_suptitle() == r"a \$x\$"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"values": [1, 2]}, "wanted a value for each of 1 tiles, got 2"), ({"scale": "log"}, 'must be "mean" or "rank"')],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _figure([[0, 0]], **{"values": [1.0], **options})


# ---- tiles


def test_sheet_shows_every_tile_with_its_caption():
    tiles = np.random.default_rng(2).integers(0, 256, (13, 8, 8, 3)).astype(np.uint8)
    captions = [f"{k}$" for k in range(13)]
    figure = tiles_figure(list(tiles[:10]), list(tiles[10:]), captions[:10], captions[10:], "title")
    shown = [axes for part in figure.subfigs for axes in part.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [rf"{k}\$" for k in range(13)]
    for axes, tile in zip(shown, tiles, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), tile)
    assert [part.get_suptitle() for part in figure.subfigs] == ["Most attention", "Least attention"]


@pytest.mark.parametrize(("top", "bottom", "captions"), [(0, 1, 0), (1, 0, 1), (2, 1, 1)])
def test_sheet_needs_tiles_and_captions(top, bottom, captions):
    tile = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="tiles_figure: wanted"):
        tiles_figure([tile] * top, [tile] * bottom, ["a"] * captions, ["b"] * bottom)
