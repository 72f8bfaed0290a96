from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.transforms import NormalizeImage

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _reference_normalized(x: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    """Channels last, where numpy broadcasts without naming axes."""
    values = x / 255 if x.dtype == np.uint8 else x.astype(float)
    return np.moveaxis((np.moveaxis(values, -3, -1) - np.array(mean)) / np.array(std), -1, -3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 7, 5), (4, 3, 7, 5), (1, 3, 7, 5)])
@pytest.mark.parametrize(
    ("mean", "std", "numbers"),
    [
        (0.5, 0.25, None),
        ([0.7, 0.5, 0.6], [0.2, 0.3, 0.25], None),
        ((0.7, 0.5, 0.6), 0.2, None),
        ("imagenet", "imagenet", IMAGENET),
        ("imagenet", 0.2, (IMAGENET[0], 0.2)),
    ],
)
def test_images_and_batches(mean: Any, std: Any, numbers: Any, shape: tuple[int, ...], dtype: type) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    x = x if dtype is np.uint8 else x / dtype(255)
    out = NormalizeImage(mean, std)(torch.from_numpy(x))
    assert out.dtype == (torch.float32 if dtype is np.uint8 else torch.from_numpy(x).dtype)
    np.testing.assert_allclose(out, _reference_normalized(x, *(numbers or (mean, std))), atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 7, 5), (2, 1, 7, 5)])
def test_imagenet_of_one_channel_is_the_mean_of_the_three(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape, np.float32)
    out = NormalizeImage("imagenet", "imagenet")(x)
    np.testing.assert_allclose(out, (x - 0.449) / 0.226, atol=1e-6)


def test_arguments_may_be_arrays() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = NormalizeImage([0.4, 0.5, 0.6], 0.2)(x)
    assert torch.equal(NormalizeImage(np.array([0.4, 0.5, 0.6]), np.float64(0.2))(x), expected)
    assert torch.equal(NormalizeImage(torch.tensor([0.4, 0.5, 0.6]).double(), torch.tensor(0.2).double())(x), expected)


@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (2, 1, 4, 5, 6), (4, 3, 4, 5, 6)])
def test_volumes_with_scalars(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape, np.float32)
    np.testing.assert_allclose(NormalizeImage(0.4, 0.2)(x), (x - 0.4) / 0.2, atol=2e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_stays_half(half: torch.dtype) -> None:
    out = NormalizeImage(0.5, 0.25)(torch.tensor([[[0, 0.25, 1]]], dtype=half))
    assert out.dtype == half
    assert out.flatten().tolist() == [-2, -1, 2]
    x = torch.linspace(0, 1, 48).reshape(1, 3, 4, 4).to(half)
    for mean, std in (IMAGENET, ("imagenet", "imagenet"), ([0.7, 0.5, 0.6], 0.2)):
        out = NormalizeImage(mean, std)(x)
        assert out.dtype == half
        assert torch.equal(out, NormalizeImage(mean, std)(x.float()).to(half))


@pytest.mark.parametrize(
    ("kind", "result"), [(np.asarray, torch.Tensor), (torch.as_tensor, torch.Tensor), (MetaTensor, MetaTensor)]
)
def test_meta_stays(kind: Callable, result: type) -> None:
    assert type(NormalizeImage()(kind(torch.zeros(3, 2, 2)))) is result


def test_gradient_flows() -> None:
    x = torch.full((1, 2, 2), 0.5, requires_grad=True)
    NormalizeImage(0.5, 0.25)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("value", [-0.002, 1.002, 255, float("nan")])
def test_values_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"NormalizeImage: wanted values in \[0, 1\], got .*\(normalized twice\?\)"):
        NormalizeImage()(torch.tensor([[[0.5, value]]]))


def test_interpolation_may_leave_the_range_a_little() -> None:
    out = NormalizeImage(0, 1)(torch.tensor([[[-0.0009, 1.0009]]]))
    assert out.flatten().tolist() == pytest.approx([-0.0009, 1.0009])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"3 values of mean or std want an image .* got shape \(2, 4, 4\)"):
        NormalizeImage([0.1, 0.2, 0.3], 1)(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"3 values of mean or std want an image .* got shape \(1, 4, 4\)"):
        NormalizeImage(*IMAGENET)(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="a single number fits any"):
        NormalizeImage("imagenet", "imagenet")(torch.zeros(2, 3, 3, 4, 4))
    with pytest.raises(ValueError, match="std must be above 0, got 0"):
        NormalizeImage(0.5, 0)
    for mean in ("imagenette", None, [], [[0.5]], float("nan")):
        with pytest.raises(ValueError, match="mean must be a number, one per channel or 'imagenet', got"):
            NormalizeImage(mean, 1)
    with pytest.raises(TypeError, match=r"wanted uint8 or floating-point values in \[0, 1\], got torch.int64"):
        NormalizeImage()(torch.ones(1, 2, 2, dtype=torch.int64))
