"""The record of a run: what it says while it runs, at its end, and after it was killed."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from monai_pipelines.data import progress
from monai_pipelines.data.progress import RunRecord, read_progress

NAMES = [f"scan-{number}" for number in range(6)]


def test_a_finished_run(tmp_path: Path) -> None:
    with RunRecord(tmp_path, NAMES, ["chain"]) as record:
        for name in NAMES[1:]:
            record.add(name, None)
        record.add(NAMES[1], None)
        record.add(NAMES[0], "broken")
    ((found,),) = read_progress(tmp_path)
    assert (found.state, found.planned, found.done, found.unusable, found.left) == (
        *("finished", 6, 5, {"scan-0": "broken"}, 0),
    )
    assert not found.is_alive
    text = record.file.read_text()
    assert "scan-0" in text
    assert "scan-1" not in text


def test_it_is_written_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_WRITTEN_S", 0.01)
    with RunRecord(tmp_path, NAMES, ["chain"]) as record:
        record.add(NAMES[0], None)
        while not record.file.exists() or not read_progress(tmp_path)[0][0].done:
            time.sleep(0.01)
        ((found,),) = read_progress(tmp_path)
    assert found.is_alive
    assert not replace(found, time=found.time - progress.SILENT_S - 1).is_alive


def test_a_run_that_an_error_stops(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), RunRecord(tmp_path, NAMES, ["chain"]):
        raise OSError("full")
    ((found,),) = read_progress(tmp_path)
    assert (found.state, found.left) == ("stopped", 6)


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    for _ in range(2):
        with RunRecord(tmp_path, NAMES, ["chain"]) as record:
            for name in NAMES:
                record.add(name, None)
        record.file.write_text(json.dumps({**json.loads(record.file.read_text()), "time": 1.0}))
    assert read_progress(tmp_path)[0][0].time == 1.0


def test_shards_of_a_job_belong_together(tmp_path: Path) -> None:
    for made_by, shards in (("another chain", [None]), ("chain", ["2/3", "1/3", "3/3"])):
        for shard in shards:
            with RunRecord(tmp_path, NAMES, [made_by], shard):
                pass
    latest, earlier = read_progress(tmp_path)
    assert [(found.shard, found.planned) for found in latest] == [("1/3", 2), ("2/3", 2), ("3/3", 2)]
    assert [(found.shard, found.planned) for found in earlier] == [(None, 6)]


def test_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    record = RunRecord(tmp_path, NAMES, ["chain"])
    for name in NAMES[:4]:
        record.add(name, None)
    now[0] = 8.0
    record._write()
    assert read_progress(tmp_path)[0][0].per_s == 0.5
