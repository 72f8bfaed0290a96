"""Maps drawn over images, cut through their maximum, and the text beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from monai.data import MetaTensor

from monai_pipelines.explain import Explanation, overlay_figure
from monai_pipelines.explain.overlay import resolution


def _explanation(map_: Any, **changed: Any) -> Explanation:
    dims = np.ndim(map_)
    defaults = {"method": "gradcam", "stage": "layer2", "cells": (4,) * dims, "cell_px": (2.0,) * dims, "prob": 0.9}
    return Explanation(np.asarray(map_, np.float32), **{**defaults, **changed})


def _volume() -> tuple[MetaTensor, Explanation]:
    rng = np.random.default_rng(0)
    affine = torch.diag(torch.tensor([3.0, 4.0, 5.0, 1.0]))
    image = MetaTensor(torch.tensor(rng.random((2, 8, 10, 12)), dtype=torch.float32), affine=affine)
    map_ = rng.random((8, 10, 12)) / 2
    map_[5, 2, 7] = 1
    return image, _explanation(map_)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_beside_its_overlay(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 6, 9)).astype(np.uint8)
    map_ = np.linspace(0, 1, 54).reshape(6, 9)
    figure = overlay_figure(image, _explanation(map_), title="a $title$")
    left, right, bar = figure.axes
    np.testing.assert_array_equal(left.images[0].get_array(), image.transpose(1, 2, 0).squeeze())
    below, above = right.images
    np.testing.assert_allclose(below.get_array(), image.mean(0))
    np.testing.assert_allclose(above.get_array(), map_, atol=1e-6)
    assert above.get_clim() == (0, 1)
    alpha = above.get_alpha()
    assert alpha[0, 0] == 0
    assert alpha.argmax() == 53
    assert above.get_extent() == below.get_extent()
    assert [text.get_text() for text in bar.get_yticklabels()] == ["0", "half", "most"]
    assert figure.get_suptitle() == r"a \$title\$"
    assert figure.get_supxlabel().splitlines() == [
        "Grad-CAM at layer2: 4 x 4 cells, 2 x 2 pixels apart; it resolves nothing finer",
        "White line: half of the map's maximum",
    ]


def test_volume_is_cut_through_the_maximum() -> None:
    image, explanation = _volume()
    figure = overlay_figure(image, explanation)
    axes = figure.axes
    volume, map_ = np.asarray(image)[0], explanation.map
    for values, row, layer in ((volume, axes[:3], 0), (volume, axes[3:6], 0), (map_, axes[3:6], 1)):
        drawn = [panel.images[layer].get_array() for panel in row]
        np.testing.assert_allclose(drawn[0], values[::-1, ::-1, 7].T)
        np.testing.assert_allclose(drawn[1], values[::-1, 2, ::-1].T)
        np.testing.assert_allclose(drawn[2], values[5, ::-1, ::-1].T)
    assert axes[3].images[1].get_extent() == [0, 8 * 3, 10 * 4, 0]
    assert axes[5].images[0].get_extent() == [0, 10 * 4, 12 * 5, 0]
    letters = [[text.get_text() for text in panel.texts] for panel in axes[:6]]
    assert letters == 2 * [["R", "A", "5 mm"], ["R", "S", "5 mm"], ["A", "S", "5 mm"]]
    assert figure.get_supxlabel().splitlines() == [
        "Grad-CAM at layer2: 4 x 4 x 4 cells, 6 x 8 x 10 mm apart; it resolves nothing finer",
        "Planes through the map's maximum (background excluded), white line: half of the map's maximum",
    ]


def test_planes_avoid_masked_air() -> None:
    image, explanation = _volume()
    image[0] += 1
    image[0, 5], image[0, :, :2] = -1, -1
    explanation.map[:, :, 3] *= 0.1
    explanation.map[1, 4:8, 3] = 0.8  # of equal voxels, the one in their middle
    shown, *_ = overlay_figure(image, explanation).axes
    np.testing.assert_allclose(shown.images[0].get_array(), np.asarray(image)[0, ::-1, ::-1, 3].T)
    sagittal = overlay_figure(image, explanation).axes[2].images[0].get_array()
    np.testing.assert_allclose(sagittal, np.asarray(image)[0, 1, ::-1, ::-1].T)


def test_no_evidence_inside() -> None:
    image, _ = _volume()
    image[0, :2] = -1
    map_ = np.zeros((8, 10, 12))
    map_[:2] = 1
    figure = overlay_figure(image, _explanation(map_), "disease")
    assert figure.axes[4].get_title() == "No evidence inside for disease"
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), np.asarray(image)[0, 6, ::-1, ::-1].T)
    assert figure.get_supxlabel().splitlines()[1] == "White line: half of the map's maximum"


def test_heading_says_if_the_class_is_not_predicted() -> None:
    image, explanation = np.zeros((1, 8, 8), np.uint8), _explanation(np.eye(8))
    titles = [overlay_figure(image, explanation, "$ill", predicted).axes[1].get_title() for predicted in (True, False)]
    assert titles == [r"Evidence for \$ill", r"Evidence for \$ill (not predicted)"]


@pytest.mark.parametrize("title", ["", "scan 1"])
def test_heading_of_two_lines_is_not_cut_off(title: str) -> None:
    image, explanation = np.zeros((1, 28, 28), np.uint8), _explanation(np.eye(28))
    figure = overlay_figure(image, explanation, "cancer-associated stroma of the rectum", title=title)
    FigureCanvasAgg(figure).draw()
    heading = figure.axes[1].title
    assert len(heading.get_text().splitlines()) == 2
    top = figure.texts[0].get_window_extent().y0 if title else figure.bbox.height
    assert heading.get_window_extent().y1 <= top


def test_line_at_half_surrounds_the_maximum() -> None:
    map_ = np.zeros((20, 30))
    map_[4:8, 20:26] = 1
    overlaid = overlay_figure(np.zeros((1, 20, 30), np.uint8), _explanation(map_)).axes[1]
    (line,) = overlaid.collections
    corners = line.get_paths()[0].get_extents()
    np.testing.assert_allclose([corners.x0, corners.x1, corners.y0, corners.y1], [19.5, 25.5, 3.5, 7.5])


def test_volume_of_unknown_orientation_has_no_letters() -> None:
    image, explanation = _volume()
    figure = overlay_figure(image.numpy(), explanation)
    assert not [text for axes in figure.axes[:6] for text in axes.texts]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["x-y", "x-z", "y-z"]


def test_text_of_occlusion_and_of_an_empty_map() -> None:
    explanation = _explanation(np.zeros((8, 8)), method="occlusion", stage=None, cells=(9, 9), window_px=(5, 4))
    image = np.zeros((1, 8, 8), np.uint8)
    text = "Occlusion sensitivity: windows of 5 x 4 pixels, moved by 2 x 2; it resolves nothing finer"
    assert resolution(image, explanation) == text
    assert overlay_figure(image, explanation).get_supxlabel() == text
    volume, _ = _volume()
    explanation = _explanation(np.zeros((8, 10, 12)), method="occlusion", stage=None, window_px=(4, 5, 6))
    assert "windows of 12 x 20 x 30 mm, moved by 6 x 8 x 10;" in resolution(volume, explanation)
    explanation, image = _explanation(np.zeros((8, 8))), np.zeros((1, 8, 8), np.uint8)
    assert overlay_figure(image, explanation).axes[1].get_title() == "No evidence for the class"


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted an image of the map's size \(8, 8\), got \(8, 9\)"):
        overlay_figure(np.zeros((1, 8, 9)), _explanation(np.zeros((8, 8))))
