"""In which order a loader visits the samples: shuffled, weighted, or in batches with all classes alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, WeightedRandomSampler

SAMPLING = ("shuffle", "weighted", "balanced")


class BalancedBatchSampler(Sampler[list[int]]):
    """Batches in which the numbers of samples of any two classes differ by one at most.

    Each class is visited in its own shuffled order, over and over: a rare class is repeated, a common one goes on in
    the next epoch where it stopped, so that none of its samples comes twice before all came once. An epoch draws as
    many samples as there are, rounded up to full batches. The order follows from `seed` and `epoch` alone.

    Args:
        labels: (N,) class of each sample; list, array or tensor.
        batch_size: samples in a batch.
        seed: of the order.

    Attributes:
        epoch: number of the next epoch, from 0; set it to go on after a break.

    Raises:
        ValueError: no labels or labels that are not (N,), or no batch size.

    Example:
        >>> labels = [0, 0, 0, 0, 0, 1]
        >>> [sorted(labels[i] for i in batch) for batch in BalancedBatchSampler(labels, batch_size=2)]
        [[0, 1], [0, 1], [0, 1]]
    """

    def __init__(self, labels: Any, batch_size: int, seed: int = 0) -> None:
        found = np.asarray(labels)
        if found.ndim != 1 or not found.size:
            raise ValueError(
                f"BalancedBatchSampler: wanted one class for each sample, labels (N,), got shape {found.shape} "
                "(where labels are many, use sampling 'weighted')"
            )
        if batch_size < 1:
            raise ValueError(f"BalancedBatchSampler: batch_size must be 1 or more, got {batch_size}")
        self.members = [np.flatnonzero(found == c) for c in np.unique(found)]
        self.num_batches = -(-len(found) // batch_size)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        num_slots = self.num_batches * self.batch_size
        slots = np.arange(num_slots * self.epoch, num_slots * (self.epoch + 1))
        self.epoch += 1
        order = np.empty(num_slots, dtype=np.int64)
        for c, members in enumerate(self.members):  # the classes take turns, over all epochs
            mine = slots % len(self.members) == c
            order[mine] = self._visits(c, members, slots[mine] // len(self.members))
        yield from order.reshape(self.num_batches, self.batch_size).tolist()

    def _visits(self, c: int, members: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """Samples of class c at these visits, ascending numbers counted from the first epoch."""
        rounds, places = np.divmod(visits, len(members))
        samples = np.empty_like(visits)
        for number in np.unique(rounds):
            shuffled = np.random.default_rng((self.seed, c, number)).permutation(members)
            samples[rounds == number] = shuffled[places[rounds == number]]
        return samples


def sample_weights(labels: Any) -> np.ndarray:
    """How often to draw each sample: one over the number of samples of its class.

    Where labels are many, its rarest positive class counts; samples without a positive are a class of their own.

    Args:
        labels: (N,) classes, or (N, C) of 0 and 1; list, array or tensor.

    Returns:
        (N,) float64.

    Example:
        >>> sample_weights([0, 0, 1])
        array([0.5, 0.5, 1. ])
        >>> sample_weights([[1, 0], [1, 1], [0, 0], [0, 0]])
        array([0.5, 1. , 0.5, 0.5])
    """
    found = np.asarray(labels)
    if found.ndim not in (1, 2):
        raise ValueError(f"sample_weights: labels must be (N,) or (N, C), got shape {found.shape}")
    if found.ndim == 1:
        _, index, counts = np.unique(found, return_inverse=True, return_counts=True)
        return 1 / counts[index]
    member = np.column_stack([found == 1, (found == 0).all(axis=1)])
    return (member / np.maximum(member.sum(axis=0), 1)).max(axis=1)


def loader_order(labels: Any, sampling: str, batch_size: int, seed: int = 0) -> dict[str, Any]:
    """The arguments of a `DataLoader` that say how it visits a training set; a last batch that is not full is dropped.

    - "shuffle": every sample once in an epoch.
    - "weighted": as many draws with replacement, by `sample_weights`: all classes are alike in the mean. Where labels
      are many, rare ones come more often, but one that often accompanies rarer ones stays ahead of them.
    - "balanced": `BalancedBatchSampler`: all classes are alike in every batch.

    Args:
        labels: of the training set, (N,), or (N, C) of 0 and 1; list, array or tensor.
        sampling: "shuffle", "weighted" or "balanced".
        batch_size: samples in a batch.
        seed: of the order.

    Returns:
        keyword arguments of `torch.utils.data.DataLoader`; of fewer samples than `batch_size` it makes one batch.

    Raises:
        ValueError: an unknown sampling, or labels that it cannot take.

    Example:
        >>> sorted(loader_order([0, 0, 1], "weighted", batch_size=2))
        ['batch_size', 'drop_last', 'sampler']
    """
    if sampling not in SAMPLING:
        raise ValueError(f"loader_order: sampling must be one of {', '.join(SAMPLING)}, got {sampling!r}")
    if sampling == "balanced":
        return {"batch_sampler": BalancedBatchSampler(labels, batch_size, seed)}
    generator = torch.Generator().manual_seed(seed)
    batches = {"batch_size": batch_size, "drop_last": len(labels) > batch_size}
    if sampling == "shuffle":
        return {"shuffle": True, "generator": generator, **batches}
    weights = sample_weights(labels)
    return {"sampler": WeightedRandomSampler(weights.tolist(), len(weights), generator=generator), **batches}
