"""The kernels of resampling, compiled and of torch, against what they mean, voxel by voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_pipelines.transforms.ct import grid as grid_module
from monai_pipelines.transforms.ct.grid import block_mean, cubic_weights, resample_separable


def use(monkeypatch: pytest.MonkeyPatch, chunk_voxels: int | None, threads: int = 1) -> None:
    """The compiled kernels, or those of torch with chunks of so many voxels."""
    if chunk_voxels is None:
        assert grid_module.kernels_for(torch.zeros(1)) is not None
    else:
        monkeypatch.setattr(grid_module, "CHUNK_VOXELS", chunk_voxels)
        monkeypatch.setattr(grid_module, "_kernels", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 3, 4), (5, 1, 2), (11, 10, 9)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(("chunk_voxels", "threads"), [(None, 1), (None, 3), (1, 1), (200, 1), (2**22, 1)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_block_mean(
    factors: tuple[int, ...],
    order: tuple[int, ...],
    chunk_voxels: int | None,
    threads: int,
    dtype: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, chunk_voxels, threads)
    values = np.random.default_rng(0).integers(-1024, 3000, (11, 10, 9)).astype(dtype)
    got = block_mean(torch.from_numpy(values.transpose(order).copy()).permute(*np.argsort(order).tolist()), factors)
    np.testing.assert_allclose(got, _reference_block_mean(values, factors), rtol=1e-5, atol=1e-3)


def _reference_block_mean(values: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    whole = [n // f for n, f in zip(values.shape, factors, strict=True)]
    means = np.zeros(whole)
    for i in np.ndindex(*whole):
        means[i] = values[tuple(slice(a * f, a * f + f) for a, f in zip(i, factors, strict=True))].mean()
    return means


def _reference_weights(num_in: int, start: float, step: float, num_out: int) -> np.ndarray:
    """Keys' kernel, sample by sample."""

    def keys(t: float) -> float:
        t = abs(t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    weights = np.zeros((num_out, num_in))
    for i in range(num_out):
        at = start + i * step
        if -0.5 <= at <= num_in - 0.5:
            weights[i] = [keys((at - j) / max(1, step)) for j in range(num_in)]
            weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize("num_in", [1, 2, 17])
@pytest.mark.parametrize("start", [-3.0, -0.5, 0.0, 0.37, 5.0])
@pytest.mark.parametrize("step", [0.3, 1.0, 1.7, 6.0])
@pytest.mark.parametrize("num_out", [1, 12])
def test_cubic_weights(num_in: int, start: float, step: float, num_out: int) -> None:
    got = cubic_weights(num_in, start, step, num_out)
    np.testing.assert_allclose(got, _reference_weights(num_in, start, step, num_out), atol=1e-6)


def test_hand_worked_cubic_weights() -> None:
    """Half-way between two voxels Keys' kernel is (-1, 9, 9, -1) / 16."""
    np.testing.assert_allclose(cubic_weights(6, 2.5, 1, 1)[0] * 16, [0, -1, 9, 9, -1, 0], atol=1e-6)
    np.testing.assert_array_equal(cubic_weights(3, -1, 1, 5), [[0] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1], [0] * 3])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("chunk_voxels", "threads"), [(None, 1), (None, 3), (1, 1), (500, 1), (2**22, 1)])
@pytest.mark.parametrize("at_least", [None, -1024.0])
def test_separable_in_any_memory_order(
    order: tuple[int, ...],
    chunk_voxels: int | None,
    threads: int,
    at_least: float | None,
    flipped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, chunk_voxels, threads)
    values = np.random.default_rng(0).integers(-3000, 3000, (13, 11, 9), dtype=np.int16)
    weights = [cubic_weights(13, 1.3, 2.1, 7), cubic_weights(11, -0.2, 0.7, 12), cubic_weights(9, 2, 1, 3)]
    if flipped:
        weights = [along[:, ::-1].copy() for along in weights]
    ordered = torch.from_numpy(values.transpose(order).copy()).permute(*np.argsort(order).tolist())
    got = resample_separable(ordered, weights, fill=-1000.0, at_least=at_least)
    bounded = values.astype(float) if at_least is None else np.maximum(values, at_least)
    inside = [w.astype(float) for w in weights]
    expected = np.einsum("ai,bj,ck,ijk->abc", *inside, bounded + 1000) - 1000
    np.testing.assert_allclose(got, expected, atol=0.02)


@pytest.mark.parametrize("chunk_voxels", [None, 2**20])
def test_outside_along_one_axis_is_all_fill(chunk_voxels: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, chunk_voxels)
    weights = [cubic_weights(4, 0, 1, 4), cubic_weights(4, 9, 1, 2), cubic_weights(4, 0, 1, 4)]
    assert (resample_separable(torch.ones(4, 4, 4, dtype=torch.int16), weights, fill=-1000.0) == -1000).all()
