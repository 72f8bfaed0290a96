"""The order in which a loader visits the samples: shuffled, weighted, or in batches with balanced classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, WeightedRandomSampler

SAMPLING = ("shuffle", "weighted", "balanced", "lesions")


class BalancedBatchSampler(Sampler[list[int]]):
    """Batches in which the numbers of samples of any two classes differ by at most one.

    Each class is visited in shuffled order, repeatedly: a rare class several times per epoch, a common one continues in
    the next epoch, so that no sample comes twice before all have come once. An epoch has N samples, rounded up to full
    batches. The order depends only on `seed` and `epoch`.

    Args:
        labels: (N,) class of each sample; list, array or tensor.
        batch_size: samples in a batch.
        seed: of the order.

    Attributes:
        epoch: index of the next epoch; set it to resume.

    Raises:
        ValueError: labels that are empty or not (N,), or a batch size below 1.

    Example:
        >>> labels = [0, 0, 0, 0, 0, 1]
        >>> [sorted(labels[i] for i in batch) for batch in BalancedBatchSampler(labels, batch_size=2)]
        [[0, 1], [0, 1], [0, 1]]
    """

    def __init__(self, labels: Any, batch_size: int, seed: int = 0) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not labels.size:
            raise ValueError(
                f"BalancedBatchSampler: wanted one class per sample, labels (N,), got shape {labels.shape} "
                "(multilabel: use sampling 'weighted')"
            )
        if batch_size < 1:
            raise ValueError(f"BalancedBatchSampler: batch_size must be 1 or more, got {batch_size}")
        self.members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
        self.num_batches = -(-len(labels) // batch_size)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        num_slots = self.num_batches * self.batch_size
        slots = np.arange(num_slots * self.epoch, num_slots * (self.epoch + 1))
        self.epoch += 1
        order = np.empty(num_slots, dtype=np.int64)
        for c, members in enumerate(self.members):  # the classes take turns, over all epochs
            of_class = slots % len(self.members) == c
            order[of_class] = self._visits(c, members, slots[of_class] // len(self.members))
        yield from order.reshape(self.num_batches, self.batch_size).tolist()

    def _visits(self, c: int, members: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """Samples of class c at these visits, numbered from the first epoch on."""
        rounds, places = np.divmod(visits, len(members))
        samples = np.empty_like(visits)
        for number in np.unique(rounds):
            shuffled = np.random.default_rng((self.seed, c, number)).permutation(members)
            samples[rounds == number] = shuffled[places[rounds == number]]
        return samples


def sample_weights(labels: Any) -> np.ndarray:
    """Weight of each sample: one over the number of samples of its class.

    For multilabel the class is the rarest positive one; samples without positives form a class.

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
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2):
        raise ValueError(f"sample_weights: labels must be (N,) or (N, C), got shape {labels.shape}")
    if labels.ndim == 1:
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return 1 / counts[index]
    member = np.column_stack([labels == 1, (labels == 0).all(axis=1)])
    return (member / np.maximum(member.sum(axis=0), 1)).max(axis=1)


def lesion_weights(num_lesions: Any) -> np.ndarray:
    """Weight of each image by its lesions: every lesion, and every image without one, comes as often as another.

    One half of the draws are images with lesions, the other half images without, whatever their numbers.

    Args:
        num_lesions: (N,) of each image; list, array or tensor.

    Returns:
        (N,) float64.

    Example:
        >>> lesion_weights([0, 1, 3, 0])
        array([0.25 , 0.125, 0.375, 0.25 ])
    """
    counts = np.asarray(num_lesions)
    without = counts == 0
    weights = np.where(without, 1 / max(1, without.sum()), counts / max(1, counts.sum()))
    return weights / weights.sum()


def loader_order(labels: Any, sampling: str, batch_size: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of a `DataLoader` for the order of a training set; an incomplete last batch is dropped.

    - "shuffle": every sample once per epoch.
    - "weighted": N draws with replacement, by `sample_weights`: classes are balanced on average. For multilabel rare
      classes come more often, but a class that often accompanies rarer ones stays more frequent.
    - "balanced": `BalancedBatchSampler`: classes are balanced in every batch.
    - "lesions": N draws with replacement, by `lesion_weights`, for detection.

    Args:
        labels: of the training set, (N,), or (N, C) of 0 and 1; list, array or tensor. For "lesions" the number of
            lesions of each image.
        sampling, batch_size, seed: of `make_loader`.

    Returns:
        keyword arguments of `torch.utils.data.DataLoader`; fewer samples than `batch_size` make one batch.

    Raises:
        ValueError: an unknown sampling, or labels that it cannot use.

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
    weights = lesion_weights(labels) if sampling == "lesions" else sample_weights(labels)
    return {"sampler": WeightedRandomSampler(weights.tolist(), len(weights), generator=generator), **batches}
