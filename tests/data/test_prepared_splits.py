"""Images prepared up to the steps left to the batches, and all splits at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from monai_pipelines import Chain, load_chain
from monai_pipelines.data import Cohort, PreparedDataset, PreparedSplits
from monai_pipelines.data.cache import entries
from monai_pipelines.errors import CohortError

Item = dict[str, Any]


@pytest.fixture
def photos(tmp_path: Path) -> list[Item]:
    """Six PNG of different content."""
    items: list[Item] = []
    for number in range(6):
        file = tmp_path / f"photo{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        items.append({"image": str(file), "label": number % 3, "name": file.name, "patient": f"p{number}"})
    return items


@pytest.mark.parametrize("on_disk", [False, True])
def test_image_and_shortcuts_are_those_of_the_chain(photos: list[Item], tmp_path: Path, on_disk: bool) -> None:
    chain = load_chain("image2d", size=[8, 8]).until("normalize")
    for _ in range(2):  # prepared, then read again
        dataset = PreparedDataset(photos, chain, tmp_path / "cache" if on_disk else None)
        for item, prepared in zip(photos, dataset, strict=True):
            wanted = chain({"image": item["image"]})
            assert type(prepared["image"]) is torch.Tensor, "an image has no affine"
            assert torch.equal(prepared["image"], wanted["image"].as_tensor())
            assert prepared["image"].dtype == wanted["image"].dtype
            assert list(prepared["shortcut"]) == ["mean color", "color histogram", "size and file type"]
            assert all(torch.equal(prepared["shortcut"][name], v) for name, v in wanted["shortcut"].items())
            assert {k: v for k, v in prepared.items() if k not in ("image", "shortcut")} == {
                k: v for k, v in item.items() if k != "image"
            }


def test_the_cache_does_not_depend_on_the_steps_left_to_the_batches(photos: list[Item], tmp_path: Path) -> None:
    def files(until: str | None = "normalize", **knobs: Any) -> set[str]:
        chain = load_chain("image2d", **{"size": [8, 8], **knobs})
        PreparedDataset(photos, chain.until(until) if until else chain, tmp_path / "cache")
        return {file.name for file in entries(tmp_path / "cache")}

    first = files()
    assert len(first) == 6
    assert files(mean=0.5, std=0.25) == first
    assert files(steps={"normalize": {"mean": 0.1}}) == first
    assert len(files(size=[8, 9])) == 12
    assert len(files(until=None)) == 18, "the whole chain has other results"
    assert len(files(until=None, mean=0.5)) == 24


def test_labels_of_the_usable_items(photos: list[Item]) -> None:
    chain = load_chain("image2d", size=[8, 8])
    Path(photos[1]["image"]).write_bytes(b"")
    dataset = PreparedDataset(photos, chain, on_error="skip")
    assert (dataset.labels.dtype, dataset.labels.tolist()) == (np.int64, [0, 2, 0, 1, 2])
    several = [{**item, "label": [1.0, float(k % 2), 0.0]} for k, item in enumerate(photos)]
    dataset = PreparedDataset(several, chain, on_error="skip")
    assert dataset.labels.tolist() == [[1, k, 0] for k in (0, 0, 1, 0, 1)]


# ---- all splits at once


@pytest.fixture
def cohort(photos: list[Item]) -> Cohort:
    """Three, two and one; the table names its splits differently."""
    named = [{**item, "split": "Val"} for item in photos]
    return Cohort(named[:3], named[3:5], named[5:], ("a", "b", "c"))


class _Count:
    """Records the images, and returns the number in their name."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, data: Item) -> Item:
        self.seen.append(Path(data["image"]).name)
        number = int(Path(data["image"]).stem[-1])
        return {**data, "image": torch.full((1, 1, 1), float(number)), "shortcut": {"number": torch.tensor([number])}}


def _numbers(dataset: PreparedDataset) -> list[int]:
    return [int(item["image"]) for item in dataset]


def test_splits_are_prepared_together_on_first_access(cohort: Cohort) -> None:
    count = _Count()
    splits = PreparedSplits(cohort, Chain({"count": count}, {"steps": {}, "versions": {}}))
    assert count.seen == []
    assert _numbers(splits.validation) == [3, 4]
    assert count.seen == [f"photo{k}.png" for k in range(6)]
    assert (_numbers(splits.train), _numbers(splits.test)) == ([0, 1, 2], [5])
    assert len(count.seen) == 6
    for split in ("train", "validation", "test"):
        dataset, data = getattr(splits, split), getattr(cohort, split)
        assert dataset is getattr(splits, split)
        assert len(dataset) == len(data)
        assert dataset.data == [{**item, "split": split} for item in data]
        assert dataset.labels.tolist() == cohort.labels(split)
        assert [int(item["shortcut"]["number"]) for item in dataset] == _numbers(dataset)
        assert dataset.skipped == []


@pytest.mark.parametrize("on_disk", [False, True])
def test_every_split_equals_a_dataset_of_its_items(cohort: Cohort, tmp_path: Path, on_disk: bool) -> None:
    chain = load_chain("image2d", size=[8, 8])
    splits = PreparedSplits(cohort, chain, tmp_path / "cache" if on_disk else None)
    for split in ("train", "validation", "test"):
        data = [{**item, "split": split} for item in getattr(cohort, split)]
        for item, alone in zip(getattr(splits, split), PreparedDataset(data, chain), strict=True):
            assert torch.equal(item["image"], alone["image"])
            assert (item["name"], item["label"], item["split"]) == (alone["name"], alone["label"], split)


def _spoil(cohort: Cohort, *names: str) -> list[str]:
    files = [item["image"] for items in (cohort.train, cohort.validation, cohort.test) for item in items]
    bad = [file for file in files if Path(file).name in names]
    for file in bad:
        Path(file).write_bytes(b"")
    return bad


@pytest.mark.parametrize("asked", ["train", "validation", "test"])
def test_bad_files_of_all_splits_are_listed_at_once(cohort: Cohort, asked: str) -> None:
    bad = _spoil(cohort, "photo1.png", "photo4.png", "photo5.png")
    with pytest.raises(CohortError, match="3 of 6 cannot be used: 3 problem") as error:
        getattr(PreparedSplits(cohort, load_chain("image2d")), asked)
    assert [problem.partition(": ")[0] for problem in error.value.problems] == bad


def test_skipped_files_are_listed_in_their_split(cohort: Cohort, caplog: pytest.LogCaptureFixture) -> None:
    _spoil(cohort, "photo0.png", "photo2.png", "photo4.png")
    splits = PreparedSplits(cohort, load_chain("image2d", size=[8, 8]), on_error="skip")
    skipped = {
        split: [item["name"] for item in getattr(splits, split).skipped] for split in ("train", "validation", "test")
    }
    assert skipped == {"train": ["photo0.png", "photo2.png"], "validation": ["photo4.png"], "test": []}
    assert [item["name"] for item in splits.train] == ["photo1.png"]
    assert [item["name"] for item in splits.validation] == ["photo3.png"]
    assert all(item["skipped"] for item in splits.train.skipped)
    assert caplog.text.count("skipped ") == 3


def test_a_split_without_usable_items_is_an_error(cohort: Cohort) -> None:
    (bad,) = _spoil(cohort, "photo5.png")
    splits = PreparedSplits(cohort, load_chain("image2d", size=[8, 8]), on_error="skip")
    with pytest.raises(CohortError, match="test: 2 problem") as error:
        _ = splits.train
    assert error.value.problems[0] == "no usable item is left"
    assert error.value.problems[1].startswith(f"{bad}: ")
