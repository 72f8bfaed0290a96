"""The order in which a loader visits the samples: shuffled, weighted, or in batches with balanced classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

SAMPLING = ("shuffle", "weighted", "balanced", "lesions")


class EpochBatchSampler(Sampler[list[int]]):
    """Base of the batch samplers of a training: the order depends only on the seed and the epoch.

    In distributed training each process has a sampler, which yields its part of each batch. Together the parts are the
    batches of a single process with ``num_processes * batch_size`` samples.

    Args:
        num_batches: in an epoch.
        batch_size: samples in a batch of one process.
        seed: of the order.
        rank, num_processes: of a distributed training.

    Attributes:
        epoch: index of the next epoch; set it to resume.
        sampling: of `make_loader`.
    """

    sampling = "shuffle"

    def __init__(self, num_batches: int, batch_size: int, seed: int, rank: int, num_processes: int) -> None:
        self.num_batches, self.batch_size, self.seed, self.epoch = num_batches, batch_size, seed, 0
        self.rank, self.num_processes = rank, num_processes

    @abstractmethod
    def _order(self) -> np.ndarray:
        """Indices of the samples of this epoch, batch by batch of all processes."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        self.epoch += 1
        for part in range(self.rank, self.num_batches * self.num_processes, self.num_processes):
            yield order[part * self.batch_size : (part + 1) * self.batch_size].tolist()


class ShuffledBatchSampler(EpochBatchSampler):
    """Batches of all samples once in random order, or of draws with replacement; an incomplete last one is dropped.

    Args:
        num_samples: N.
        batch_size, seed, rank, num_processes: of `EpochBatchSampler`, as are the attributes. Fewer samples than
            ``batch_size`` make one batch.
        weights: (N,); N draws with replacement, each sample in proportion to its weight; None: every sample once.

    Raises:
        ValueError: a batch size below 1, or fewer samples than a batch of several processes needs.

    Example:
        >>> sampler = ShuffledBatchSampler(7, batch_size=3)
        >>> [len(batch) for batch in sampler]
        [3, 3]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        weights: np.ndarray | None = None,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        whole = _whole(batch_size, num_processes)
        if num_processes > 1 and num_samples < whole:
            raise ValueError(
                f"batch_size: {num_processes} processes with {batch_size} samples each need {whole} training samples "
                f"or more, got {num_samples}; lower batch_size, or start fewer processes"
            )
        super().__init__(max(1, num_samples // whole), batch_size, seed, rank, num_processes)
        self.num_samples = num_samples
        self.prob = None if weights is None else weights / weights.sum()

    def _order(self) -> np.ndarray:
        random = np.random.default_rng((self.seed, self.epoch))
        return random.choice(self.num_samples, self.num_samples, replace=self.prob is not None, p=self.prob)


class BalancedBatchSampler(EpochBatchSampler):
    """Batches in which the numbers of samples of any two classes differ by at most one.

    Each class is visited in shuffled order, repeatedly: a rare class several times per epoch, a common one continues in
    the next epoch, so that no sample comes twice before all have come once. An epoch has N samples, rounded up to full
    batches.

    Args:
        labels: (N,) class of each sample; list, array or tensor.
        batch_size, seed, rank, num_processes: of `EpochBatchSampler`, as are the attributes.

    Raises:
        ValueError: labels that are empty or not (N,), or a batch size below 1.

    Example:
        >>> labels = [0, 0, 0, 0, 0, 1]
        >>> [sorted(labels[i] for i in batch) for batch in BalancedBatchSampler(labels, batch_size=2)]
        [[0, 1], [0, 1], [0, 1]]
    """

    sampling = "balanced"

    def __init__(self, labels: Any, batch_size: int, seed: int = 0, rank: int = 0, num_processes: int = 1) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not labels.size:
            raise ValueError(
                f"BalancedBatchSampler: wanted one class per sample, labels (N,), got shape {labels.shape} "
                "(multilabel: use sampling 'weighted')"
            )
        super().__init__(-(-len(labels) // _whole(batch_size, num_processes)), batch_size, seed, rank, num_processes)
        self.members = [np.flatnonzero(labels == c) for c in np.unique(labels)]

    def _order(self) -> np.ndarray:
        num_slots = self.num_batches * self.batch_size * self.num_processes
        slots = np.arange(num_slots * self.epoch, num_slots * (self.epoch + 1))
        order = np.empty(num_slots, dtype=np.int64)
        for c, members in enumerate(self.members):  # the classes take turns, over all epochs
            of_class = slots % len(self.members) == c
            order[of_class] = self._visits(c, members, slots[of_class] // len(self.members))
        return order

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


def batch_sampler(
    labels: Any, sampling: str, batch_size: int, seed: int = 0, rank: int = 0, num_processes: int = 1
) -> EpochBatchSampler:
    """The batches of a training set.

    - "shuffle": every sample once per epoch.
    - "weighted": N draws with replacement, by `sample_weights`: classes are balanced on average. For multilabel rare
      classes come more often, but a class that often accompanies rarer ones stays more frequent.
    - "balanced": `BalancedBatchSampler`: classes are balanced in every batch.
    - "lesions": N draws with replacement, by `lesion_weights`, for detection.

    Args:
        labels: of the training set, (N,), or (N, C) of 0 and 1; list, array or tensor. For "lesions" the number of
            lesions of each image.
        sampling, batch_size, seed: of `make_loader`.
        rank, num_processes: of `EpochBatchSampler`.

    Raises:
        ValueError: an unknown sampling, or labels that it cannot use; see also the samplers.
    """
    if sampling not in SAMPLING:
        raise ValueError(f"make_loader: sampling must be one of {', '.join(SAMPLING)}, got {sampling!r}")
    if sampling == "balanced":
        return BalancedBatchSampler(labels, batch_size, seed, rank, num_processes)
    weigh = {"shuffle": None, "weighted": sample_weights, "lesions": lesion_weights}[sampling]
    weights = None if weigh is None else weigh(labels)
    sampler = ShuffledBatchSampler(len(labels), batch_size, seed, weights, rank, num_processes)
    sampler.sampling = sampling
    return sampler


def _whole(batch_size: int, num_processes: int) -> int:
    """Samples in a batch of all processes."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    return batch_size * num_processes
