"""Chains with random steps in the workers of data loaders: every worker, epoch and step draws differently."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import monai.data
import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.transforms import Compose, MapTransform, RandomizableTransform
from monai.utils import set_determinism
from torch.utils.data import DataLoader

from monai_pipelines import Chain, load_chain
from tests.new_process import CONTEXT

WORKERS, EPOCHS, ITEMS = 4, 3, 16
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on few cores


class _Draw(RandomizableTransform, MapTransform):
    """Put a random number at the key."""

    def __init__(self, keys: str) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **dict.fromkeys(self.keys, self.R.random_sample())}


def _chain(*names: str) -> Chain:
    return Chain({name: _Draw(name) for name in names}, {"name": "draws", "knobs": {}, "steps": {}, "versions": {}})


def _numbers(
    transform: Any, seed: int | None = 0, kind: Any = DataLoader, epochs: int = EPOCHS, **options: Any
) -> list[float]:
    if seed is not None:
        torch.manual_seed(seed)
    loader = kind(Dataset([{"id": k} for k in range(ITEMS)], transform), **{"num_workers": WORKERS, **options})
    batches = [batch for _ in range(epochs) for batch in loader]
    return [float(value) for batch in batches for key, value in batch.items() if key != "id"]


@pytest.mark.parametrize("kind", [DataLoader, monai.data.DataLoader])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_each_worker_epoch_and_step_draws_differently(kind: Any, persistent_workers: bool) -> None:
    first, again, other = (
        _numbers(_chain("a", "b"), seed, kind, persistent_workers=persistent_workers) for seed in (0, 0, 1)
    )
    assert len(set(first)) == 2 * EPOCHS * ITEMS
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("context", [CONTEXT, pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_in_new_processes_draw_as_forked_ones(context: Any) -> None:
    """Spawned ones persist, as each start imports torch and MONAI."""
    options = {"num_workers": 2, "persistent_workers": context == "spawn"}
    forked, started = (
        _numbers(_chain("a", "b"), multiprocessing_context=kind, **options) for kind in ("fork", context)
    )
    assert len(set(forked)) == 2 * EPOCHS * ITEMS
    assert forked == started


def test_two_equal_chains_draw_differently() -> None:
    views = _numbers(Compose([_chain("a"), _chain("b")]), epochs=1)
    assert len(set(views)) == 2 * ITEMS


def test_seeds_of_generator_chain_and_determinism() -> None:
    def numbers(chain_seed: int | None, generator_seed: int) -> list[float]:
        chain = _chain("a")
        if chain_seed is not None:
            chain.set_random_state(chain_seed)  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(generator_seed)
        return _numbers(chain, None, epochs=1, generator=generator)

    seeds = [(None, 0), (None, 1), (0, 0), (0, 1), (1, 0)]
    runs = [numbers(*pair) for pair in seeds]
    assert runs == [numbers(*pair) for pair in seeds]
    assert len({number for run in runs for number in run}) == len(seeds) * ITEMS
    determined = []
    for _ in range(2):
        set_determinism(0)
        determined.append(_numbers(_chain("a"), None, epochs=2))
    set_determinism(None)
    assert determined[0] == determined[1]
    assert len(set(determined[0])) == 2 * ITEMS


class _Seeding(Dataset):
    """Seeds its chain for each item."""

    def __getitem__(self, index: int) -> Any:
        self.transform.set_random_state(index)
        return self.transform({})["a"]


def test_a_seed_given_in_a_worker_stands() -> None:
    dataset = _Seeding(list(range(8)), _chain("a"))
    assert [float(value) for value in DataLoader(dataset, num_workers=2)] == [dataset[index] for index in range(8)]


def test_images_of_an_augmentation() -> None:
    """As a user has it: 48 different images, the same again with the same seed."""

    def images() -> list[bytes]:
        torch.manual_seed(0)
        image = torch.from_numpy(np.random.default_rng(0).random((3, 16, 16), np.float32))
        dataset = Dataset([{"image": image}] * ITEMS, load_chain("augment_image2d", rotation_prob=1))
        loader = DataLoader(dataset, num_workers=WORKERS)
        return [batch["image"].numpy().tobytes() for _ in range(EPOCHS) for batch in loader]

    first = images()
    assert len(set(first)) == len(first) == 48
    assert images() == first
