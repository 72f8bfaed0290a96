from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines import load_chain
from monai_pipelines.transforms.ct.intensity import (
    RandBrightness3D,
    RandBrightness3Dd,
    RandContrast3D,
    RandContrast3Dd,
    RandNoise3D,
    RandNoise3Dd,
)
from monai_pipelines.transforms.random import RandStep

STEPS = [RandBrightness3D, RandContrast3D, RandNoise3D]
TWINS = [(RandBrightness3D, RandBrightness3Dd), (RandContrast3D, RandContrast3Dd), (RandNoise3D, RandNoise3Dd)]


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((6, 2, 7, 8, 9), dtype=np.float32))


def _reference_brightness(x: np.ndarray, factor: float) -> np.ndarray:
    return np.multiply(x, factor)


def _reference_contrast(x: np.ndarray, factor: float) -> np.ndarray:
    return np.stack([(channel - channel.mean()) * factor + channel.mean() for channel in x])


@pytest.mark.parametrize(
    ("make", "reference"), [(RandBrightness3D, _reference_brightness), (RandContrast3D, _reference_contrast)]
)
def test_factors(make: type[RandStep], reference: Callable[..., np.ndarray], batch: torch.Tensor) -> None:
    step = make(factor=(0.5, 2.0), prob=0.6).set_random_state(0)
    out = step(batch)
    assert 0 < sum(d is None for d in step.draws) < 6
    assert len({d for d in step.draws if d}) > 1
    for volume, changed, factor in zip(batch, out, step.draws, strict=True):
        if factor is None:
            assert torch.equal(volume, changed)
        else:
            assert 0.5 <= factor <= 2
            np.testing.assert_allclose(changed, reference(volume.double().numpy(), factor), atol=1e-6)


def test_hand_worked_values() -> None:
    x = torch.tensor([0.0, 0.0, 0.2, 1.0]).reshape(1, 4, 1, 1)  # mean 0.3
    brighter = RandBrightness3D(factor=(1.1, 1.1), prob=1)(x).flatten()
    torch.testing.assert_close(brighter, torch.tensor([0, 0, 0.22, 1.1]))
    steeper = RandContrast3D(factor=(1.1, 1.1), prob=1)(x).flatten()
    torch.testing.assert_close(steeper, torch.tensor([-0.03, -0.03, 0.19, 1.07]))


def _reference_noise(num: int, seed: int) -> np.ndarray:
    """SplitMix64 in Python's integers; quantiles by the standard library."""
    bits = []
    for number in range(1, -(-num // 4) + 1):
        word = (seed + number * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        word ^= word >> 31
        bits += [word >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return np.array([NormalDist().inv_cdf((value + 0.5) / 2**16) for value in bits[:num]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_the_same_on_every_path(dtype: torch.dtype) -> None:
    """Compiled for float32, torch for float64; 27 voxels are no multiple of four."""
    step = RandNoise3D(std=0.5, prob=1).set_random_state(0)
    still = torch.full((1, 3, 3, 3), 2.0, dtype=dtype)
    noisy = step(still)
    expected = 2 + 0.5 * _reference_noise(27, int(step.draws[0]))
    np.testing.assert_allclose(noisy.flatten(), expected, rtol=1e-6)


def test_noise_is_white_normal_and_independent() -> None:
    still = torch.full((2, 2, 40, 40, 40), 0.5)
    noise = ((RandNoise3D(std=0.05, prob=1).set_random_state(0)(still) - still) / 0.05).numpy()
    num = noise[0, 0].size
    assert np.abs(noise.mean((2, 3, 4))).max() < 4 / np.sqrt(num)
    np.testing.assert_allclose(noise.std((2, 3, 4)), 1, atol=4 / np.sqrt(2 * num))
    np.testing.assert_allclose((np.abs(noise) < 1.96).mean(), 0.95, atol=0.002)
    fields = noise.reshape(4, -1)
    assert np.abs(np.corrcoef([*fields, np.roll(fields[0], 1)]) - np.eye(5)).max() < 5 / np.sqrt(num)


@pytest.mark.parametrize("make", STEPS)
def test_batch_equals_singles_and_dtypes_stay(make: type[RandStep], batch: torch.Tensor) -> None:
    out = make(prob=0.5).set_random_state(1)(batch)
    one_by_one = make(prob=0.5).set_random_state(1)
    assert torch.equal(out, torch.stack([one_by_one(v) for v in batch]))
    assert not torch.equal(out, batch)
    for dtype in [torch.float16, torch.bfloat16, torch.float64]:
        assert make(prob=1)(batch.to(dtype)).dtype == dtype
    assert make(prob=0)(batch) is batch


@pytest.mark.parametrize("make", STEPS)
@pytest.mark.parametrize("prob", [0, 0.5, 1])
def test_uint8_becomes_unit_floats(make: type[RandStep], prob: float, batch: torch.Tensor) -> None:
    levels = (batch * 255).to(torch.uint8)
    before = levels.clone()
    out = make(prob=prob).set_random_state(1)(levels)
    assert out.dtype == torch.float32
    assert torch.equal(out, make(prob=prob).set_random_state(1)(levels / 255))
    assert torch.equal(levels, before)
    single = make(prob=1).set_random_state(1)(MetaTensor(levels[0], meta={"name": "kept"}))
    assert torch.equal(single.as_tensor(), make(prob=1).set_random_state(1)(levels[0] / 255))
    assert single.meta["name"] == "kept"


@pytest.mark.parametrize("make", STEPS)
def test_rate(make: type[RandStep]) -> None:
    step = make(prob=0.3).set_random_state(0)
    step.randomize(torch.empty(4000, 1, 1, 1, 1))
    assert np.mean([d is not None for d in step.draws]) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(("make", "twin"), TWINS)
def test_dictionary_twin(make: type[RandStep], twin: type, batch: torch.Tensor) -> None:
    item = {"a": batch, "b": 1 - batch, "label": 0}
    out = twin(["a", "b"], prob=0.5).set_random_state(4)(item)
    step = make(prob=0.5).set_random_state(4)
    assert torch.equal(out["a"], step(batch))
    assert torch.equal(out["b"], step(1 - batch, randomize=False))
    assert out["label"] == 0
    assert item["a"] is batch


def test_errors(batch: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"RandNoise3D: prob must lie in 0..1, got -0.1"):
        RandNoise3D(prob=-0.1)
    with pytest.raises(ValueError, match="std must be 0 or more"):
        RandNoise3D(std=-1)
    with pytest.raises(ValueError, match=r"RandContrast3D: factor must be \(low, high\)"):
        RandContrast3D(factor=(1.1, 0.9))
    for prob in (0, 1):
        with pytest.raises(TypeError, match=r"RandBrightness3D: wanted uint8 or floating point .*, got torch.int16"):
            RandBrightness3D(prob=prob)(batch.to(torch.int16))
    with pytest.raises(ValueError, match=r"RandBrightness3D: wanted a volume .* got shape \(7, 8, 9\)"):
        RandBrightness3D()(batch[0, 0])


def test_chain_runs_every_step(batch: torch.Tensor) -> None:
    chain = load_chain("augment_ct")
    assert list(chain.steps) == ["spatial", "brightness", "contrast", "noise"]
    out = chain.set_random_state(0)(batch)
    assert out.shape == batch.shape
    assert not torch.equal(out, batch)
    levels = chain.steps["spatial"]({"image": (batch * 255).to(torch.uint8)})
    assert levels["image"].dtype == torch.uint8
    assert chain.steps["noise"](levels)["image"].dtype == torch.float32
    spatial = chain.steps["spatial"].step
    probs = [spatial.rotation_prob, spatial.scale_prob, spatial.shift_prob, spatial.elastic_prob]
    assert probs == [0.5, 0.5, 0.5, 0.2]
    assert [chain.steps[s].step.prob for s in ("brightness", "contrast", "noise")] == [0.3, 0.3, 0.3]
