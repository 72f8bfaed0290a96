"""Cache entries: whole or made again, exact or with a stated error, never stale."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from monai_pipelines import Chain
from monai_pipelines.data import PreparedDataset
from monai_pipelines.data.cache import STORAGES, Cache, entries
from monai_pipelines.transforms import LoadCT
from tests.new_process import CONTEXT

Item = dict[str, Any]
RESULT = {"image": (torch.rand(1, 20, 20, 20), torch.eye(4)), "shortcut": {"mean": torch.tensor([0.5])}}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "image.nii").write_bytes(b"pixels")
    return str(tmp_path / "image.nii")


def test_what_is_written_is_read(cache: Cache, image: str) -> None:
    file = cache.file(image, "chain")
    assert (cache.read(file), cache.note(file)) == (None, None)
    cache.write(file, RESULT, "repaired: é")
    back = cache.read(file)
    assert torch.equal(back["image"][0], RESULT["image"][0])
    assert torch.equal(back["shortcut"]["mean"], RESULT["shortcut"]["mean"])
    assert cache.note(file) == "repaired: é"


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("low", [0.0, -1000.0])
def test_error_of_each_storage_is_as_stated(storage: Any, low: float, tmp_path: Path, image: str) -> None:
    cache = Cache(tmp_path / storage, storage)
    values, span = low + 1400 * torch.rand(1, 30, 30, 30), 1400
    file = cache.file(image)
    cache.write(file, {"image": (values, torch.eye(4)), "mask": (values > 0).byte()})
    back = cache.read(file)
    error = (back["image"][0] - values).abs()
    allowed = {
        "float32": torch.zeros(1),
        "float16": values.abs() * 2**-11,
        "int16": torch.tensor(span / 131_070),
        "uint8": torch.tensor(span / 510),
    }[storage]
    assert (error <= allowed * 1.001 + 1e-4 * (storage != "float32")).all()
    assert back["image"][0].dtype == torch.float32
    assert torch.equal(back["image"][1], torch.eye(4))
    assert torch.equal(back["mask"], (values > 0).byte())
    assert (
        file.stat().st_size
        < {"float32": 5, "float16": 3.3, "int16": 3.3, "uint8": 2.3}[storage] * values.numel() + 3000
    )


def test_a_constant_image_is_exact_in_any_storage(tmp_path: Path, image: str) -> None:
    for storage in STORAGES:
        cache = Cache(tmp_path / storage, storage)
        cache.write(cache.file(image), torch.full((5000,), 0.25))
        assert cache.read(cache.file(image)).unique().tolist() == [0.25]


@pytest.mark.parametrize("num", [40, pytest.param(500, marks=pytest.mark.nightly)])
def test_no_flipped_bit_is_served(cache: Cache, image: str, num: int) -> None:
    file = cache.file(image)
    cache.write(file, RESULT, "a note")
    whole, draw = file.read_bytes(), random.Random(0)
    for position in [*range(24), *(draw.randrange(24, len(whole)) for _ in range(num))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        assert cache.read(file) is None
    file.write_bytes(whole)
    assert cache.read(file) is not None


@pytest.mark.parametrize("size", [0, 5, 30, 1000, -1])
def test_cut_entries_are_seen_without_reading_them(cache: Cache, image: str, size: int) -> None:
    file = cache.file(image)
    cache.write(file, RESULT)
    file.write_bytes(file.read_bytes()[:size])
    assert (cache.note(file), cache.read(file)) == (None, None)


def test_key_covers_every_file_and_what_made_it(cache: Cache, tmp_path: Path) -> None:
    series = tmp_path / "series" / "below"
    series.mkdir(parents=True)
    (series / "1.dcm").write_bytes(b"one")
    header, data = tmp_path / "a.mhd", tmp_path / "a.raw"
    header.write_text("ElementDataFile = a.raw\n")
    data.write_bytes(b"voxels")
    listed = tmp_path / "b.nhdr"
    listed.write_text("NRRD0004\ndata file: LIST\nz1.raw\nz2.raw\n")
    (tmp_path / "z2.raw").write_bytes(b"2")
    changes = {series.parent: series / "1.dcm", header: data, listed: tmp_path / "z2.raw"}
    for image, file in changes.items():
        before = cache.file(str(image), "chain")
        assert cache.file(str(image), "chain") == before
        assert cache.file(str(image), "another") != before
        file.write_bytes(b"other")
        assert cache.file(str(image), "chain") != before
    assert Cache(cache.folder, "uint8").file(str(header)) != cache.file(str(header))


def test_full_disk_is_reported_with_what_is_needed(cache: Cache, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cache.file(image)
    cache.write(file, RESULT)
    assert cache.has_space(1)
    assert not cache.has_space(10**18)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left on .*cache: 0\.\d MB needed"):
        cache.write(cache.file(image, "again"), RESULT)
    assert list(entries(cache.folder)) == [file]


def test_space_is_checked_before_the_rest_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is not in the cache counts."""
    items = _volumes(tmp_path / "scans", 4)
    monkeypatch.setattr("monai_pipelines.data.cache.Cache.has_space", lambda cache, wanted: wanted == 0)
    with pytest.raises(OSError, match=r"no space left on .*cache: [\d,.]+ MB needed, [\d,.]+ MB free"):
        prepare(items, tmp_path / "cache")
    assert len(list(entries(tmp_path / "cache"))) == 1
    with monkeypatch.context() as roomy:
        roomy.setattr("monai_pipelines.data.cache.Cache.has_space", lambda *_: True)
        prepare(items, tmp_path / "cache")
    assert len(prepare(items, tmp_path / "cache")) == 4


def test_old_leftovers_are_removed(cache: Cache) -> None:
    old, young = (cache.folder / f"{'0' * 32}.entry.{digit * 32}.part" for digit in "ab")
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    Cache(cache.folder)
    assert list(entries(cache.folder)) == [young]


# ---- through a dataset


def _volumes(folder: Path, num: int) -> list[Item]:
    folder.mkdir()
    items = []
    for index in range(num):
        file = folder / f"{index}.mha"
        hu = np.random.default_rng(index).integers(-1000, 400, (12, 12, 12)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(hu), str(file))
        items.append({"image": str(file), "label": index % 2})
    return items


def _read(data: Item) -> Item:
    volume = LoadCT()(data["image"])
    return {"image": MetaTensor(volume.as_tensor().float(), affine=volume.affine)}


def chain() -> Chain:
    return Chain({"read": _read}, {"steps": {"read": "CT"}, "versions": {}})


def prepare(items: list[Item], cache: Path, **options: Any) -> PreparedDataset:
    return PreparedDataset(items, chain(), cache, outputs=["image"], **options)


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_damaged_entries_are_made_again_with_a_warning(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    items = _volumes(tmp_path / "scans", 3)
    before = [item["image"] for item in prepare(items, tmp_path / "cache")]
    for file in entries(tmp_path / "cache"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 64
        file.write_bytes(data if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        after = [item["image"] for item in prepare(items, tmp_path / "cache")]
    assert all(map(torch.equal, before, after))
    assert caplog.text.count("damaged, made again") == 3
    caplog.clear()
    assert len([*prepare(items, tmp_path / "cache")]) == 3
    assert not caplog.text


def test_a_replaced_data_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "v.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 9, 9), np.int16)), str(file))
    items = [{"image": str(file), "label": 0}]
    assert prepare(items, tmp_path / "cache")[0]["image"].unique().tolist() == [0]
    (tmp_path / "v.raw").write_bytes(np.full(9**3, 7, np.int16).tobytes())
    assert prepare(items, tmp_path / "cache")[0]["image"].unique().tolist() == [7]


def _fill(items: list[Item], cache: Path) -> None:
    prepare(items, cache, num_workers=4)


@pytest.mark.parametrize("num", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_while_it_is_filled(tmp_path: Path, num: int) -> None:
    """Every entry is right or made again, whenever the processes are killed."""
    items, draw = _volumes(tmp_path / "scans", 24), random.Random(0)
    wanted = [item["image"] for item in prepare(items, tmp_path / "whole")]
    for round_ in range(num):
        cache = tmp_path / f"cache{round_}"
        process = CONTEXT.Process(target=_fill_in_group, args=(items, cache))
        process.start()
        while not (cache.is_dir() and any(cache.iterdir())) and process.is_alive():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        found = [item["image"] for item in prepare(items, cache, num_workers=2)]
        assert all(map(torch.equal, found, wanted))


def _fill_in_group(items: list[Item], cache: Path) -> None:
    os.setsid()
    _fill(items, cache)


def test_many_processes_fill_one_cache(tmp_path: Path) -> None:
    items = _volumes(tmp_path / "scans", 12)
    processes = [CONTEXT.Process(target=_fill, args=(items, tmp_path / "cache")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(entries(tmp_path / "cache"))) == 12
    cache = Cache(tmp_path / "cache")
    assert all(cache.read(file) is not None for file in entries(tmp_path / "cache"))
