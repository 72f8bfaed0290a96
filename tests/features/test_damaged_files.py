"""Damaged files of features: made again, never read as something else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from monai_pipelines.errors import CohortError
from monai_pipelines.features import read_features
from tests.features.small_slides import NUM_TILES, datalist, extract, listed


def _without(name: str) -> Callable[[h5py.File], None]:
    return lambda opened: opened.__delitem__(name)


def _set_nan(opened: h5py.File) -> None:
    opened["features"][0, 0] = np.nan


def _replaced(name: str, values: Any) -> Callable[[h5py.File], None]:
    def edit(opened: h5py.File) -> None:
        del opened[name]
        opened[name] = values

    return edit


def _attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda opened: opened.attrs.__setitem__(name, value)


DAMAGES: dict[str, Callable[[h5py.File], None] | bytes | float] = {
    "empty": b"",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n",
    "cut": 0.5,
    "cut at the end": 0.999,
    "NaN": _set_nan,
    "no features": _without("features"),
    "no coords": _without("coords"),
    "no thumbnail": _without("thumbnail"),
    "features of one tile": _replaced("features", np.zeros(4, np.float32)),
    "features of another length": _replaced("features", np.zeros((NUM_TILES, 7), np.float32)),
    "features as text": _replaced("features", np.array([b"a"] * NUM_TILES)),
    "coords of other tiles": _replaced("coords", np.zeros((3, 2), np.int64)),
    "coords of NaN": _replaced("coords", np.full((NUM_TILES, 2), np.nan)),
    "mpp of text": _attribute("mpp", "fine"),
    "mpp of infinity": _attribute("slide_mpp", np.inf),
    "negative side": _attribute("tile_px", -32),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    items, folder = datalist(tmp_path / "slides", 1), tmp_path / "f"
    assert extract(items, folder) == ["done"]
    wanted, file = read_features(folder / "s0.h5"), folder / "s0.h5"
    _spoil_features(file, DAMAGES[damage])
    assert extract(items, folder) == ["done"]
    assert f"{file}: damaged, made again" in caplog.text
    assert np.array_equal(read_features(file).features, wanted.features)
    _spoil_features(file, DAMAGES[damage])
    Path(items[0]["image"]).unlink()
    assert extract(items, folder) == ["skipped"]
    reason = "s0.h5 is damaged, and the slide to make it again is missing; restore one of them"
    assert [row["reason"] for row in listed(folder)] == [reason]
    assert file.exists()


def _spoil_features(file: Path, damage: Callable[[h5py.File], None] | bytes | float) -> None:
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    elif isinstance(damage, float):
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * damage)])
    else:
        with h5py.File(file, "r+") as opened:
            damage(opened)


@pytest.mark.parametrize("num", [40, pytest.param(400, marks=pytest.mark.nightly)])
def test_flipped_bits_are_made_again_or_change_nothing(tmp_path: Path, num: int) -> None:
    """Features and coords have checksums; of the attributes only those that are checked."""
    draw, (item,) = np.random.default_rng(0), datalist(tmp_path / "slides", 1)
    folder, file = tmp_path / "f", tmp_path / "f" / "s0.h5"
    extract([item], folder)
    whole, wanted = file.read_bytes(), read_features(file)
    for _ in range(num):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 3):
            damaged[place] ^= 1 << draw.integers(8)
        file.write_bytes(damaged)
        with suppress(CohortError):  # another chain or backbone
            assert extract([item], folder)[0] in ("done", "kept")
            bag = read_features(file)
            assert np.array_equal(bag.features, wanted.features)
            assert np.array_equal(bag.coords, wanted.coords)
