from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from monai.data import DataLoader

from monai_pipelines.data.sampling import (
    SAMPLING,
    BalancedBatchSampler,
    ShuffledBatchSampler,
    batch_sampler,
    lesion_weights,
    sample_weights,
)

COUNTS = (3, 50, 11)
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], COUNTS))


@pytest.mark.parametrize(
    ("labels", "batch_size"), list(itertools.product([LABELS, [7, 7, 7], np.arange(20)], [1, 2, 3, 8, 64, 100]))
)
def test_batches_are_full_and_balanced(labels: np.ndarray, batch_size: int) -> None:
    sampler = BalancedBatchSampler(labels, batch_size)
    classes = np.unique(labels)
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler) == int(np.ceil(len(labels) / batch_size))
        for batch in batches:
            assert len(batch) == batch_size
            counts = Counter(np.asarray(labels)[batch].tolist())
            numbers = [counts[c] for c in classes]
            assert max(numbers) - min(numbers) <= 1


def test_no_sample_comes_twice_before_all_came_once() -> None:
    sampler = BalancedBatchSampler(LABELS, batch_size=7, seed=3)
    visits = np.concatenate([batch for _ in range(20) for batch in sampler])
    for c, count in enumerate(COUNTS):
        of_class = visits[LABELS[visits] == c]
        assert len(of_class) == pytest.approx(len(visits) / 3, abs=1)
        rounds = of_class[: len(of_class) // count * count].reshape(-1, count)
        assert len(rounds) > 5
        assert (np.sort(rounds, axis=1) == np.flatnonzero(c == LABELS)).all()


@pytest.mark.parametrize("sampling", SAMPLING)
def test_order_depends_on_seed_and_epoch(sampling: str) -> None:
    def epochs(seed: int, first: int = 0) -> list[list[list[int]]]:
        sampler = batch_sampler(LABELS, sampling, 8, seed)
        sampler.epoch = first
        return [list(sampler) for _ in range(3)]

    one = epochs(1)
    assert one == epochs(1)
    assert one != epochs(2)
    assert one[0] != one[1] != one[2]
    assert epochs(1, first=2)[0] == one[2]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("num_processes", [2, 3])
def test_parts_of_several_processes_are_the_batches_of_one(sampling: str, num_processes: int) -> None:
    whole = batch_sampler(LABELS, sampling, 4 * num_processes, seed=2)
    parts = [batch_sampler(LABELS, sampling, 4, 2, rank, num_processes) for rank in range(num_processes)]
    for _ in range(3):
        together = [[*itertools.chain(*batches)] for batches in zip(*parts, strict=True)]
        assert together == list(whole)
        assert {len(part) for part in parts} == {len(whole)} == {len(together)}


def test_an_epoch_without_weights_has_every_sample_at_most_once() -> None:
    sampler = ShuffledBatchSampler(20, batch_size=6)
    for _ in range(3):
        drawn = [index for batch in sampler for index in batch]
        assert len(drawn) == len(set(drawn)) == 18
    with pytest.raises(ValueError, match="2 processes with 6 samples each need 12 training samples or more, got 10"):
        ShuffledBatchSampler(10, batch_size=6, num_processes=2)


def test_lesions_come_as_often_as_images_without() -> None:
    counts = np.array([0] * 90 + [1] * 5 + [5] * 5)
    drawn = counts[[index for batch in batch_sampler(counts, "lesions", 10, seed=1) for index in batch]]
    assert lesion_weights(counts)[counts == 0].sum() == pytest.approx(0.5)
    assert (drawn > 0).sum() == pytest.approx(50, abs=15)  # three standard deviations of a binomial
    assert (drawn == 5).sum() > (drawn == 1).sum()


def test_sample_weights() -> None:
    weights = sample_weights(LABELS)
    assert [weights[c == LABELS].sum() for c in range(3)] == pytest.approx([1, 1, 1])
    # classes with 3, 1 and 0 positives, one sample without any: the rarest class of a sample gives its weight
    multilabel = [[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    for labels in [multilabel, np.array(multilabel, dtype=np.float32), torch.tensor(multilabel)]:
        assert sample_weights(labels).tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1])
    with pytest.raises(ValueError, match=r"labels must be \(N,\) or \(N, C\), got shape \(\)"):
        sample_weights(3)


@pytest.mark.parametrize("sampling", ["shuffle", "weighted", "balanced"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_of_a_loader(sampling: str, num_workers: int) -> None:
    def epochs(seed: int) -> list[list[int]]:
        data = torch.arange(len(LABELS))
        loader = DataLoader(data, num_workers=num_workers, batch_sampler=batch_sampler(LABELS, sampling, 8, seed))
        assert len(loader) == 8
        return [torch.cat(list(loader)).tolist() for _ in range(3)]

    one = epochs(1)
    assert one == epochs(1)
    assert one != epochs(2)
    assert one[0] != one[1]
    counts = Counter(LABELS[np.concatenate(one)].tolist())
    if sampling == "shuffle":
        assert all(sorted(epoch) == list(range(64)) for epoch in one)
    else:  # 192 draws, a third per class; three standard deviations of a binomial are 20
        assert all(abs(counts[c] - 64) < (20 if sampling == "weighted" else 3) for c in range(3))


def test_multilabel() -> None:
    """10 of the 110 samples of the first class also have the second, which gives their weight and raises both."""
    groups = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]])
    labels = np.repeat(groups, [100, 10, 5, 5], axis=0)
    sampler = batch_sampler(labels, "weighted", 8)
    drawn = [index for _ in range(10) for batch in sampler for index in batch]
    counts = labels[drawn].sum(axis=0)
    shares = np.array([100 / 110 + 1, 1, 1]) / (100 / 110 + 3)  # of 1200 draws
    assert counts == pytest.approx(1200 * shares, abs=3 * np.sqrt(1200 / 4))
    with pytest.raises(ValueError, match=r"labels \(N,\), got shape \(120, 3\) .*use sampling 'weighted'"):
        batch_sampler(labels, "balanced", 8)


@pytest.mark.parametrize("sampling", ["shuffle", "weighted", "balanced"])
def test_sizes_of_batches(sampling: str) -> None:
    def sizes(batch_size: int) -> list[int]:
        return [len(batch) for batch in batch_sampler(LABELS, sampling, batch_size)]

    assert sizes(7) == [7] * (10 if sampling == "balanced" else 9)
    assert sizes(64) == [64]
    assert sizes(100) == [100 if sampling == "balanced" else 64]


def test_errors() -> None:
    with pytest.raises(ValueError, match="sampling must be one of shuffle, weighted, balanced, lesions, got 'even'"):
        batch_sampler([0, 1], "even", 2)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        BalancedBatchSampler([0, 1], 0)
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        BalancedBatchSampler([], 2)
