from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.nn.functional import pad

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import CropRetina, LoadImage2D
from monai_pipelines.transforms.image2d.retina import find_disc


def photo(
    size: tuple[int, int] = (300, 400),
    center: tuple[float, float] = (150, 200),
    radius: float = 120,
    dark: float = 0,
    bright: float = 150,
    seed: int = 0,
) -> np.ndarray:
    """A reddish disc, brighter at one side, with vessels and noise, (3, H, W) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    inside = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2
    shade = bright * (1 - 0.4 * (columns - center[1]) / radius) * (1 - 0.3 * (np.sin(columns / 7) > 0.95))
    gray = np.where(inside, shade, dark) + rng.normal(0, 2, size)
    return np.clip(np.stack([gray, 0.6 * gray, 0.3 * gray]), 0, 255).astype(np.uint8)


def assert_found(image: np.ndarray, row: float, column: float, radius: float, within: float = 1.5) -> None:
    disc = find_disc(torch.from_numpy(image))
    assert disc is not None
    assert np.abs(np.array(disc) - (row, column, radius)).max() < within, disc


@pytest.mark.parametrize("dark", [0, 8])
@pytest.mark.parametrize("bright", [60, 150, 240])
@pytest.mark.parametrize(
    ("size", "center", "radius"),
    [
        ((300, 400), (150, 200), 120),
        ((300, 400), (130, 150), 100),
        ((300, 400), (150, 200), 170),  # cut at top and bottom
        ((400, 300), (200, 150), 170),  # cut left and right
        ((300, 300), (150, 150), 175),  # only the corners are dark
        ((300, 400), (150, 120), 160),  # cut at three sides
    ],
)
def test_disc(size: tuple[int, int], center: tuple[float, float], radius: float, bright: float, dark: float) -> None:
    assert_found(photo(size, center, radius, dark, bright), *center, radius)


def test_large_photograph_is_searched_at_reduced_size() -> None:
    assert_found(photo((1500, 2000), (740, 1010), 700), 740, 1010, 700, within=6)


def test_notch_bars_and_glare_are_outliers() -> None:
    image = photo()
    image[:, 40:60, 280:300] = 150  # a notch outside, a camera's mark of the upper side
    assert_found(image, 150, 200, 120)
    barred = photo((300, 400), (150, 200), 170)
    barred[:, :35] = barred[:, 270:] = 0  # bars within the photograph
    assert_found(barred, 150, 200, 170)
    glare = photo()
    glare[:, 230:275, 150:250] = 255
    assert_found(glare, 150, 200, 120, within=3)


def test_square_around_the_disc() -> None:
    image = MetaTensor(torch.from_numpy(photo()), affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))
    out = CropRetina(margin=0.1)(image)
    side = out.shape[-1]
    assert out.shape == (3, side, side)
    assert abs(side - 1.2 * 240) <= 3
    assert out.dtype == torch.uint8
    bright = out[0].numpy() > 40
    middle = np.argwhere(bright).mean(axis=0)
    assert np.abs(middle - (side - 1) / 2).max() < 1.5
    top, left = (round(v / step) for v, step in zip(out.affine[:2, 3].tolist(), (2, 3), strict=True))
    assert torch.equal(out.as_tensor(), image.as_tensor()[:, top : top + side, left : left + side])


def test_cut_disc_is_padded_with_black() -> None:
    image = photo((300, 400), (150, 200), 180)
    out = CropRetina(margin=0)(image).numpy()
    assert abs(out.shape[1] - 360) <= 2
    gap = (out.shape[1] - 300) // 2
    assert not out[:, : gap - 1].any()
    assert not out[:, -gap + 1 :].any()
    assert (out[0, gap + 1 : -gap - 1, 180] > 40).mean() > 0.9


@pytest.mark.parametrize("radius", [120, 175])
def test_square_within_the_disc_has_no_rim(radius: float) -> None:
    out = CropRetina(margin=-0.15)(photo((300, 300), (150, 150), radius)).numpy()
    assert abs(out.shape[1] - 0.7 * 2 * radius) <= 3
    assert out[0].min() > 40


def test_squeezed_disc_is_kept_whole() -> None:
    """480 x 400 of a disc cut at top and bottom, squeezed to 240 x 400: no circle, so the enclosing square."""
    image = np.ascontiguousarray(photo((400, 640), (200, 320), 240)[:, :, ::2])
    out = CropRetina(margin=0)(image).numpy()
    assert out.shape == (3, 400, 400)
    np.testing.assert_array_equal(out[:, :, 40:360], image)
    assert not out[:, :, :40].any()


@pytest.mark.parametrize("margin", [-0.4, 0])
def test_center_outside_gives_the_square_around_the_region(margin: float) -> None:
    rows, columns = np.nonzero(photo((300, 400), (-60, 200), 170)[0] > 40)
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    out = CropRetina(margin)(photo((300, 400), (-60, 200), 170))
    assert abs(out.shape[1] - (1 + 2 * margin) * side) < 6
    assert out.any()


def test_long_stripe_is_unchanged() -> None:
    stripe = photo((2, 2000), (1, 1000), 300)
    np.testing.assert_array_equal(CropRetina()(stripe), stripe)


@pytest.mark.parametrize("seed", [0, 1])
def test_photograph_without_border_is_unchanged(seed: int) -> None:
    image = photo((300, 340), (150, 170), 400, seed=seed)
    assert find_disc(torch.from_numpy(image)) is None
    out = CropRetina()(image)
    np.testing.assert_array_equal(out, image)


def test_floating_point_gives_the_same() -> None:
    image = torch.from_numpy(photo())
    assert find_disc(image) == pytest.approx(find_disc(image / 255), abs=1e-3)


def test_no_disc() -> None:
    with pytest.raises(ScanError, match="no disc: 90% of the image is darker than 4% of white"):
        CropRetina()(np.zeros((3, 100, 100), np.uint8))
    speck = np.random.default_rng(0).integers(0, 256, (1, 200, 200), dtype=np.uint8)
    with pytest.raises(ScanError, match=r"no disc: the largest bright region is \d\.\d% of the image"):
        CropRetina()(speck * (np.indices((200, 200)).sum(axis=0) % 9 == 0))
    uniform = [np.full((3, 100, 100), level, np.uint8) for level in (128, 255)]
    for image in (*uniform, np.full((3, 100, 100), np.nan, np.float32), np.full((3, 1, 200), 90, np.uint8)):
        with pytest.raises(ScanError, match="no disc: the image is uniform or contains NaN"):
            CropRetina()(image)
    with pytest.raises(ValueError, match=r"margin must lie in -0.4..1 \(of the diameter\), got 2"):
        CropRetina(2)
    with pytest.raises(ValueError, match=r"wanted an image \(C, H, W\), got shape \(4, 4\)"):
        CropRetina()(np.zeros((4, 4)))


@pytest.mark.parametrize("kind", ["normal", "disease"])
def test_real_photographs(shared_data: Path, kind: str) -> None:
    """In a black border; healthy eyes fill their 400 pixels, most others are cut at top and bottom."""
    files = sorted((shared_data / "fundus" / kind).iterdir())
    assert len(files) == 150
    sides = []
    for path in files[::10]:
        image = MetaTensor(pad(LoadImage2D()(path).as_tensor(), (130, 30, 60, 80)))
        out = CropRetina()(image)
        lit = (image.amax(0) > 60).sum()
        assert (out.amax(0) > 60).sum() >= 0.98 * lit
        side = out.shape[-1]
        assert out.shape == (3, side, side)
        center = out.affine[:2, 3].numpy() + (side - 1) / 2 - (60, 130)
        assert np.abs(center - 199.5).max() < (3 if kind == "normal" else 20)
        sides.append(side)
    if kind == "normal":
        assert np.abs(np.array(sides) - 1.04 * 400).max() < 8
    else:
        assert 440 < np.median(sides) < 540
