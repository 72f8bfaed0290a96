"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monai_pipelines.atomic import atomic_write, remove_old_parts


def test_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.txt"
    for content in ("old", "new"):
        with atomic_write(str(file)) as part:
            part.write_text(content)
            assert not file.exists() or file.read_text() == "old"
        assert file.read_text() == content
        assert list(file.parent.iterdir()) == [file]
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), None])
def test_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException | None) -> None:
    """Without an error: nothing was written."""
    (tmp_path / "a.txt").write_text("old")

    def write() -> None:
        with atomic_write(tmp_path / "a.txt") as part:
            if error:
                part.write_text("half")
                raise error

    with pytest.raises(type(error) if error else FileNotFoundError):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_concurrent_writers(tmp_path: Path) -> None:
    def write(index: int) -> Path:
        with atomic_write(tmp_path / "a.txt") as part:
            part.write_text(str(index) * 10_000)
            time.sleep(0.01)
        return part

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(write, range(8)))) == 8
    assert [len(set(file.read_text())) for file in tmp_path.iterdir()] == [1]


def test_old_parts_are_removed(tmp_path: Path) -> None:
    hours = {f"a.pt.{'0' * 32}.part": 25, f"a.pt.{'1' * 32}.part": 23, "download.part": 99, "a.pt": 99}
    for name, age in hours.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age * 3600,) * 2)
    remove_old_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(list(hours)[1:]), "of a running process, another tool"
