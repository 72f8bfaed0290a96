"""Chains in MONAI's caching datasets: every fixed step runs once for each item, in whatever the chains are put."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, CacheNTransDataset, Dataset, PersistentDataset, SmartCacheDataset
from monai.transforms import Compose, MapTransform, RandomizableTrait
from PIL import Image

from monai_pipelines import Chain, load_chain

RUNS: Counter[str] = Counter()
OFF = {f"{part}_prob": 0 for part in ("rotation", "scale", "shift", "brightness", "contrast", "saturation", "hue")}


class _Counted(MapTransform):
    """A step that counts its runs."""

    def __init__(self, name: str, step: Callable) -> None:
        super().__init__("image")
        self.name, self.step = name, step

    def __call__(self, data: Any) -> Any:
        RUNS[self.name] += 1
        return self.step(data)


def _chains() -> tuple[Chain, Chain]:
    fixed = load_chain("image2d", size=[8, 8]).until("normalize")
    counted = {name: _Counted(name, step) for name, step in fixed.steps.items()}
    return Chain(counted, fixed.describe()), load_chain("augment_image2d", flip_prob=[0, 1], **OFF)


FORMS: dict[str, Callable[[Chain, Chain], Any]] = {
    "list": lambda pre, aug: [pre, aug],
    "Compose": lambda pre, aug: Compose([pre, aug]),
    "sum": lambda pre, aug: pre + aug,
    "alone": lambda pre, aug: pre,
}
DATASETS: dict[str, Callable[..., Any]] = {
    "CacheDataset": lambda data, chain, folder: CacheDataset(data, chain, progress=False),
    "SmartCacheDataset": lambda data, chain, folder: SmartCacheDataset(
        data, chain, cache_num=2, shuffle=False, progress=False
    ),
    "PersistentDataset": PersistentDataset,
    "CacheNTransDataset": lambda data, chain, folder: CacheNTransDataset(
        data, chain, 3 if len(getattr(chain, "transforms", ())) > 3 else 1, folder
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", DATASETS)
def test_fixed_steps_run_once_per_item(kind: str, form: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3)).astype(np.uint8)
    data = [{"image": str(tmp_path / f"{k}.png")} for k in range(3)]
    for values, item in zip(pixels, data, strict=True):
        Image.fromarray(values).save(item["image"])
    chain = FORMS[form](*_chains())
    wanted = [item["image"].as_tensor() for item in Dataset(data, chain)]
    RUNS.clear()
    dataset = DATASETS[kind](data, chain, tmp_path / "cache")
    for _ in range(3):
        for index in range(len(dataset)):  # a SmartCacheDataset has two
            assert torch.equal(torch.as_tensor(dataset[index]["image"]).as_subclass(torch.Tensor), wanted[index])
    assert dict(RUNS) == dict.fromkeys(("load", "measure", "resize"), len(dataset))


def test_only_chains_with_random_steps_count_as_random() -> None:
    image, augmentation = load_chain("image2d"), load_chain("augment_image2d")
    for fixed in (image, image.until("normalize"), image.since("normalize"), image.then("len", len, {})):
        assert isinstance(fixed, Chain)
        assert not isinstance(fixed, RandomizableTrait)
    both = image.until("normalize") + augmentation + image.since("normalize")
    for random in (augmentation, both, both.since("color"), augmentation.then("len", len, {})):
        assert isinstance(random, Chain)
        assert isinstance(random, Compose)
    assert not isinstance(both.until("spatial"), RandomizableTrait)
