from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_pipelines.report.pictures import images_figure, slices_figure, thumbnail


def _meta(volume, spacing_mm=(1.0, 1.0, 1.0)):
    return MetaTensor(torch.as_tensor(volume), affine=torch.diag(torch.tensor([*spacing_mm, 1.0])))


def _drawn(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_images_are_drawn_unchanged():
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (3, 5, 4)).astype(np.uint8)
    gray = rng.integers(0, 256, (1, 5, 4)).astype(np.uint8)
    figure = images_figure([torch.from_numpy(color), gray, _meta(gray)], ["a", "b $x$", "c"], columns=2)
    first, second, third = _drawn(figure)
    np.testing.assert_array_equal(first, color.transpose(1, 2, 0))
    np.testing.assert_array_equal(second, gray[0])
    np.testing.assert_array_equal(third, gray[0])
    assert [axes.get_title() for axes in figure.axes] == ["a", r"b \$x\$", "c"]
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0, 255)}


def test_floats_in_range_keep_their_brightness_and_others_are_rescaled_together():
    (dim,) = _drawn(images_figure([np.full((1, 2, 2), 0.2, np.float32)], ["t"]))
    assert (dim == 51).all()
    low, high = np.full((3, 2, 2), -2.0), np.full((3, 2, 2), 2.0)
    high[0, 0, 0] = 0.0
    first, second = _drawn(images_figure([low, high], ["t", "t"]))
    assert (first == 0).all()
    assert second[0, 0].tolist() == [128, 255, 255]
    assert (_drawn(images_figure([np.full((1, 2, 2), 7.0)], ["t"]))[0] == 0).all()


def test_volumes_become_slices():
    assert len(images_figure([np.zeros((1, 4, 4, 4))] * 2, ["t", "u"]).axes) == 6


@pytest.mark.parametrize(("images", "titles"), [([], []), ([np.zeros((1, 4, 4))], []), ([np.zeros((4, 4))], ["t"])])
def test_bad_images_are_refused(images, titles):
    with pytest.raises(ValueError, match="images_figure: wanted"):
        images_figure(images, titles)


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [((3, 28, 28), "png", (28, 28)), ((1, 400, 200), "jpeg", (96, 192)), ((3, 96, 96), "jpeg", (96, 96))],
)
def test_thumbnails_are_small_and_small_images_lossless(shape, kind, size):
    image = np.zeros(shape, np.uint8)
    image[:, : shape[1] // 2] = 200
    got, content = thumbnail(image)
    picture = Image.open(io.BytesIO(content))
    assert (got, picture.format.lower(), picture.size) == (kind, kind, size)
    pixels = np.asarray(picture).reshape(size[1], size[0], -1)
    assert abs(pixels[size[1] // 4, size[0] // 2].astype(int) - 200).max() <= (0 if kind == "png" else 3)
    assert pixels[-size[1] // 4, size[0] // 2].max() <= (0 if kind == "png" else 3)


def test_slices_follow_the_radiological_convention():
    """Corner marks in a volume of RAS axes: index 0 is left, posterior and inferior."""
    volume = np.zeros((2, 8, 6, 4))
    volume[0, 7, 5, 2] = 1  # right anterior, in the axial slice
    volume[0, 7, 3, 3] = 2  # right superior, in the coronal slice
    volume[0, 6, 5, 3] = 3  # anterior superior, in the sagittal slice
    volume[1] = 9  # other channels are not drawn
    figure = slices_figure([_meta(volume)], ["t"])
    axial, coronal, sagittal = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert (axial.shape, coronal.shape, sagittal.shape) == ((6, 8), (4, 8), (4, 6))
    assert (axial[0, 0], coronal[0, 0], sagittal[0, 0]) == (1, 2, 3)
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == [["R", "A", "1 mm"], ["R", "S", "1 mm"], ["A", "S", "1 mm"]]
    assert [axes.get_title() for axes in figure.axes] == ["Axial", "Coronal", "Sagittal"]


def test_volume_of_unknown_orientation_has_central_slices_without_letters():
    volume = torch.rand(1, 8, 6, 4)
    figure = slices_figure([volume], ["t"])
    for got, wanted in zip(_drawn(figure), (volume[0, :, :, 2], volume[0, :, 3], volume[0, 4]), strict=True):
        np.testing.assert_array_equal(got, wanted.flip(0, 1).T)
    assert [axes.get_title() for axes in figure.axes] == ["x-y", "x-z", "y-z"]
    assert not [text for axes in figure.axes for text in axes.texts]


def test_slices_keep_the_voxel_size():
    image = _meta(np.random.default_rng(0).random((1, 8, 6, 4)), (1.0, 2.0, 5.0))
    extents = [axes.images[0].get_extent() for axes in slices_figure([image], ["t"]).axes]
    assert extents == [[0, 8, 12, 0], [0, 8, 20, 0], [0, 12, 20, 0]]


def test_slices_through_a_voxel():
    volume = torch.rand(1, 8, 6, 4)
    drawn = _drawn(slices_figure([_meta(volume)] * 2, ["t", "u"], [(1, 2, 3), None]))
    for got, wanted in zip(drawn[:3], (volume[0, :, :, 3], volume[0, :, 2], volume[0, 1]), strict=True):
        np.testing.assert_array_equal(got, wanted.flip(0, 1).T)
    np.testing.assert_array_equal(drawn[3], volume[0, :, :, 2].flip(0, 1).T)


def test_scale_bars_of_a_figure_have_one_length():
    figure = slices_figure([_meta(np.zeros((1, 64, 24, 40)), (5.0, 5.0, 5.0))], ["t"])
    assert [float(np.ptp(axes.lines[0].get_xdata())) for axes in figure.axes] == [20, 20, 20]
    assert [axes.texts[-1].get_text() for axes in figure.axes] == ["20 mm"] * 3


@pytest.mark.parametrize("num", [1, 2, 3, 8])
def test_slices_of_many_volumes(num):
    assert len(slices_figure([np.zeros((1, 4, 4, 4))] * num, ["t"] * num).axes) == 3 * num


@pytest.mark.parametrize(
    ("images", "titles"),
    [
        ([], []),
        ([np.zeros((1, 4, 4, 4))] * 9, ["t"] * 9),
        ([np.zeros((1, 4, 4, 4))], []),
        ([np.zeros((4, 4, 4))], ["t"]),
    ],
)
def test_bad_volumes_are_refused(images, titles):
    with pytest.raises(ValueError, match="slices_figure: wanted"):
        slices_figure(images, titles)
