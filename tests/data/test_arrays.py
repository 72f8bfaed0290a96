"""Arrays in memory: whole batches at once, the same as one by one."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from monai_pipelines.data import ArrayDataset, collate_batches


def _dataset(shape: tuple[int, ...] = (3, 6, 5), multilabel: bool = False, number: int = 12) -> ArrayDataset:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (number, 4) if multilabel else number)
    images = torch.from_numpy(random.integers(0, 256, (number, *shape), dtype=np.uint8))
    return ArrayDataset(images, labels, [f"i{k}" for k in range(number)])


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (1, 6, 5, 4)])
@pytest.mark.parametrize("multilabel", [False, True])
def test_a_batch_is_the_items(shape: tuple[int, ...], multilabel: bool) -> None:
    dataset = _dataset(shape, multilabel)
    indices = [5, 0, 11, 5]
    batch = dataset.__getitems__(indices)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == (torch.float32 if multilabel else torch.int64)
    for row, index in enumerate(indices):
        assert torch.equal(batch["image"][row], dataset.images[index])
        assert batch["label"][row].tolist() == dataset.labels[index].tolist() == dataset.data[index]["label"]
        assert batch["name"][row] == batch["patient"][row] == dataset.data[index]["name"] == f"i{index}"
    assert len(dataset) == 12
    assert dataset.skipped == []


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loader_gives_every_image_once(num_workers: int) -> None:
    dataset = _dataset()
    batches = list(DataLoader(dataset, 5, shuffle=True, collate_fn=collate_batches, num_workers=num_workers))
    assert [len(batch["image"]) for batch in batches] == [5, 5, 2]
    names = [name for batch in batches for name in batch["name"]]
    assert sorted(names) == sorted(item["name"] for item in dataset.data)
    for batch in batches:
        for name, image, label in zip(batch["name"], batch["image"], batch["label"], strict=True):
            assert torch.equal(image, dataset.images[int(name[1:])])
            assert label == dataset.labels[int(name[1:])]


def test_other_items_are_collated_as_monai_does() -> None:
    items: list[dict[str, Any]] = [
        {
            "image": torch.full((1, 2), float(k)),
            "label": label,
            "name": f"n{k}",
            "shortcut": {"mean": torch.ones(2) * k},
        }
        for k, label in enumerate([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    ]
    batch = pickle.loads(pickle.dumps(collate_batches))(items)
    assert torch.equal(batch["label"], torch.tensor([[0.0, 1, 1], [1, 0, 0]])), "a row for each image"
    assert batch["image"].shape == (2, 1, 2)
    assert batch["name"] == ["n0", "n1"]
    assert torch.equal(batch["shortcut"]["mean"], torch.tensor([[0.0, 0], [1, 1]]))
    assert items[0]["label"] == [0.0, 1.0, 1.0]
    assert collate_batches([{**item, "label": 1} for item in items])["label"].tolist() == [1, 1]
    assert collate_batches([{"image": torch.zeros(1)}])["image"].shape == (1, 1)


def test_shortcut_features_of_a_volume_are_those_of_its_values() -> None:
    flat = _dataset((1, 6, 20))
    deep = ArrayDataset(flat.images.reshape(12, 1, 6, 5, 4), flat.labels)
    for name, feature in flat[7]["shortcut"].items():
        assert torch.equal(deep[7]["shortcut"][name], feature)


def test_shortcut_features_of_an_item() -> None:
    item = _dataset()[3]
    assert item["image"].shape == (3, 6, 5)
    colour = item["shortcut"]["mean colour"]
    assert torch.allclose(colour, item["image"].float().mean((1, 2)) / 255, atol=1e-5)
    assert "size and file type" not in item["shortcut"], "constant here"
    assert item["shortcut"]["colour histogram"].shape == (48,)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), [0, 1], "images must be uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), [0, 1], "images must be uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, 1, 1], "2 images want as many labels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), np.zeros((2, 1, 1)), "2 images want as many labels"),
    ],
)
def test_wrong_arrays(images: torch.Tensor, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, labels)
