"""Claims of results, by real processes that are killed, stopped or elsewhere."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from monai_pipelines import claims
from monai_pipelines.claims import ClaimedError, DeadlyError, claimed, is_held, release, remove_old_claims, take
from tests.new_process import CONTEXT


def _hold(file: Path) -> None:
    take(file)
    (file.parent / "claimed").touch()
    time.sleep(60)


def _holder(file: Path) -> int:
    """A process that has claimed a result."""
    started = file.parent / "claimed"
    process = CONTEXT.Process(target=_hold, args=(file,), daemon=True)
    process.start()
    while not started.exists():
        time.sleep(0.01)
    started.unlink()
    return process.pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while claims._started(pid):
        time.sleep(0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.entry"


def _elsewhere(file: Path, number: int, age_s: float) -> Path:
    """A claim of a process on another machine."""
    claim = file.with_name(f"{file.name}.claim{number}")
    claim.write_text("another-machine boot pid:[1] 1:1")
    os.utime(claim, (time.time() - age_s,) * 2)
    return claim


def test_one_process_at_a_time(file: Path) -> None:
    pid = _holder(file)
    with pytest.raises(ClaimedError), claimed(file):
        pytest.fail("claimed twice")
    _kill(pid)
    with claimed(file) as claim:
        assert claim.name == "a.entry.claim2", "the second process"
        assert is_held(claim)
    assert not list(file.parent.iterdir())


def test_a_stopped_process_keeps_its_claim(file: Path) -> None:
    pid = _holder(file)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ClaimedError):
        take(file)
    _kill(pid)


def test_after_three_deaths_nobody_tries_until_it_is_released(file: Path) -> None:
    for _ in range(3):
        _kill(_holder(file))
    with pytest.raises(DeadlyError):
        take(file)
    release(file)
    assert take(file).name == "a.entry.claim1"


def test_a_claim_of_another_machine_is_abandoned_when_it_is_not_renewed(file: Path) -> None:
    lost = _elsewhere(file, 1, age_s=59)
    with pytest.raises(ClaimedError):
        take(file)
    os.utime(lost, (time.time() - 61,) * 2)
    claim = take(file)
    assert claim.name == "a.entry.claim2"
    os.utime(lost)
    with pytest.raises(ClaimedError):
        take(file, pid=1)


def test_age_is_by_the_clock_of_the_file_system(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _elsewhere(file, 1, age_s=0)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    with pytest.raises(ClaimedError):
        take(file)


def test_who_was_taken_for_dead_no_longer_holds_its_claim(file: Path) -> None:
    with claimed(file) as claim:
        later = _elsewhere(file, 2, age_s=0)
        assert not is_held(claim)
    assert later.exists()
    with claimed(file.with_name("b.entry")) as claim:
        release(file.with_name("b.entry"))
        assert not is_held(claim)


def test_a_claim_is_renewed_while_its_owner_works(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEWED_S", 0.01)
    with claimed(file) as claim:
        os.utime(claim, (0, 0))
        while claim.stat().st_mtime == 0:
            time.sleep(0.01)


def test_a_claim_is_gone_after_an_error(file: Path) -> None:
    with pytest.raises(OSError, match="full"), claimed(file):
        raise OSError("full")
    assert not list(file.parent.iterdir())


def test_an_owner_claims_again(file: Path) -> None:
    assert take(file) == take(file)


def test_an_empty_claim_counts_by_its_age(file: Path) -> None:
    claim = file.with_name("a.entry.claim1")
    claim.touch()
    with pytest.raises(ClaimedError):
        take(file)
    os.utime(claim, (0, 0))
    assert take(file).name == "a.entry.claim2"


def _count(folder: Path, name: str) -> None:
    for index in range(200):
        try:
            with claimed(folder / str(index)):
                if not (folder / f"{index}.made").exists():
                    (folder / f"{index}.{name}").touch()
                    (folder / f"{index}.made").touch()
        except ClaimedError:
            continue


def test_many_processes_make_each_result_once(tmp_path: Path) -> None:
    processes = [CONTEXT.Process(target=_count, args=(tmp_path, f"by{n}")) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(list(tmp_path.glob("*.made"))) == 200
    assert len(list(tmp_path.glob("*.by?"))) == 200
    assert len(list(tmp_path.iterdir())) == 400


def test_old_claims_are_removed(file: Path) -> None:
    _elsewhere(file, 1, age_s=25 * 3600)
    young = _elsewhere(file, 2, age_s=23 * 3600)
    remove_old_claims(file.parent)
    assert list(file.parent.iterdir()) == [young]
