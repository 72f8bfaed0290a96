"""Prepared scans: cached under everything that matters, never incomplete, never silently dropped."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.transforms import ScaleIntensityRange

from monai_pipelines import Chain, load_chain
from monai_pipelines.data import PreparedDataset
from monai_pipelines.data.cache import Cache, entries
from monai_pipelines.errors import CohortError

CHAIN = """
window_hu: [-1000, 400]
steps:
  load: {_target_: monai_pipelines.transforms.LoadCTd, keys: image}
  window: {_target_: monai_pipelines.transforms.WindowHUd, keys: image, window_hu: "@window_hu"}
"""

Item = dict[str, Any]


@pytest.fixture
def chain_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(CHAIN)
    return file


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Four NIfTI files of different content."""
    items: list[Item] = []
    for number in range(4):
        file = tmp_path / f"Jane_Doe_{number}.nii"
        hu = np.random.default_rng(number).integers(-1000, 400, (6, 5, 4)).astype(np.int16)
        nib.Nifti1Image(hu, np.diag([-1.0, -1, 2, 1])).to_filename(file)
        items.append({"image": str(file), "label": number % 2, "patient": f"Jane Doe {number}"})
    return items


def _dataset(items: list[Item], chain: Chain, cache_dir: Path | None = None, **options: Any) -> PreparedDataset:
    return PreparedDataset(items, chain, cache_dir, **{"outputs": ["image"], **options})


def _files(cache: Path) -> set[str]:
    return {file.name for file in cache.iterdir() if ".entry" in file.name}


def _same(a: Item, b: Item) -> bool:
    rest = {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
    image, other = a["image"], b["image"]
    assert isinstance(image, MetaTensor)
    assert isinstance(other, MetaTensor)
    return rest and torch.equal(image, other) and torch.equal(image.affine, other.affine)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_prepared_equals_fresh(
    items: list[Item], chain_file: Path, tmp_path: Path, num_workers: int, on_disk: bool
) -> None:
    chain = load_chain(chain_file)
    dataset = _dataset(items, chain, tmp_path / "cache" if on_disk else None, num_workers=num_workers)
    assert len(dataset) == 4
    assert dataset.data == items
    for item, prepared in zip(items, dataset, strict=True):
        assert _same(prepared, {**item, "image": chain(item["image"])})
    again = _dataset(items, chain, tmp_path / "cache" if on_disk else None)
    assert all(_same(a, b) for a, b in zip(dataset, again, strict=True))


def test_arrays_become_tensors() -> None:
    chain = Chain({"measure": _measure}, {"steps": {}, "versions": {}})
    (item,) = PreparedDataset([{"image": "x"}], chain, outputs=["shortcut"])
    assert torch.equal(item["shortcut"], torch.tensor([1.0, 2.0]))
    assert item["image"] == "x"


def _measure(data: Item) -> Item:
    return {**data, "shortcut": np.array([1, 2], np.float32), "mean": 1.5}


def test_a_second_run_prepares_nothing(
    items: list[Item], chain_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, cache = load_chain(chain_file), tmp_path / "cache"
    first = _dataset(items, chain, cache)
    monkeypatch.setattr(Chain, "__call__", _forbidden)
    assert all(_same(a, b) for a, b in zip(first, _dataset(items, chain, cache), strict=True))


def _forbidden(*args: object) -> None:
    raise AssertionError("prepared again")


def test_another_chain_or_scan_is_prepared_again(items: list[Item], chain_file: Path, tmp_path: Path) -> None:
    cache, scan = tmp_path / "cache", Path(items[0]["image"])

    def touch() -> None:
        os.utime(scan, ns=(1, scan.stat().st_mtime_ns + 1))

    def grow() -> None:
        stat = scan.stat()
        scan.write_bytes(scan.read_bytes() + b"\0" * 8)
        os.utime(scan, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    changes: list[tuple[Callable[[], None] | None, Item]] = [
        (None, {}),
        (None, {"window_hu": [-1000, 300]}),
        (None, {"steps": {"window": None}}),
        (touch, {}),
        (grow, {}),
    ]
    for number, (change, knobs) in enumerate(changes, start=1):
        if change:
            change()
        for _ in range(2):
            chain = load_chain(chain_file, **knobs)
            (prepared,) = _dataset(items[:1], chain, cache)
            assert torch.equal(prepared["image"], chain(items[0]["image"]))
            assert len(_files(cache)) == number


def test_other_outputs_are_prepared_again(items: list[Item], tmp_path: Path) -> None:
    chain = Chain({"measure": _measure}, {"steps": {}, "versions": {}})
    (few,) = _dataset(items[:1], chain, tmp_path / "cache", outputs=["shortcut"])
    (more,) = _dataset(items[:1], chain, tmp_path / "cache", outputs=["shortcut", "mean"])
    assert ("mean" in few, "mean" in more) == (False, True)


def test_a_series_is_prepared_again_when_any_of_its_files_changes(tmp_path: Path) -> None:
    chain = Chain({"count": _count_files}, {"steps": {}, "versions": {}})
    series = tmp_path / "series"
    series.mkdir()
    for number in range(1, 4):
        (series / f"{number}.dcm").touch()
        (item,) = _dataset([{"image": str(series)}], chain, tmp_path / "cache")
        assert item["image"] == number
    (series / "3.dcm").rename(series / "4.dcm")
    _dataset([{"image": str(series)}], chain, tmp_path / "cache")
    assert len(_files(tmp_path / "cache")) == 4


def _count_files(data: Item) -> Item:
    return {**data, "image": np.array(len(list(Path(data["image"]).iterdir())))}


def test_labels_never_come_from_the_cache(items: list[Item], chain_file: Path, tmp_path: Path) -> None:
    chain = load_chain(chain_file)
    _dataset(items, chain, tmp_path / "cache")
    corrected = [{**item, "label": 1 - item["label"], "site": "Basel"} for item in items]
    dataset = _dataset(corrected, chain, tmp_path / "cache")
    assert [item["label"] for item in dataset] == [1, 0, 1, 0]
    assert {item["site"] for item in dataset} == {"Basel"}
    assert len(_files(tmp_path / "cache")) == 4


def test_monais_persistent_dataset_serves_the_old_window(items: list[Item], tmp_path: Path) -> None:
    """The reason for `PreparedDataset`."""
    wide, narrow = ScaleIntensityRange(0, 100, 0, 1), ScaleIntensityRange(0, 10, 0, 1)
    old = PersistentDataset([5.0], wide, tmp_path)[0]
    assert PersistentDataset([5.0], narrow, tmp_path)[0] == old == 0.05
    assert narrow(5.0) == 0.5


def test_a_full_disk_is_not_a_bad_scan(
    items: list[Item], chain_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: object, file: Any) -> None:
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    chain, cache = load_chain(chain_file), tmp_path / "cache"
    with monkeypatch.context() as full:
        full.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space left on device"):
            _dataset(items, chain, cache, on_error="skip")
    assert _files(cache) == set()
    assert len(_dataset(items, chain, cache)) == 4


def test_a_process_killed_while_writing_leaves_no_usable_half(
    items: list[Item], chain_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves the temporary file."""

    def kill(descriptor: int) -> None:
        if ".entry." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise SystemExit

    chain, cache = load_chain(chain_file), tmp_path / "cache"
    with monkeypatch.context() as killed:
        killed.setattr(os, "fsync", kill)
        killed.setattr(Path, "unlink", lambda *args, **kwargs: None)
        with pytest.raises(SystemExit):
            _dataset(items[:1], chain, cache)
    assert {name.rpartition(".")[2] for name in _files(cache)} == {"part", "claim1"}
    (prepared,) = _dataset(items[:1], chain, cache)
    assert torch.equal(prepared["image"], chain(items[0]["image"]))


def test_the_cache_does_not_name_the_patient(items: list[Item], chain_file: Path, tmp_path: Path) -> None:
    _dataset(items, load_chain(chain_file), tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        assert b"Doe" not in file.read_bytes()
        assert "Doe" not in file.name
    for file in entries(tmp_path / "cache"):
        values, affine = Cache(tmp_path / "cache").read(file)["image"]
        assert (type(values), values.shape) == (torch.Tensor, (1, 6, 5, 4))
        assert affine.tolist() == np.diag([-1.0, -1, 2, 1]).tolist()


# ---- bad scans


@pytest.fixture
def half_bad(items: list[Item], tmp_path: Path) -> list[Item]:
    """The second scan is empty, the fourth is lost."""
    Path(items[1]["image"]).write_bytes(b"")
    items[3]["image"] = str(tmp_path / "lost")
    return items


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_raise_lists_all_bad_scans(
    half_bad: list[Item], chain_file: Path, tmp_path: Path, num_workers: int, on_disk: bool
) -> None:
    with pytest.raises(CohortError) as error:
        _dataset(half_bad, load_chain(chain_file), tmp_path / "cache" if on_disk else None, num_workers=num_workers)
    assert str(error.value).startswith("2 of 4 cannot be used: 2 problem(s)")
    empty, lost = error.value.problems
    assert empty.startswith(f"{half_bad[1]['image']}: unreadable NIfTI")
    assert lost.startswith(f"{half_bad[3]['image']}: no such file or folder")


@pytest.mark.parametrize("on_disk", [False, True])
def test_skip_keeps_the_good_scans_and_lists_the_others(
    half_bad: list[Item], chain_file: Path, tmp_path: Path, on_disk: bool
) -> None:
    chain = load_chain(chain_file)
    dataset = _dataset(half_bad, chain, tmp_path / "cache" if on_disk else None, on_error="skip", num_workers=2)
    assert dataset.data == [half_bad[0], half_bad[2]]
    assert torch.equal(dataset[1]["image"], chain(half_bad[2]["image"]))
    assert [{k: v for k, v in item.items() if k != "skipped"} for item in dataset.skipped] == half_bad[1::2]
    assert dataset.skipped[0]["skipped"].startswith("unreadable NIfTI")


def test_skipping_all_is_an_error(half_bad: list[Item], chain_file: Path) -> None:
    with pytest.raises(CohortError, match="2 of 2 cannot be used"):
        _dataset(half_bad[1::2], load_chain(chain_file), on_error="skip")


def test_whatever_a_step_raises_is_the_scans_reason(items: list[Item]) -> None:
    chain = Chain({"fails": _fail_for_second}, {"steps": {}, "versions": {}})
    dataset = _dataset(items, chain, on_error="skip", outputs=["image"])
    assert len(dataset) == 3
    assert [item["skipped"] for item in dataset.skipped] == ["ZeroDivisionError"]
    with pytest.raises(CohortError, match=r"1 of 4 cannot be used: 1 problem.*\n.*ZeroDivisionError$"):
        _dataset(items, chain, outputs=["image"])


def _fail_for_second(data: Item) -> Item:
    if data["image"].endswith("1.nii"):
        raise ZeroDivisionError("no reason")
    return {"image": torch.zeros(1, 2, 2, 2)}


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_crash_of_a_worker_is_the_scans_reason(items: list[Item], tmp_path: Path, on_error: Any) -> None:
    chain = Chain({"crashes": _crash_for_third}, {"steps": {}, "versions": {}})
    arguments: dict[str, Any] = {"num_workers": 2, "outputs": ["image"], "on_error": on_error}
    reason = "reading it crashes the process; convert or export it again"
    if on_error == "raise":
        with pytest.raises(CohortError, match=f"1 of 4 cannot be used: 1 problem.*\n.*2.nii: {reason}"):
            _dataset(items, chain, **arguments)
        return
    for cache in (None, tmp_path / "cache"):
        dataset = _dataset(items, chain, cache, **arguments)
        assert [item["skipped"] for item in dataset.skipped] == [reason]
        assert len(dataset) == 3


def _crash_for_third(data: Item) -> Item:
    if data["image"].endswith("2.nii"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"image": torch.zeros(1, 2, 2, 2)}


def test_wrong_arguments(items: list[Item], chain_file: Path) -> None:
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        _dataset(items, load_chain(chain_file), on_error="ignore")
    with pytest.raises(KeyError, match=r"the chain gives no \['lungs'\]; it gives \['image'\]"):
        _dataset(items, load_chain(chain_file), outputs=["image", "lungs"])


def test_many_scans_in_memory_keep_no_file_open(items: list[Item], chain_file: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        assert len(_dataset(items * 60, load_chain(chain_file), num_workers=2)) == 240
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
