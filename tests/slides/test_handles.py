"""Open files belong to one process, and few stay open."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide, Tiles, close_slides, open_slide
from monai_pipelines.slides.handles import HANDLES, MAX_OPEN, Handles
from tests.slides.slide_files import levels, write_lossless, write_slide


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    return open_slide(write_slide(tmp_path / "slide.tif", levels(300, 400, (1, 2))))


def _open_files(folder: Path) -> int:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.readlink(link).startswith(str(folder)) for link in links)


def _mean_of_tiles(tiles: Tiles) -> tuple[float, int]:
    num_open = len(HANDLES._open)
    return float(tiles.slide.read_tiles(tiles.coords, tiles.size).mean()), num_open


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_each_process_opens_for_itself(slide: Slide, method: str) -> None:
    tiles = Tiles(slide, np.array([[0, 0], [64, 128]]), slide.tile_size(64, 0.5))
    mean, _ = _mean_of_tiles(tiles)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_mean_of_tiles, [tiles] * 2, chunksize=1)[0] == (mean, 0)
    assert _mean_of_tiles(tiles)[0] == mean


def test_slides_are_small_and_pickled(slide: Slide) -> None:
    again = pickle.loads(pickle.dumps(slide))
    assert again == slide
    assert hash(again) == hash(slide)
    assert len(pickle.dumps(slide)) < 1000
    assert repr(slide).startswith("Slide(path=")


def test_path_survives_a_change_of_directory(slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = open_slide("slide.tif")
    assert relative == slide
    close_slides()
    monkeypatch.chdir("/")
    assert relative.read_region(0, 0, 9, 9).shape == (9, 9, 3)


def test_changed_file_raises(slide: Slide) -> None:
    before = slide.read_region(0, 0, 64, 64)
    other = levels(300, 400, (1, 2), seed=1)
    os.remove(slide.path)
    assert np.array_equal(slide.read_region(0, 0, 64, 64), before)  # still open
    close_slides()
    with pytest.raises(ScanError, match=r"slide\.tif: changed since it was opened, or is gone; open it again"):
        slide.read_region(0, 0, 64, 64)
    write_slide(Path(slide.path), other)
    again = open_slide(slide.path)
    assert again != slide
    assert not np.array_equal(again.read_region(0, 0, 64, 64), before)
    with pytest.raises(ScanError, match="changed since it was opened"):
        slide.read_region(0, 0, 64, 64)


def test_tiles(slide: Slide) -> None:
    size = slide.tile_size(64, 0.5)
    tiles = Tiles(slide, np.arange(20).reshape(10, 2), size)
    assert len(tiles) == 10
    assert tiles[2:4].coords.tolist() == [[4, 5], [6, 7]]
    assert tiles[np.array([9, 0])].coords.tolist() == [[18, 19], [0, 1]]
    assert len(tiles[tiles.coords[:, 0] > 9]) == 5
    assert pickle.loads(pickle.dumps(tiles)).slide == slide
    for coords in (np.zeros((2, 3), dtype=np.int64), np.zeros(2, dtype=np.int64), np.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"Tiles: coords must be \(N, 2\) int64, got shape"):
            Tiles(slide, coords, size)


def test_few_stay_open(tmp_path: Path) -> None:
    close_slides()
    for number in range(3 * MAX_OPEN):
        write = write_slide if number % 2 else write_lossless
        open_slide(write(tmp_path / f"{number}.tif", levels(70, 70), mpp=0.5)).read_region(0, 0, 50, 50)
        assert len(HANDLES._open) <= MAX_OPEN
    assert 0 < _open_files(tmp_path) <= 2 * MAX_OPEN  # ours, and OpenSlide's
    close_slides()
    assert _open_files(tmp_path) == 0


def test_oldest_is_dropped() -> None:
    opened: list[str] = []
    handles = Handles(max_open=2)

    def get(key: str) -> None:
        handles.get(key, lambda: opened.append(key) or key)

    for key in "abacab":
        get(key)
    assert "".join(opened) == "abcb"
    handles.drop("a")
    handles.drop("never opened")
    get("b")
    get("a")
    assert "".join(opened) == "abcba"


def test_failed_opening_leaves_nothing(tmp_path: Path) -> None:
    handles = Handles()
    with pytest.raises(ZeroDivisionError):
        handles.get("a", lambda: 1 / 0)
    assert handles.get("a", lambda: "opened") == "opened"
