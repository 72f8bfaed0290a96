from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.apps.pathology.transforms.stain.array import ExtractHEStains
from monai.data import MetaTensor
from PIL import Image
from skimage.color import combine_stains, hed_from_rgb, rgb_from_hed, separate_stains

from monai_pipelines.transforms.image2d.stain import NormalizeStain, NormalizeStaind, RandStain, RandStaind

HEMATOXYLIN, EOSIN = np.array([0.56, 0.72, 0.41]), np.array([0.18, 0.85, 0.50])
TARGET = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])


def concentrations(seed: int = 0, num: int = 64 * 64) -> np.ndarray:
    """Hematoxylin and eosin (2, num): many pixels with only one of them, some with neither."""
    rng = np.random.default_rng(seed)
    c = rng.gamma(2, rng.uniform(0.2, 0.5, 2), (num, 2))
    c[rng.random(num) < 0.4, 0] = 0
    c[rng.random(num) < 0.3, 1] = 0
    return c.T


def tile(seed: int = 0, stains: tuple[np.ndarray, np.ndarray] = (HEMATOXYLIN, EOSIN)) -> np.ndarray:
    unit = np.stack([s / np.linalg.norm(s) for s in stains])
    light = 240 * np.exp(-unit.T @ concentrations(seed))
    return light.round().clip(0, 255).astype(np.uint8).reshape(3, 64, 64)


def _reference_macenko(image: np.ndarray) -> np.ndarray:
    """The published recipe in double precision, by SVD, on (3, H, W) in 0..255."""
    pixels = image.reshape(3, -1).T.astype(float)
    density = -np.log(np.clip(pixels, 1, None) / 240)
    tissue = density[density.min(axis=1) > 0.15]
    plane = np.linalg.svd(tissue, full_matrices=False)[2][:2]
    plane[0] *= np.sign(plane[0].sum())
    projected = tissue @ plane.T
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    first, second = (np.cos(angle) * plane[0] + np.sin(angle) * plane[1] for angle in np.percentile(angles, [1, 99]))
    stains = np.array([first, second] if first[0] > second[0] else [second, first])
    c = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]
    c *= (np.array([1.9705, 1.0308]) / np.percentile(c, 99, axis=1))[:, None]
    return np.clip(240 * np.exp(-TARGET @ c), 0, 255).reshape(image.shape)


@pytest.mark.parametrize("seed", range(5))
def test_normalization_agrees_with_the_published_recipe(seed: int) -> None:
    image = tile(seed)
    expected = _reference_macenko(image)
    out = NormalizeStain()(image)
    assert out.dtype == torch.uint8
    assert np.abs(out.numpy() - expected).max() <= 0.51
    unit = NormalizeStain()(torch.from_numpy(image).double() / 255)
    assert unit.dtype == torch.float64
    np.testing.assert_allclose(unit, expected / 255, atol=1e-5)


def test_two_slides_of_one_tissue_become_one() -> None:
    """The same concentrations in different stains and strengths, with a known answer."""
    same = concentrations(3) * (np.array([1.9705, 1.0308]) / np.percentile(concentrations(3), 99, axis=1))[:, None]
    truth = np.clip(240 * np.exp(-TARGET @ same), 0, 255).reshape(3, 64, 64)
    for stains in [(HEMATOXYLIN, EOSIN), (np.array([0.65, 0.70, 0.29]), np.array([0.25, 0.90, 0.35]))]:
        before = tile(3, stains)
        assert np.abs(before - truth).mean() > 8
        assert np.abs(NormalizeStain()(before).numpy() - truth).mean() < 2.5


def test_monai_swaps_the_stains() -> None:
    """Why its step is not used."""
    image = tile(1)
    swapped = ExtractHEStains()(image.transpose(1, 2, 0)).T
    angle_deg = [
        np.rad2deg(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        for a, b in zip(swapped, (EOSIN, HEMATOXYLIN), strict=True)
    ]
    assert max(angle_deg) < 3


def test_tiles_without_two_stains_are_unchanged() -> None:
    rng = np.random.default_rng(0)
    white = rng.integers(235, 256, (3, 32, 32), dtype=np.uint8)
    few = white.copy()
    few[:, 0, :10] = tile()[:, :10, 5]
    one_color = np.full((3, 32, 32), [[[150]], [[80]], [[140]]], dtype=np.uint8)
    gray = np.repeat(rng.integers(0, 200, (1, 32, 32), dtype=np.uint8), 3, axis=0)
    for image in (white, few, one_color, gray, np.zeros_like(white), np.full_like(white, 255)):
        assert np.array_equal(NormalizeStain()(image), image)
        unit = torch.from_numpy(image) / 255
        assert torch.equal(NormalizeStain()(unit), unit)
    stained = torch.from_numpy(tile())
    assert NormalizeStain("none")(stained) is stained
    assert not torch.equal(NormalizeStain(min_tissue=0.1)(stained), stained)
    assert torch.equal(NormalizeStain(min_tissue=1)(stained), stained)


def test_batch_is_normalized_tile_by_tile() -> None:
    white = np.full((3, 64, 64), 245, np.uint8)
    batch = torch.from_numpy(np.stack([tile(0), white, tile(1)])).contiguous(memory_format=torch.channels_last)
    before = batch.clone()
    out = NormalizeStain()(MetaTensor(batch, meta={"mpp": 0.5}))
    assert torch.equal(batch, before)
    assert torch.equal(out.as_tensor(), torch.stack([NormalizeStain()(one) for one in batch]))
    assert torch.equal(out[1].as_tensor(), batch[1])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.meta["mpp"] == 0.5
    for same in (batch[1:2], batch[:0]):
        assert NormalizeStain()(same) is same
    assert NormalizeStain("none")(batch) is batch


def test_normalized_tiles_barely_change_again() -> None:
    once = NormalizeStain()(tile(2))
    assert (NormalizeStain()(once).float() - once.float()).abs().mean() < 1.5


def test_real_tiles(shared_data: Path) -> None:
    for path in sorted((shared_data / "histology").glob("*/*/*"))[::40]:
        image = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
        out = NormalizeStain()(image).numpy()
        assert np.abs(out - _reference_macenko(image)).max() <= 0.75


def _reference_variation(image: np.ndarray, change: np.ndarray) -> np.ndarray:
    """With scikit-image's functions, whose concentrations are in units of 13.8 and never negative."""
    unit = -np.log(1e-6)
    stains = separate_stains(image.transpose(1, 2, 0), hed_from_rgb) * unit
    stains = stains * (1 + change[0]) + change[1]
    return combine_stains(stains / unit, rgb_from_hed).transpose(2, 0, 1)


def test_variation_agrees_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.1, 0.6, (16 * 16, 3))  # of all three stains, so that none is negative
    image = np.exp(-amounts @ rgb_from_hed).T.reshape(3, 16, 16)
    step = RandStain(sigma=0.2, prob=1).set_random_state(0)
    out = step(torch.from_numpy(image))
    np.testing.assert_allclose(out, _reference_variation(image, step.draws[0]), atol=1e-9)
    assert np.abs(out.numpy() - image).max() > 0.02


def test_variation_by_hand() -> None:
    nucleus = torch.from_numpy(np.exp(-rgb_from_hed[0])).reshape(3, 1, 1)  # hematoxylin 1
    step = RandStain()
    step.draws = [np.array([[0.5, 0, 0], [0, 0.1, 0]])]
    expected = np.exp(-1.5 * rgb_from_hed[0] - 0.1 * rgb_from_hed[1])
    np.testing.assert_allclose(step(nucleus, randomize=False).flatten(), expected, atol=1e-12)


def test_variation_of_batches() -> None:
    batch = torch.from_numpy(np.stack([tile(seed) for seed in range(6)]))
    before = batch.clone()
    step = RandStain().set_random_state(0)
    out = step(batch)
    assert torch.equal(batch, before)
    assert out.dtype == torch.float32
    undrawn = [draw is None for draw in step.draws]
    assert 0 < sum(undrawn) < 6
    assert torch.equal(out[undrawn], batch[undrawn] / 255)
    one_by_one = RandStain().set_random_state(0)
    torch.testing.assert_close(out, torch.stack([one_by_one(image) for image in batch]), atol=1e-6, rtol=0)
    assert len({tuple(draw.ravel()) for draw in step.draws if draw is not None}) == 6 - sum(undrawn)
    still = RandStain(prob=1)
    still.draws = [np.zeros((2, 3))] * 6
    torch.testing.assert_close(still(batch, randomize=False), batch / 255, atol=2e-6, rtol=0)
    assert RandStain(sigma=0, prob=1)(out) is out
    assert RandStain(prob=0)(out) is out


def test_rate_and_limits_of_the_variation() -> None:
    step = RandStain(sigma=0.2, prob=0.3).set_random_state(0)
    step.randomize(torch.empty(4000, 3, 1, 1))
    changes = np.array([draw for draw in step.draws if draw is not None])
    assert len(changes) / 4000 == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(changes.min(0), -0.2, atol=0.002)
    np.testing.assert_allclose(changes.max(0), 0.2, atol=0.002)
    np.testing.assert_allclose(changes.std(0), 0.2 / np.sqrt(3), rtol=0.05)
    assert np.abs(np.corrcoef(changes.reshape(-1, 6).T) - np.eye(6)).max() < 0.12


def test_dictionary_twins() -> None:
    image = torch.from_numpy(tile())
    item = {"image": MetaTensor(image, meta={"name": "kept"}), "other": image, "label": 1}
    out = NormalizeStaind(["image", "other"])(item)
    assert torch.equal(out["image"].as_tensor(), NormalizeStain()(image))
    assert torch.equal(out["other"], NormalizeStain()(image))
    assert out["image"].meta["name"] == "kept"
    varied = RandStaind(["image", "other"], prob=1).set_random_state(3)(item)
    step = RandStain(prob=1).set_random_state(3)
    assert torch.equal(varied["image"].as_tensor(), step(image))
    assert torch.equal(varied["other"], step(image, randomize=False))
    assert varied["label"] == 1


def test_errors() -> None:
    gray = torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match="NormalizeStain: method must be one of none, macenko, got 'reinhard'"):
        NormalizeStain("reinhard")
    with pytest.raises(ValueError, match=r"NormalizeStain: min_tissue must lie in 0..1, got 2"):
        NormalizeStain(min_tissue=2)
    with pytest.raises(ValueError, match=r"NormalizeStain: wanted an RGB image .* got shape \(1, 8, 8\)"):
        NormalizeStain()(gray)
    with pytest.raises(TypeError, match=r"NormalizeStain: wanted uint8 or floating point .* got torch.int32"):
        NormalizeStain()(torch.zeros(3, 8, 8, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"RandStain: prob must lie in 0..1, got -1"):
        RandStain(prob=-1)
    with pytest.raises(ValueError, match="RandStain: sigma must be 0 or more, got -1"):
        RandStain(sigma=-1)
    with pytest.raises(ValueError, match=r"RandStain: wanted RGB \(3 channels\), got 1"):
        RandStain(prob=0)(gray)
    assert RandStain(sigma=0)(gray) is gray
    with pytest.raises(TypeError, match=r"RandStain: wanted uint8 or floating point .* got torch.int32"):
        RandStain()(torch.zeros(3, 8, 8, dtype=torch.int32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    batch = torch.from_numpy(np.stack([tile(seed) for seed in range(6)]))
    on_cpu = RandStain(prob=1).set_random_state(0)(batch)
    torch.testing.assert_close(RandStain(prob=1).set_random_state(0)(batch.cuda()).cpu(), on_cpu, atol=1e-5, rtol=0)
    assert torch.equal(NormalizeStain()(batch[0].cuda()).cpu(), NormalizeStain()(batch[0]))
