"""Bags: slides as items, unequal bags as one batch, new tiles in training, the same tiles in a test."""

from __future__ import annotations

import os
import pickle
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, decollate_batch

from monai_pipelines.data import Cohort, make_loader
from monai_pipelines.data.cache import Cache
from monai_pipelines.errors import CohortError
from monai_pipelines.features import (
    FeatureBags,
    FeatureSplits,
    PrepareBags,
    TileBags,
    TileSplits,
    extract_features,
    pad_bags,
    read_features,
)
from monai_pipelines.slides import open_slide
from tests.features.small_slides import (
    NUM_FEATURES,
    NUM_TILES,
    TILE_PX,
    datalist,
    small_backbone,
    small_chain,
    small_slide,
)

Item = dict[str, Any]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Six slides, two of each split."""
    slides = datalist(tmp_path_factory.mktemp("slides"), 6)
    return [{**item, "label": k % 2, "patient": f"p{k}"} for k, item in enumerate(slides)]


@pytest.fixture(scope="module")
def cohort(items: list[Item]) -> Cohort:
    return Cohort(items[:2], items[2:4], items[4:], ("normal", "tumour"))


def _bags(items: list[Item], **options: Any) -> FeatureBags:
    return FeatureBags(items, small_chain(), small_backbone(), **options)


# ---- batches


def test_padding_is_zero_and_masked() -> None:
    bags = [torch.rand(n, 5) + 1 for n in (3, 1, 4)]
    items = [{"bag": bag, "label": n, "name": str(n), "patient": "p", "coords": None} for n, bag in enumerate(bags)]
    batch = pad_bags(items)
    assert sorted(batch) == ["bag", "label", "mask", "name", "patient"]
    assert batch["mask"].tolist() == [[True] * 3 + [False], [True] + [False] * 3, [True] * 4]
    for row, mask, bag in zip(batch["bag"], batch["mask"], bags, strict=True):
        assert torch.equal(row[mask], bag)
        assert not row[~mask].any()
    assert batch["label"].tolist() == [0, 1, 2]
    parts = decollate_batch(batch)
    assert [part["name"] for part in parts] == ["0", "1", "2"]
    assert all(torch.equal(part["bag"][part["mask"]], bag) for part, bag in zip(parts, bags, strict=True))


def test_batches_of_tiles_and_without_labels() -> None:
    bags = [torch.full((n, 3, 4, 4), 7, dtype=torch.uint8) for n in (2, 1)]
    batch = pad_bags([{"bag": bag, "name": "a"} for bag in bags])
    assert sorted(batch) == ["bag", "mask", "name"]
    assert (batch["bag"].shape, batch["bag"].dtype) == ((2, 2, 3, 4, 4), torch.uint8)
    assert batch["bag"].sum(dtype=torch.int64) == 7 * 3 * 3 * 16


def test_multilabels_become_rows() -> None:
    batch = pad_bags([{"bag": torch.ones(1, 2), "label": [1.0, 0.0, 1.0]}] * 2)
    assert batch["label"].shape == (2, 3)


def test_features_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \[\(4,\), \(5,\)\]"):
        pad_bags([{"bag": torch.ones(2, 4)}, {"bag": torch.ones(2, 5)}])


def test_bags_of_different_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one dtype, got torch\.float32, torch\.uint8"):
        pad_bags([{"bag": torch.ones(2, 4, dtype=torch.uint8)}, {"bag": torch.ones(2, 4)}])


def test_input_of_the_network() -> None:
    batch = pad_bags([{"bag": torch.ones(n, 2), "label": 1} for n in (2, 3)])
    bag, label, args, kwargs = PrepareBags()(batch, torch.device("meta"), True)
    assert (bag.device.type, label.device.type, args) == ("meta", "meta", ())
    assert list(kwargs) == ["mask"]
    assert kwargs["mask"].device.type == "meta"
    assert PrepareBags()(pad_bags([{"bag": torch.ones(1, 2)}]))[1] is None


def test_networks_without_a_mask_need_equal_bags() -> None:
    prepare = PrepareBags(use_mask=False)
    assert len(prepare(pad_bags([{"bag": torch.ones(2, 2), "label": 1}] * 2))) == 2
    with pytest.raises(ValueError, match=r"got \[2, 3\] tiles"):
        prepare(pad_bags([{"bag": torch.ones(n, 2)} for n in (2, 3)]))


# ---- bags of features


def test_items(items: list[Item]) -> None:
    dataset = _bags(items)
    item = dataset[1]
    assert {key: item[key] for key in items[1] if key != "image"} == {k: v for k, v in items[1].items() if k != "image"}
    assert (item["bag"].shape, item["bag"].dtype) == ((NUM_TILES, NUM_FEATURES), torch.float32)
    assert (item["coords"].shape, item["level0_px"], item["tile_px"]) == ((NUM_TILES, 2), TILE_PX, TILE_PX)
    assert (item["mpp"], item["slide_mpp"], item["downsample"]) == (0.5, 0.5, 4.0)
    assert (item["image"].shape, item["image"].dtype) == ((3, 48, 64), torch.uint8)
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_shortcuts_are_measured_on_the_tissue(items: list[Item]) -> None:
    measured = _bags(items)[0]["shortcut"]
    pixels = open_slide(items[0]["image"]).read_region(40, 40, 176, 112) / 255
    np.testing.assert_allclose(measured["tissue color"][:3], pixels.mean((0, 1)), atol=0.03)
    np.testing.assert_allclose(measured["tissue color"][3:], pixels.std((0, 1)), atol=0.03)
    area_mm2, num_tiles = np.exp(measured["amount of tissue"].numpy())
    assert area_mm2 == pytest.approx(0.096 * 0.064, rel=0.1)
    assert num_tiles == pytest.approx(NUM_TILES)
    np.testing.assert_allclose(measured["scanner"], [0.5, np.log(256), np.log(192)], rtol=1e-6)


def test_batches_do_not_read_pictures(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = _bags(items)
    read = []
    monkeypatch.setattr(
        "monai_pipelines.features.bags.read_features",
        lambda file, pictures: read.append(pictures) or read_features(file),
    )
    batch = next(iter(make_loader(dataset, 4)))
    assert read == [False] * 4
    assert batch["bag"].shape == (4, NUM_TILES, NUM_FEATURES)
    assert batch["patient"] == ["p0", "p1", "p2", "p3"]
    assert torch.equal(batch["bag"][1], dataset[1]["bag"])


def test_some_tiles_are_drawn_on_each_access(items: list[Item]) -> None:
    whole, part = _bags(items[:1])[0], _bags(items[:1], max_tiles=5)
    torch.manual_seed(0)
    draws = [part[0] for _ in range(20)]
    assert all(draw["bag"].shape == (5, NUM_FEATURES) for draw in draws)
    seen = {tuple(map(tuple, draw["coords"])) for draw in draws}
    assert len(seen) > 10
    features_at = {tuple(xy): row for xy, row in zip(whole["coords"].tolist(), whole["bag"], strict=True)}
    for xy, row in zip(draws[0]["coords"].tolist(), draws[0]["bag"], strict=True):
        assert torch.equal(row, features_at[tuple(xy)])
    torch.manual_seed(0)
    assert np.array_equal(part[0]["coords"], draws[0]["coords"])
    with pytest.raises(ValueError, match="max_tiles must be"):
        _bags(items[:1], max_tiles=0)


def test_a_temporary_folder_is_deleted_with_the_dataset(items: list[Item]) -> None:
    dataset = FeatureBags([{**item, "split": "train"} for item in items[:2]], small_chain(), small_backbone())
    part = dataset.part("train")
    file = Path(dataset._results[0])
    del dataset
    assert len(part[0]["bag"]) == NUM_TILES
    copy = pickle.loads(pickle.dumps(part))
    assert torch.equal(copy[0]["bag"], part[0]["bag"])
    del copy
    assert file.is_file()
    del part
    assert not file.exists()


def test_splits_of_features(cohort: Cohort, tmp_path: Path) -> None:
    options: Item = {"chain": small_chain(), "backbone": small_backbone(), "features_dir": tmp_path / "f"}
    datasets = FeatureSplits(cohort, max_tiles=3, **options)
    assert [item["name"] for item in datasets.train.data] == ["s0.tif", "s1.tif"]
    assert [item["name"] for item in datasets.test.data] == ["s4.tif", "s5.tif"]
    assert [len(getattr(datasets, s)[0]["bag"]) for s in ("train", "validation", "test")] == [3, NUM_TILES, NUM_TILES]


def test_splits_of_features_without_slides(cohort: Cohort, tmp_path: Path) -> None:
    options: Item = {"chain": small_chain(), "backbone": small_backbone(), "features_dir": tmp_path / "f"}
    extract_features([*cohort.train, *cohort.validation, *cohort.test], **options)
    gone = [[{**item, "image": f"gone/{item['name']}"} for item in getattr(cohort, s)] for s in ("train", "validation")]
    datasets = FeatureSplits(Cohort(*gone, cohort.test, cohort.classes), **options)
    assert len(datasets.train[0]["bag"]) == NUM_TILES


# ---- bags of tiles


def _tiles(items: list[Item], **options: Any) -> TileBags:
    return TileBags(items, small_chain(num_tiles=5), **options)


def test_items_of_tiles(items: list[Item]) -> None:
    dataset = _tiles(items)
    item = dataset[0]
    assert (item["bag"].shape, item["bag"].dtype) == ((5, 3, TILE_PX, TILE_PX), torch.uint8)
    slide = open_slide(items[0]["image"])
    for (x, y), tile in zip(item["coords"].tolist(), item["bag"], strict=True):
        np.testing.assert_array_equal(tile.permute(1, 2, 0), slide.read_region(x, y, TILE_PX, TILE_PX))
    assert (item["level0_px"], item["mpp"], item["slide_mpp"], item["downsample"]) == (TILE_PX, 0.5, 0.5, 4.0)
    features = _bags(items)[0]
    assert torch.equal(item["image"], features["image"])
    assert item["shortcut"].keys() == features["shortcut"].keys()
    assert all(torch.equal(item["shortcut"][key], features["shortcut"][key]) for key in item["shortcut"])


def test_training_draws_new_tiles_and_evaluation_does_not(cohort: Cohort) -> None:
    datasets = TileSplits(cohort, chain=small_chain(num_tiles=5))
    first = [item["coords"] for item in datasets.test]
    drawn = {datasets.train[0]["coords"].tobytes() for _ in range(10)}
    assert len(drawn) > 5
    for item, coords in zip(datasets.test, first, strict=True):
        np.testing.assert_array_equal(item["coords"], coords)
    for index, coords in enumerate(first):
        loaded = next(iter(make_loader(datasets.test, 2)))["bag"][index]
        assert torch.equal(loaded, datasets.test[index]["bag"])
        np.testing.assert_array_equal(datasets.test[index]["coords"], coords)
    assert not np.array_equal(first[0], first[1])
    assert {datasets.train[0]["coords"].tobytes() for _ in range(10)} - drawn, "the seeds of the test have no influence"


def test_workers_draw_new_tiles_in_each_epoch(items: list[Item]) -> None:
    dataset = _tiles(items[:2], redraw=True)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=pad_bags)
    epochs = [next(iter(loader))["bag"] for _ in range(2)]
    assert not torch.equal(*epochs)


def test_lists_are_cached(items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = {"image": str(small_slide(tmp_path / "slide.tif")), "name": "slide.tif"}
    first = [item["coords"] for item in _tiles([slide, items[0]], cache_dir=tmp_path / "c", num_workers=2)]
    assert len(list((tmp_path / "c").iterdir())) == 2
    with monkeypatch.context() as patched:
        patched.setattr("monai_pipelines.features.tile_bags._TileLists.plan", lambda *_: pytest.fail("listed again"))
        cached = _tiles([slide, items[0]], cache_dir=tmp_path / "c")
        again = [item["coords"] for item in cached.__getitems__([0, 1])]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    small_slide(tmp_path / "slide.tif", mpp=0.25)
    assert _tiles([slide], cache_dir=tmp_path / "c")[0]["slide_mpp"] == 0.25
    assert _tiles([{**slide, "mpp": 0.4}], cache_dir=tmp_path / "c")[0]["slide_mpp"] == 0.4


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_damaged_list_is_made_again(items: list[Item], tmp_path: Path, content: bytes | None) -> None:
    first = _tiles(items[:1], cache_dir=tmp_path)[0]["coords"]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    np.testing.assert_array_equal(_tiles(items[:1], cache_dir=tmp_path)[0]["coords"], first)
    assert len(Cache(tmp_path).read(file)["coords"]) == NUM_TILES


@pytest.mark.parametrize("kind", [_bags, _tiles])
def test_bad_slides(items: list[Item], tmp_path: Path, kind: Any) -> None:
    (tmp_path / "bad.svs").write_text("no slide")
    bad = {"image": str(tmp_path / "bad.svs"), "name": "bad.svs", "label": 1}
    with pytest.raises(CohortError, match=r"1 of 2 cannot be used\b.*\n.*bad\.svs: "):
        kind([items[0], bad])
    dataset = kind([items[0], bad], on_error="skip")
    assert dataset.data == items[:1]
    assert [item["name"] for item in dataset.skipped] == ["bad.svs"]
    assert dataset.skipped[0]["skipped"]


def _fails_for_second(load: Any, data: Item) -> Item:
    if str(data["image"]).endswith("s1.tif"):
        raise ZeroDivisionError("no reason")
    if str(data["image"]).endswith("s2.tif"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return load(data)


def test_whatever_happens_while_tiles_are_listed_is_the_slides_reason(tmp_path: Path) -> None:
    items, chain = datalist(tmp_path, 4, label=0), small_chain(num_tiles=5)
    chain.transforms = (partial(_fails_for_second, chain.transforms[0]), *chain.transforms[1:])
    dataset = TileBags(items, chain, on_error="skip", num_workers=2)
    assert [item["name"] for item in dataset.data] == ["s0.tif", "s3.tif"]
    crash = "reading it crashes the process; convert or export it again"
    assert [item["skipped"] for item in dataset.skipped] == ["ZeroDivisionError", crash]
    with pytest.raises(CohortError, match=rf"2 of 4 cannot be used.*\n.*ZeroDivisionError\n.*{crash}"):
        TileBags(items, chain, num_workers=2)


@pytest.mark.parametrize("kind", [_bags, _tiles])
def test_wrong_policy_is_refused_before_any_work(items: list[Item], kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_pipelines.features.bags.extract_features", lambda *_, **__: pytest.fail("extracted"))
    with pytest.raises(ValueError, match="on_error must be"):
        kind(items[:1], on_error="ignore")
