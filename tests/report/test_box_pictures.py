from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.detection import Found, Target
from monai_pipelines.metrics import Detections, Lesions
from monai_pipelines.report import detection_pictures
from monai_pipelines.report.box_pictures import (
    Box,
    boxes_figure,
    image_finding_figure,
    scan_finding_figure,
    spacing_of,
)
from monai_pipelines.report.detection_results import Outcome, plain_row
from monai_pipelines.report.figures import png_bytes
from monai_pipelines.transforms.boxes import find_box_affine


def _inside(axes, kind, number=0):
    """Pixels of the picture whose centers lie in a box."""
    picture = axes.images[0]
    height, width = picture.get_array().shape[:2]
    left, right, bottom, top = picture.get_extent()
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = top + (np.arange(height) + 0.5) * (bottom - top) / height
    box = [patch for patch in axes.patches if patch.get_gid() == kind][number]
    across, down = (
        (v > a) & (v < a + n) for v, a, n in ((x, box.get_x(), box.get_width()), (y, box.get_y(), box.get_height()))
    )
    return np.outer(down, across)


def _bright(axes):
    return np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()).astype(float), 0) > 0.5


def _volume(shape, box):
    volume = torch.zeros(1, *shape)
    volume[(0, *(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True)))] = 1
    return volume


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.8, 2.5), (3, 1, 1)])
@pytest.mark.parametrize(
    "box", [(5, 20, 10, 11, 23, 14), (0, 0, 0, 4, 2, 3), (36, 44, 27, 40, 48, 30), (10, 10, 9, 11, 11, 10)]
)
def test_a_box_encloses_the_bright_cuboid_in_all_three_planes(spacing, box):
    shape, edges = (40, 48, 30), np.array(box, float)
    figure = scan_finding_figure(_volume(shape, box).numpy(), [Box("lesion", edges)], edges, spacing)
    assert [axes.get_title() for axes in figure.axes] == ["Axial", "Coronal", "Sagittal"]
    for axes, plane in zip(figure.axes, ((0, 1), (0, 2), (1, 2)), strict=True):
        assert _bright(axes).sum() == np.prod([box[a + 3] - box[a] for a in plane])
        np.testing.assert_array_equal(_inside(axes, "lesion"), _bright(axes))
        for low, high in (sorted(axes.get_xlim()), sorted(axes.get_ylim())):
            assert high - low == pytest.approx(60)
        (patch,) = [patch for patch in axes.patches if patch.get_gid() == "lesion"]
        middle = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
        assert middle == pytest.approx([np.mean(axes.get_xlim()), np.mean(axes.get_ylim())])


def test_planes_show_right_left_front_up_and_head_up():
    shape, at = (20, 20, 20), np.array([8.0, 8, 8, 12, 12, 12])
    for axis, sides in ((0, "left left none"), (1, "up none left"), (2, "none up up")):
        volume = torch.zeros(1, *shape)
        volume.transpose(1, axis + 1)[:, 15:] = 1  # the patient's right, front or head
        figure = scan_finding_figure(volume.numpy(), [], at, (1, 1, 1), view_mm=20)
        found = []
        for axes in figure.axes:
            rows, columns = np.nonzero(_bright(axes))
            num = len(_bright(axes))
            up, left = (rows < num / 2).all(), (columns < num / 2).all()
            found.append("none" if not len(rows) else "up" if up else "left" if left else "wrong")
        assert found == sides.split(), axis


def test_a_box_is_drawn_where_it_crosses_the_plane():
    at = np.array([10.0, 10, 10, 14, 14, 14])
    boxes = [Box("lesion", at), Box("detection", np.array([10.0, 10, 20, 14, 14, 24])), Box("ignored", at + 100)]
    figure = scan_finding_figure(np.zeros((1, 40, 40, 40)), boxes, at, (1, 1, 1))
    drawn = [sorted(patch.get_gid() for patch in axes.patches) for axes in figure.axes]
    assert drawn == [["lesion"], ["detection", "lesion"], ["detection", "lesion"]]


def test_kinds_differ_without_color_and_the_bar_is_10_mm():
    at = np.array([10.0, 10, 10, 14, 14, 14])
    figure = scan_finding_figure(
        np.zeros((1, 40, 40, 40)), [Box(kind, at) for kind in ("lesion", "detection", "ignored")], at, (0.5, 0.5, 2)
    )
    assert len({str(patch.get_linestyle()) for patch in figure.axes[0].patches}) == 3
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(10)


def test_a_large_finding_is_shown_whole():
    at = np.array([5.0, 5, 5, 95, 35, 35])
    figure = scan_finding_figure(np.zeros((1, 100, 40, 40)), [Box("lesion", at)], at, (1, 1, 1))
    assert abs(np.diff(figure.axes[0].get_xlim())) == pytest.approx(1.6 * 90)


@pytest.mark.parametrize("start", [-300.0, 300.0])
def test_a_detection_outside_of_the_scan(start):
    at = np.full(6, start) + [0, 0, 0, 5, 5, 5]
    figure = scan_finding_figure(np.ones((1, 40, 40, 40)), [Box("detection", at, "0.5")], at, (1, 1, 1))
    assert not any(_bright(axes).any() for axes in figure.axes)
    png_bytes(figure, 30)


def test_scores_outside_of_the_picture_are_not_drawn():
    at = np.array([50.0, 50, 50, 56, 56, 56])
    far = Box("detection", np.array([5.0, 5, 50, 9, 9, 56]), "0.25")
    wide = Box("detection", np.array([5.0, 5, 50, 95, 95, 56]), "0.75")
    figure = scan_finding_figure(np.zeros((1, 100, 100, 100)), [far, wide], at, (1, 1, 1))
    (score,) = [text for text in figure.axes[0].texts if text.get_gid() == "score"]
    assert score.get_text() == "0.75"
    x, y = score.get_position()
    assert min(figure.axes[0].get_xlim()) <= x <= max(figure.axes[0].get_xlim())
    assert min(figure.axes[0].get_ylim()) <= y <= max(figure.axes[0].get_ylim())


@pytest.mark.parametrize("box", [(10, 30, 14, 50), (0, 0, 3, 4), (36, 56, 40, 60)])
def test_a_box_in_an_image(box):
    image = torch.zeros(1, 40, 60)
    image[0, box[0] : box[2], box[1] : box[3]] = 1
    edges = np.array(box, float)
    figure = image_finding_figure(image, [Box("lesion", edges)], edges, px=4)
    for axes in figure.axes:
        np.testing.assert_array_equal(_inside(axes, "lesion"), _bright(axes))
    part = figure.axes[1]
    left, right = part.get_xlim()
    bottom, top = part.get_ylim()
    assert right - left == pytest.approx(bottom - top)
    assert left <= box[1] < box[3] <= right
    assert top <= box[0] < box[2] <= bottom
    length = np.ptp(part.lines[0].get_xdata())
    assert part.texts[-1].get_text() == f"{4 * length:g} px"


@pytest.mark.parametrize("oriented", [False, True])
def test_a_figure_of_a_batch(oriented):
    box = (5, 20, 10, 11, 23, 14)
    images = torch.stack([_volume((40, 48, 30), box), torch.zeros(1, 40, 48, 30)])
    targets = [
        Target(torch.tensor([box]).float(), torch.zeros(1), torch.tensor([False])),
        Target(torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, dtype=torch.bool)),
    ]
    affines = torch.diag(torch.tensor([0.7, 0.8, 2.5, 1])).repeat(2, 1, 1) if oriented else None
    figure = boxes_figure(images, targets, ["a", "b"], box_affines=affines)
    assert [axes.get_title() for axes in figure.axes[:3]] == (
        ["Axial", "Coronal", "Sagittal"] if oriented else ["x-y", "x-z", "y-z"]
    )
    for axes in figure.axes[:3]:
        assert _bright(axes).any()
        np.testing.assert_array_equal(_inside(axes, "lesion"), _bright(axes))
    assert not any(axes.patches for axes in figure.axes[3:])


def test_a_figure_of_images_with_detections():
    target = Target(torch.tensor([[2.0, 3, 6, 9], [0, 0, 2, 2]]), torch.zeros(2), torch.tensor([False, True]))
    found = Found(torch.tensor([[2.0, 3, 6, 8]]), torch.tensor([0.875]), torch.zeros(1))
    figure = boxes_figure(torch.zeros(5, 3, 12, 10), [target] * 5, list("abcde"), [found] * 5)
    assert len(figure.axes) == 5
    assert [patch.get_gid() for patch in figure.axes[4].patches] == ["lesion", "ignored", "detection"]
    assert figure.axes[4].texts[0].get_text() == "0.88"
    with pytest.raises(ValueError, match="a target and a title for each, got 2, 1 and 2"):
        boxes_figure(torch.zeros(2, 1, 8, 8), [target], ["a", "b"])
    with pytest.raises(ValueError, match="wanted 1 to 8 volumes, got 9"):
        boxes_figure(
            torch.zeros(9, 1, 2, 2, 2), [Target(torch.zeros(0, 6), torch.zeros(0), torch.zeros(0))] * 9, "a" * 9
        )


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(detection_pictures, "png_bytes", lambda figure, dpi: figures.append(figure) or b"\x89PNG")
    return figures


def test_boxes_of_the_source_are_drawn_in_the_image(drawn):
    """A scan with an offset and anisotropic voxels, and an image that was resized and padded."""
    box = (5, 20, 10, 11, 23, 14)
    affine = torch.tensor([[0.7, 0, 0, -30.0], [0, 0.8, 0, 12], [0, 0, 2.5, 100], [0, 0, 0, 1]])
    scan = MetaTensor(_volume((40, 48, 30), box), affine=affine)
    spacing, first = np.array([0.7, 0.8, 2.5]), np.array([-30.0, 12, 100]) - np.array([0.7, 0.8, 2.5]) / 2
    source = [*(first + spacing * box[:3]), *(first + spacing * box[3:])]
    image = torch.zeros(1, 40, 40)
    image[0, 8:12, 16:24] = 1
    to_source = torch.tensor([[0.5, 0, 0], [0, 0.5, -4], [0, 0, 1]])
    items = [
        {"image": scan, "box_affine": find_box_affine(scan)},
        {"image": image, "box_affine": to_source},
    ]
    assert spacing_of(items[0]["box_affine"]) == pytest.approx(spacing)
    for item, truth in zip(items, (source, [4.0, 4, 6, 8]), strict=True):
        row = plain_row({"image": "a", "found": Detections([truth], [0.9]), "lesions": Lesions([truth])})
        (picture,) = detection_pictures.finding_pictures([item], [row], ["mass"], [0.5])
        assert (picture["kind"], picture["class"], picture["score"]) == ("hit", "mass", 0.9)
        for axes in drawn[-1].axes:
            for kind in ("lesion", "detection"):
                np.testing.assert_array_equal(_inside(axes, kind), _bright(axes))


def test_of_a_miss_the_best_detection_below_the_threshold_is_drawn(drawn):
    lesion = [0.0, 0, 8, 8]
    found = Detections([lesion, lesion, [20, 20, 24, 24], [20, 20, 24, 24]], [0.3, 0.2, 0.4, 0.9])
    rows = [plain_row({"image": "a", "found": found, "lesions": Lesions([lesion])})]
    item = {"image": torch.zeros(1, 32, 32), "box_affine": torch.eye(3)}
    miss, alarm = detection_pictures.finding_pictures([item], rows, ["mass"], [0.5])
    assert (miss["kind"], miss["score"], miss["size"], miss["file"]) == ("miss", 0.3, 8, "pictures/miss-0.png")
    assert (alarm["kind"], alarm["score"], alarm["file"]) == ("false_alarm", 0.9, "pictures/false_alarm-0.png")
    boxes = [[patch.get_gid() for patch in figure.axes[1].patches] for figure in drawn]
    assert boxes == [["lesion", "detection", "detection"], ["lesion", "detection"]]


def test_findings_are_of_as_many_images_as_possible():
    hits = [Outcome("hit", image, box, 0, score, 5.0) for image, box, score in
            ((0, 0, 0.9), (0, 1, 0.8), (0, 2, 0.7), (1, 0, 0.6), (2, 0, 0.5), (3, 0, 0.4))]  # fmt: skip
    misses = [Outcome("miss", 0, box, 0, None, float(box)) for box in range(4)]
    alarms = [Outcome("false_alarm", image, 0, 0, image / 10, 5.0) for image in range(6)]
    chosen = detection_pictures.choose_findings([*alarms, *misses, *hits], 4)
    assert [(o.kind, o.image, o.box) for o in chosen] == [
        *(("hit", image, 0) for image in range(4)),
        *(("miss", 0, box) for box in (3, 2, 1, 0)),
        *(("false_alarm", image, 0) for image in (5, 4, 3, 2)),
    ]
    assert detection_pictures.choose_findings(chosen, 100) == chosen
    assert detection_pictures.choose_findings([], 4) == []
