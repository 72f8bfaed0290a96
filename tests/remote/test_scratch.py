"""The scratch folder: bounded, shared, and nothing in use leaves."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_pipelines.remote.scratch import FOLDER, SIZE, Held, Scratch, ScratchError, this_scratch


def filled(num_bytes: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(num_bytes))

    return fill


def hold(scratch: Scratch, key: str, num_bytes: int = 30) -> Held:
    return scratch.hold(key, num_bytes, filled(num_bytes))


def use(scratch: Scratch, key: str, num_bytes: int = 30) -> None:
    hold(scratch, key, num_bytes).release()
    os.utime(scratch.folder / f"{key}.lock", ns=(0, use.time))  # type: ignore[attr-defined]
    use.time += 10**9  # type: ignore[attr-defined]


use.time = 10**9  # type: ignore[attr-defined]


def kept(scratch: Scratch) -> set[str]:
    return {path.name for path in scratch.folder.iterdir() if path.is_dir()}


def test_the_least_recently_used_leave(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 100)
    for key in "abc":
        use(scratch, key)
    use(scratch, "a")
    use(scratch, "d")
    assert kept(scratch) == {"a", "c", "d"}
    assert {path.stem for path in scratch.folder.glob("*.lock")} == {"a", "c", "d"}


def test_what_is_used_stays(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 100)
    held = [hold(scratch, key) for key in "abc"]
    with pytest.raises(ScratchError, match=f"beside files in use.* set {SIZE} higher"):
        hold(scratch, "d")
    assert kept(scratch) == {"a", "b", "c"}
    held[1].release()
    hold(scratch, "d")
    assert kept(scratch) == {"a", "c", "d"}


def test_what_nobody_refers_to_is_released(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 50)
    hold(scratch, "a")
    gc.collect()
    hold(scratch, "b")
    assert kept(scratch) == {"b"}


def test_what_another_process_uses_stays_until_it_dies(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 50)
    hold(scratch, "a").release()
    code = (
        "import sys\nfrom pathlib import Path\nfrom monai_pipelines.remote.scratch import Scratch\n"
        f"held = Scratch(Path({str(scratch.folder)!r}), 50).hold('a', 30, None)\nprint(1, flush=True)\nsys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"1\n"
    with pytest.raises(ScratchError):
        hold(scratch, "b")
    other.kill()
    other.communicate()
    hold(scratch, "b")
    assert kept(scratch) == {"b"}


def test_a_forked_process_does_not_release_what_its_parent_uses(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 50)
    code = (
        "import os\nfrom pathlib import Path\nfrom tests.remote.test_scratch import Scratch, ScratchError, hold\n"
        f"scratch = Scratch(Path({str(scratch.folder)!r}), 50)\nheld = hold(scratch, 'a')\n"
        "if not (child := os.fork()):\n    del held\n    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "try:\n    hold(scratch, 'b')\nexcept ScratchError:\n    print('in use')"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stdout == "in use\n", result.stderr


def test_a_size_that_the_store_did_not_say_counts(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 100)
    for key in "abcd":
        scratch.hold(key, 0, filled(30)).release()
    assert len(kept(scratch)) == 3


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 100)

    def fails(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(60))
        raise RuntimeError

    for _ in range(3):
        with pytest.raises(RuntimeError):
            scratch.hold("a", 60, fails)
    assert kept(scratch) == set()
    hold(scratch, "a", 100)


def test_what_a_killed_process_left_is_made_again_and_counted_no_more(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch", 100)
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom monai_pipelines.remote.scratch import Scratch\n"
        "def fill(folder):\n    (folder / 'data').write_bytes(bytes(30))\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Scratch(Path({str(scratch.folder)!r}), 100).hold('a', 60, fill)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert kept(scratch) == {"a.part"}
    held = hold(scratch, "b", 90)
    assert kept(scratch) == {"b"}
    held.release()
    assert len((hold(scratch, "a", 60).folder / "data").read_bytes()) == 60


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "here"))
    monkeypatch.setenv(SIZE, "1.5")
    scratch = this_scratch()
    assert (scratch.folder, scratch.max_bytes) == (tmp_path / "here", 1_500_000_000)
    assert scratch.folder.stat().st_mode & 0o777 == 0o700
    for wrong in ("0", "many", "nan"):
        monkeypatch.setenv(SIZE, wrong)
        with pytest.raises(ValueError, match=f"{SIZE}: wanted a number of GB above 0, got '{wrong}'"):
            this_scratch()
