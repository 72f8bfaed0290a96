"""Batches of the loaders, and the network's input."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform
from PIL import Image

from monai_pipelines import Chain, load_chain, processes
from monai_pipelines.data import ArrayDataset, PreparedDataset, PrepareImages, make_loader

LABELS = [0] * 9 + [1] * 3 + [2]


class _Double(RandomizableTransform):
    """Times two, plus a random number per image."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        noise = self.R.uniform(size=(len(data["image"]), 1, 1, 1))
        return {**data, "image": data["image"] * 2 + torch.as_tensor(noise, dtype=torch.float32)}


def _add_one(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "image": data["image"] + 1}


def _chain(step: Any, key: str = "image") -> Chain:
    return Chain({"step": step}, {"steps": {}, "versions": {}}, key)


def _batch(**more: Any) -> dict[str, Any]:
    return {"image": MetaTensor(torch.arange(24.0).reshape(4, 1, 2, 3)), "name": list("abcd"), **more}


# ---- the network's input


def test_without_chains_images_and_labels_are_unchanged() -> None:
    batch = _batch(label=torch.tensor([0, 1, 1, 0]))
    image, label = PrepareImages()(batch)
    assert type(image) is torch.Tensor
    assert torch.equal(image, batch["image"].as_tensor())
    assert label is not None
    assert torch.equal(label, batch["label"])


def test_image_gets_device_and_dtype_label_only_the_device() -> None:
    batch = _batch(label=torch.tensor([0, 1, 1, 0]))
    image, label = PrepareImages()(batch, torch.device("meta"), True, dtype=torch.float16)
    assert label is not None
    assert (image.device.type, image.dtype) == ("meta", torch.float16)
    assert (label.device.type, label.dtype) == ("meta", torch.int64)


def test_unlabeled_images() -> None:
    assert PrepareImages()(_batch())[1] is None


def test_each_image_is_augmented_at_random_and_then_finished() -> None:
    batch = _batch()
    augmentation = _chain(_Double()).set_random_state(3)
    image, _ = PrepareImages(augmentation, _chain(_add_one))(batch)
    noise = image - 2 * batch["image"].as_tensor() - 1  # finished first it would be 2 (x + 1)
    per_image = noise[:, 0, 0, 0]
    assert torch.allclose(noise, per_image[:, None, None, None].expand(4, 1, 2, 3), atol=1e-5)
    assert len(set(per_image.tolist())) == 4
    assert 0 <= per_image.min() <= per_image.max() <= 1
    assert torch.equal(batch["image"], torch.arange(24.0).reshape(4, 1, 2, 3)), "the batch is not changed"
    again, _ = PrepareImages(augmentation, _chain(_add_one))(batch)
    assert not torch.equal(again, image)


@pytest.mark.parametrize("part", ["augmentation", "finish"])
def test_a_chain_may_use_another_key(part: str) -> None:
    def add_ten(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "scan": data["scan"] + 10}

    image, _ = PrepareImages(**{part: _chain(add_ten, key="scan")})(_batch())
    assert torch.equal(image, torch.arange(24.0).reshape(4, 1, 2, 3) + 10)


def test_augmented_images_are_normalized_last() -> None:
    """uint8 0 and 255, mean and std of ImageNet; columns are always flipped."""
    chain = load_chain("image2d")
    off = dict.fromkeys(("rotation_prob", "scale_prob", "shift_prob", "brightness", "contrast"), 0)
    flip = load_chain("augment_image2d", flip_prob=[0, 1], saturation=0, hue_turns=0, **off)
    pixels = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    pixels[:, :, :, 0] = 255
    image, _ = PrepareImages(flip, chain.since("normalize"))({"image": pixels})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for row in image:
        assert torch.allclose(row[:, 0, 0], -mean / std, atol=1e-5)
        assert torch.allclose(row[:, 1, 1], (1 - mean) / std, atol=1e-5)


# ---- loaders


def _array(labels: Any = LABELS) -> ArrayDataset:
    """Image number k is filled with k."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return ArrayDataset(images, labels, [f"n{k}" for k in range(len(labels))])


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedDataset:
    """The same images as PNG files."""
    items = []
    for number, label in enumerate(LABELS):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(file)
        items.append({"image": str(file), "label": label, "name": f"n{number}", "patient": f"n{number}"})
    return PreparedDataset(items, load_chain("image2d", size=[2, 2]).until("normalize"))


def _epoch(loader: Any) -> list[list[int]]:
    """Numbers of the images in each batch, after a check of its content."""
    batches = []
    for batch in loader:
        numbers = [int(name[1:]) for name in batch["name"]]
        assert batch["image"].shape == (len(numbers), 3, 2, 2)
        assert batch["image"].dtype == torch.uint8
        assert [int(image.max()) for image in batch["image"]] == numbers
        assert batch["label"].tolist() == [loader.dataset.labels[k].tolist() for k in numbers]
        batches.append(numbers)
    return batches


@pytest.mark.parametrize("kind", ["array", "prepared"])
@pytest.mark.parametrize(
    ("sampling", "sizes"),
    [(None, [4, 4, 4, 1]), ("shuffle", [4, 4, 4]), ("weighted", [4, 4, 4]), ("balanced", [4, 4, 4, 4])],
)
def test_batches_of_each_sampling(prepared: PreparedDataset, kind: str, sampling: str | None, sizes: list[int]) -> None:
    dataset = prepared if kind == "prepared" else _array()
    batches = _epoch(make_loader(dataset, 4, sampling))
    assert [len(batch) for batch in batches] == sizes
    drawn = [k for batch in batches for k in batch]
    if sampling is None:
        assert drawn == list(range(13))
    elif sampling == "shuffle":
        assert len(set(drawn)) == 12
        assert drawn != sorted(drawn)
    elif sampling == "balanced":
        for batch in batches:
            counts = Counter(LABELS[k] for k in batch)
            assert {counts[c] for c in range(3)} == {1, 2}
    assert drawn == [k for batch in _epoch(make_loader(_array(), 4, sampling)) for k in batch], (
        "the same for both kinds and runs"
    )


@pytest.mark.parametrize("sampling", ["shuffle", "weighted", "balanced"])
def test_order_depends_on_the_seed(sampling: str) -> None:
    first, again, other = (_epoch(make_loader(_array(), 4, sampling, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    loader = make_loader(_array(), 4, sampling, seed=1)
    assert _epoch(loader) == first
    assert _epoch(loader) != first, "every epoch has another order"


def test_multilabel() -> None:
    labels = np.eye(3)[np.arange(12) % 3]
    for sampling in (None, "shuffle", "weighted"):
        batches = list(make_loader(_array(labels), 4, sampling))
        assert len(batches) == 3
        assert (batches[0]["label"].shape, batches[0]["label"].dtype) == ((4, 3), torch.float32)
    with pytest.raises(ValueError, match="use sampling 'weighted'"):
        make_loader(_array(labels), 4, "balanced")


def test_multilabels_of_files_are_rows(prepared: PreparedDataset) -> None:
    prepared.data = [{**item, "label": [float(item["label"] == c) for c in range(3)]} for item in prepared.data]
    batch = next(iter(make_loader(prepared, 4)))
    assert torch.equal(batch["label"], torch.tensor([[1.0, 0, 0]] * 4))


def test_workers_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, workers in ((False, 0), (True, 2)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        loader = make_loader(_array(), 4, num_workers=2)
        assert (loader.num_workers, loader.pin_memory) == (workers, cuda)


def test_each_process_validates_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "num_processes", lambda: 3)
    names = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        names += [name for batch in make_loader(_array(), 4, distributed=True) for name in batch["name"]]
    assert sorted(names) == sorted(f"n{k}" for k in range(len(LABELS)))
    assert len(make_loader(_array(), 4)) == -(-len(LABELS) // 4)
    with pytest.raises(ValueError, match="3 processes need as many validation images, got 2"):
        make_loader(_array([0, 1]), 4, distributed=True)
