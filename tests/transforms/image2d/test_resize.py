from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_pipelines.transforms import ResizeImage

SIZES = [((40, 60), (20, 30)), ((61, 47), (24, 24)), ((300, 200), (17, 40)), ((20, 30), (50, 40)), ((33, 20), (20, 33))]


def image(size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    """Noise over a slope: any error in position or weight shows."""
    rng = np.random.default_rng(0)
    slope = np.add.outer(np.linspace(0, 120, size[0]), np.linspace(0, 60, size[1]))
    return torch.from_numpy((slope + rng.uniform(0, 70, (channels, *size))).astype(np.uint8))


def _reference_weights(source: int, wanted: int) -> np.ndarray:
    """(wanted, source): a triangle around each new center, as wide as the reduction, cut at the border."""
    step = source / wanted
    width = max(step, 1)
    centers = (np.arange(wanted) + 0.5) * step
    distance = np.abs(np.arange(source) + 0.5 - centers[:, None]) / width
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def _reference_resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (_reference_weights(s, w) for s, w in zip(pixels.shape[-2:], size, strict=True))
    return rows @ pixels.astype(float) @ columns.T


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_triangle_filter_and_pillow(source: tuple[int, int], size: tuple[int, int], channels: int) -> None:
    x = image(source, channels)
    expected = _reference_resized(x.numpy(), size)
    smooth = ResizeImage(size)(x.float() / 255)
    assert smooth.dtype == torch.float32
    np.testing.assert_allclose(smooth * 255, expected, atol=1e-3)
    whole = ResizeImage(size)(x)
    assert whole.dtype == torch.uint8
    assert np.abs(whole.numpy() - expected).max() <= 1
    assert np.abs(whole.numpy() - expected).mean() < 0.4  # rounded twice: rows, columns
    pillow = [np.asarray(Image.fromarray(c.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)) for c in x]
    assert np.abs(whole.numpy().astype(int) - np.stack(pillow)).max() <= 1


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, fit: str) -> None:
    x = (image((61, 47)) / 255).to(dtype)
    for size in ((24, 24), (70, 90)):
        out = ResizeImage(size, fit, fill=0.25)(x)
        assert out.dtype == dtype
        expected = ResizeImage(size, fit, fill=0.25)(x.float())
        torch.testing.assert_close(out.as_tensor(), expected.as_tensor().to(dtype), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_gpu_equals_cpu(dtype: torch.dtype) -> None:
    x = image((61, 47)) if dtype == torch.uint8 else (image((61, 47)) / 255).to(dtype)
    on_gpu = ResizeImage((24, 30), "pad", fill=1)(x.cuda())
    assert on_gpu.is_cuda
    assert on_gpu.dtype == dtype
    difference = on_gpu.cpu().double() - ResizeImage((24, 30), "pad", fill=1)(x).double()
    assert difference.abs().max() <= (1 if dtype == torch.uint8 else 1e-3)


def test_fine_grating_becomes_gray() -> None:
    """Without anti-aliasing a grating of one pixel would be all black or all white."""
    grating = (torch.arange(200) % 2 * 255).to(torch.uint8).expand(1, 200, 200)
    out = ResizeImage((40, 40))(grating)[..., 2:-2]
    assert (out.float() - 127.5).abs().max() < 6


def test_hand_worked_reduction() -> None:
    """To a half: weights 1/8, 3/8, 3/8, 1/8; at the border 3/7, 3/7, 1/7."""
    row = torch.tensor([[[7.0, 0, 0, 16, 8, 0]]]) / 16
    out = ResizeImage((1, 3))(row) * 16
    assert out.flatten().tolist() == pytest.approx([3, (16 * 3 + 8) / 8, (16 + 24) / 7])


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_right_size_is_returned_unchanged(fit: str) -> None:
    for x in (image((20, 31)), image((20, 31)).float() / 255):
        out = ResizeImage((20, 31), fit)(x)
        assert out.dtype == x.dtype
        assert torch.equal(out.as_tensor(), x)


@pytest.mark.parametrize(
    ("source", "size", "inner", "start"),
    [
        ((40, 80), (20, 20), (10, 20), (5, 0)),
        ((80, 40), (20, 20), (20, 10), (0, 5)),
        ((10, 30), (41, 60), (20, 60), (10, 0)),
        ((500, 3), (20, 20), (20, 1), (0, 9)),
    ],
)
@pytest.mark.parametrize("fill", [0, 0.5, 1])
def test_pad(
    source: tuple[int, int], size: tuple[int, int], inner: tuple[int, int], start: tuple[int, int], fill: float
) -> None:
    for x, top in ((image(source), 255), (image(source).float() / 255, 1)):
        out = ResizeImage(size, "pad", fill)(x).as_tensor()
        where = (slice(None), *(slice(s, s + n) for s, n in zip(start, inner, strict=True)))
        assert torch.equal(out[where], ResizeImage(inner)(x).as_tensor())
        outside = out.clone()
        outside[where] = round(fill * 255) if top == 255 else fill
        assert (outside == (round(fill * 255) if top == 255 else fill)).all()
        assert out.dtype == x.dtype


@pytest.mark.parametrize(
    ("source", "size", "inner", "start"),
    [
        ((40, 80), (20, 20), (20, 40), (0, 10)),
        ((80, 40), (20, 20), (40, 20), (10, 0)),
        ((10, 30), (40, 61), (40, 120), (0, 30)),
    ],
)
def test_crop(source: tuple[int, int], size: tuple[int, int], inner: tuple[int, int], start: tuple[int, int]) -> None:
    x = image(source)
    whole = ResizeImage(inner)(x).as_tensor()
    out = ResizeImage(size, "crop")(x).as_tensor()
    top, left = start
    middle = whole[:, top : top + size[0], left : left + size[1]]
    assert tuple(out.shape[1:]) == size
    assert torch.equal(out, middle)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_affine_follows(source: tuple[int, int], size: tuple[int, int], fit: str) -> None:
    """Brightness encodes position: the affine must agree."""
    rows, columns = np.indices(source) / 1000
    places = MetaTensor(torch.from_numpy(np.stack([rows, columns])), affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))
    out = ResizeImage(size, fit, fill=1)(places)
    place_mm = out.affine.numpy()[:2, :2] @ np.indices(size).reshape(2, -1) + out.affine.numpy()[:2, 3:]
    encoded_mm = out.numpy().reshape(2, -1) * 1000 * np.array([[2], [3]])
    extent = np.array(source)[:, None] * [[2], [3]]
    reach = 2 * extent / np.array(size)[:, None] + [[2], [3]]  # the border pulls inwards
    inside = ((place_mm > reach) & (place_mm < extent - reach)).all(axis=0)
    assert inside.sum() > 10 or source == (300, 200)
    np.testing.assert_allclose(place_mm[:, inside], encoded_mm[:, inside], atol=0.3)  # the sampled triangle is skewed


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"size must be \(H, W\) in pixels, or one number, got \[20\]"):
        ResizeImage([20])
    with pytest.raises(ValueError, match=r"size must be \(H, W\) in pixels, or one number, got \[20, 0\]"):
        ResizeImage([20, 0])
    with pytest.raises(ValueError, match="fit must be 'stretch', 'pad' or 'crop', got 'squash'"):
        ResizeImage((2, 2), "squash")
    with pytest.raises(ValueError, match=r"fill must lie in 0..1 \(black..white\), got 255"):
        ResizeImage((2, 2), fill=255)
    with pytest.raises(ValueError, match=r"wanted an image \(C, H, W\), got shape \(1, 1, 4, 4\)"):
        ResizeImage((2, 2))(torch.zeros(1, 1, 4, 4))
    with pytest.raises(TypeError, match=r"wanted uint8 or floating point, got torch\.int16"):
        ResizeImage((2, 2))(torch.zeros(1, 4, 4, dtype=torch.int16))
