from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from monai_pipelines import load_chain
from monai_pipelines.transforms.image2d.color import ColorDraw, RandColor2D, RandColor2Dd

ALWAYS = {f"{part}_prob": 1 for part in ("brightness", "contrast", "saturation", "hue")}
NEVER = dict.fromkeys(ALWAYS, 0)


@pytest.fixture
def batch() -> torch.Tensor:
    """Random colors, some of them gray, black, white or with ties between channels."""
    colors = np.random.default_rng(0).random((6, 3, 12, 13), dtype=np.float32)
    colors[:, :, 0] = colors[:, :1, 0]
    colors[:, 1, 1], colors[:, 2, 2] = colors[:, 0, 1], colors[:, 0, 2]
    colors[:, 1, 3] = colors[:, 2, 3]
    colors[:, :, 4, 0], colors[:, :, 4, 1] = 0, 1
    return torch.from_numpy(colors)


def apply(img: torch.Tensor, *draws: ColorDraw | None) -> torch.Tensor:
    step = RandColor2D()
    step.draws = list(draws)
    return step(img, randomize=False)


def _reference(image: np.ndarray, draw: ColorDraw) -> np.ndarray:
    """Pixel by pixel, the hue with colorsys."""
    pixels = image.reshape(3, -1).T.astype(float) * draw.brightness
    weights = np.array([0.299, 0.587, 0.114])
    mean = (pixels @ weights).mean()
    pixels = (pixels - mean) * draw.contrast + mean
    gray = (pixels @ weights)[:, None]
    pixels = np.clip(gray + (pixels - gray) * draw.saturation, 0, 1)
    out = []
    for pixel in pixels:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        out.append(colorsys.hsv_to_rgb((hue + draw.hue_turns) % 1, saturation, value))
    return np.array(out).T.reshape(image.shape)


@pytest.mark.parametrize(
    "draw",
    [
        ColorDraw(brightness=0.6),
        ColorDraw(brightness=1.7),
        ColorDraw(contrast=0.3),
        ColorDraw(contrast=1.8),
        ColorDraw(saturation=0),
        ColorDraw(saturation=1.9),
        *(ColorDraw(hue_turns=turn) for turn in (-0.5, -0.3, -1 / 6, 0.01, 0.25, 1 / 3, 0.5)),
        ColorDraw(1.2, 0.7, 1.4, 0.1),
        ColorDraw(0.8, 1.5, 0.5, -0.2),
    ],
)
def test_every_part_agrees_with_colorsys_and_numpy(draw: ColorDraw, batch: torch.Tensor) -> None:
    np.testing.assert_allclose(apply(batch[0], draw), _reference(batch[0].numpy(), draw), atol=3e-6)


def test_parts_agree_with_pillow(batch: torch.Tensor) -> None:
    """Pillow rounds to 8 bits, and its mean gray to a whole number."""
    pixels = (batch[0] * 255).to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for part, enhance in (
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ):
        for factor in (0.4, 1.6):
            expected = np.asarray(enhance(picture).enhance(factor)).transpose(2, 0, 1)
            out = apply(pixels, ColorDraw(**{part: factor})) * 255
            assert np.abs(out.numpy() - expected).max() < 1.6


def test_hand_worked_values() -> None:
    red_and_black = torch.tensor([[[1.0, 0]], [[0, 0]], [[0, 0]]])  # mean gray 0.1495
    for draw, expected in [
        (ColorDraw(brightness=0.5), [[0.5, 0], [0, 0], [0, 0]]),
        (ColorDraw(contrast=0.5), [[0.57475, 0.07475], [0.07475, 0.07475], [0.07475, 0.07475]]),
        (ColorDraw(saturation=0), [[0.299, 0], [0.299, 0], [0.299, 0]]),
        (ColorDraw(hue_turns=1 / 3), [[0, 0], [1, 0], [0, 0]]),  # red becomes green
        (ColorDraw(hue_turns=-1 / 6), [[1, 0], [0, 0], [1, 0]]),  # magenta
    ]:
        torch.testing.assert_close(
            apply(red_and_black, draw)[:, 0], torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0
        )
    # clipped once, at the end: contrast restores values brighter than white
    assert apply(torch.full((1, 1, 1), 0.8), ColorDraw(brightness=2)).item() == 1
    line = torch.tensor([[[0.2, 1.0]]])
    torch.testing.assert_close(apply(line, ColorDraw(brightness=2, contrast=0.25)), torch.tensor([[[1.0, 1.0]]]))
    torch.testing.assert_close(apply(line, ColorDraw(brightness=1.5, contrast=0.5)), torch.tensor([[[0.6, 1.0]]]))


def test_one_channel_has_brightness_and_contrast_only(batch: torch.Tensor) -> None:
    gray = batch[0, :1]
    out = apply(gray, ColorDraw(0.8, 1.3, 0.2, 0.4))
    expected = _reference(gray.expand(3, -1, -1).numpy(), ColorDraw(0.8, 1.3, 0.2, 0.4))
    np.testing.assert_allclose(out.expand(3, -1, -1), expected, atol=1e-6)


def test_uint8_becomes_unit_floats_and_dtypes_stay(batch: torch.Tensor) -> None:
    levels = (batch * 255).to(torch.uint8)
    step = RandColor2D(**ALWAYS).set_random_state(0)
    out = step(levels)
    assert out.dtype == torch.float32
    assert torch.equal(out, RandColor2D(**ALWAYS).set_random_state(0)(levels / 255))
    assert torch.equal(RandColor2D(**NEVER)(levels), levels / 255)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        half = RandColor2D(**ALWAYS).set_random_state(0)(levels.to(dtype) / 255)
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), out, atol=1e-5 if dtype == torch.float64 else 0.01, rtol=0)


def test_batch_equals_singles_and_undrawn_images_are_exact(batch: torch.Tensor) -> None:
    before = batch.clone()
    probs = dict.fromkeys(ALWAYS, 0.3)
    step = RandColor2D(**probs).set_random_state(1)
    out = step(batch)
    undrawn = [draw is None for draw in step.draws]
    assert 0 < sum(undrawn) < len(batch)
    assert torch.equal(out[undrawn], batch[undrawn])
    one_by_one = RandColor2D(**probs).set_random_state(1)
    torch.testing.assert_close(out, torch.stack([one_by_one(image) for image in batch]), atol=1e-6, rtol=0)
    assert torch.equal(batch, before)
    assert RandColor2D(**NEVER)(batch) is batch
    assert RandColor2D(0, 1, 0, 1, 0, 1, 0, 1)(batch) is batch
    assert RandColor2D((1, 1), 1, (1, 1), 1, (1, 1), 1, (0, 0), 1)(batch) is batch


def test_rates_and_limits() -> None:
    num = 4000
    step = RandColor2D(0.2, 0.3, (0.5, 2), 0.5, 3, 0.7, 0.1, 0.9).set_random_state(0)
    step.randomize(torch.empty(num, 1, 1, 1))
    values = np.array([draw or ColorDraw() for draw in step.draws])
    drawn = values != np.array(ColorDraw())
    np.testing.assert_allclose(drawn.mean(0), [0.3, 0.5, 0.7, 0.9], atol=4 * np.sqrt(0.25 / num))
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 4 / np.sqrt(num)
    for column, chosen, (low, high) in zip(values.T, drawn.T, [(0.8, 1.2), (0.5, 2), (0, 4), (-0.1, 0.1)], strict=True):
        got = column[chosen]
        np.testing.assert_allclose([got.min(), got.max()], [low, high], atol=0.01 * (high - low))
        np.testing.assert_allclose([got.mean(), got.std()], [(low + high) / 2, (high - low) / 12**0.5], atol=0.05)


def test_dictionary_twin(batch: torch.Tensor) -> None:
    item = {"a": batch, "b": 1 - batch, "label": 0}
    out = RandColor2Dd(["a", "b"], contrast_prob=1).set_random_state(4)(item)
    step = RandColor2D(contrast_prob=1).set_random_state(4)
    assert torch.equal(out["a"], step(batch))
    assert torch.equal(out["b"], step(1 - batch, randomize=False))
    assert out["label"] == 0
    assert item["a"] is batch


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"hue_prob": 2}, "hue_prob must lie in 0..1, got 2"),
        ({"contrast_prob": -1}, "contrast_prob must lie in 0..1, got -1"),
        ({"brightness": -0.1}, "brightness must be 0 or more .* got -0.1"),
        ({"contrast": (1.2, 0.8)}, "contrast must rise within 0..inf, got 1.2..0.8"),
        ({"saturation": (-0.5, 1)}, "saturation must rise within 0..inf, got -0.5..1"),
        ({"saturation": (1,)}, r"saturation must be one number or \(low, high\), got \[1\]"),
        ({"hue_turns": 0.6}, "hue_turns must rise within -0.5..0.5, got -0.6..0.6"),
    ],
)
def test_bad_arguments(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"RandColor2D: {message}"):
        RandColor2D(**knobs)


def test_bad_input(batch: torch.Tensor) -> None:
    for step in (RandColor2D(), RandColor2D(**NEVER)):
        with pytest.raises(ValueError, match=r"RandColor2D: wanted an image \(C, H, W\) .* got shape \(12, 13\)"):
            step(batch[0, 0])
        with pytest.raises(ValueError, match="RandColor2D: wanted 1 or 3 channels, got 2"):
            step(batch[:, :2])
        with pytest.raises(TypeError, match=r"RandColor2D: wanted uint8 or floating point .* got torch.int32"):
            step(batch.to(torch.int32))
        for values in (batch * 4 - 2, batch.clone().index_fill_(3, torch.tensor(0), torch.nan)):
            message = r"RandColor2D: wanted values in \[0, 1\], got .*\(augmentation comes before `normalize`\)"
            with pytest.raises(ValueError, match=message):
                step(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_chain_runs_every_step(channels: int, batch: torch.Tensor) -> None:
    chain = load_chain("augment_image2d")
    assert list(chain.steps) == ["spatial", "color", "stain"]
    levels = (batch[:, :channels] * 255).to(torch.uint8)
    out = chain.set_random_state(0)({"image": levels})["image"]
    assert out.shape == levels.shape
    assert out.dtype == torch.float32
    assert not torch.equal(out, levels / 255)
    off = dict.fromkeys(["flip_prob", "rotation_deg", "shift", "brightness", "contrast", "saturation", "hue_turns"], 0)
    assert torch.equal(load_chain("augment_image2d", scale=[1, 1], **off)(levels), levels / 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu(batch: torch.Tensor) -> None:
    on_cpu = RandColor2D(**ALWAYS).set_random_state(0)(batch)
    on_gpu = RandColor2D(**ALWAYS).set_random_state(0)(batch.cuda())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-5, rtol=0)
