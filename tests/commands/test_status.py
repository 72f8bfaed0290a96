from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from monai_pipelines.commands.status import status
from monai_pipelines.data.progress import RunRecord

app = typer.Typer()
app.command()(status)
NAMES = [f"scan-{number}" for number in range(6)]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_shards_together_and_each(tmp_path: Path) -> None:
    with RunRecord(tmp_path, NAMES, ["chain"], "1/3") as record:
        record.add("scan-0", None)
        record.add("scan-3", "broken")
    with pytest.raises(OSError, match="full"), RunRecord(tmp_path, NAMES, ["chain"], "2/3"):
        raise OSError("full")
    lines = run(tmp_path).splitlines()
    assert lines == [
        "4 planned: 1 done, 1 unusable, 2 left",
        "shard 1/3: 2 of 2, finished",
        "shard 2/3: 0 of 2, stopped by an error; the same command goes on from there",
        "1 of 3 shards have not started",
        "cannot be used: scan-3: broken",
    ]


def test_rate_and_time_left(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, NAMES * 100, ["chain"])
    record.add("scan-0", None)
    record._write()
    text = record.file.read_text()
    record.file.write_text(re.sub(r'"per_s": [\d.]+', '"per_s": 0.01', text))
    assert "1 of 6, 0.01 per s, 8.3 min left" in run(tmp_path)
    record.file.write_text(re.sub(r'"time": [\d.]+', '"time": 5.0', text))
    assert "no longer running" in run(tmp_path)


def test_earlier_jobs(tmp_path: Path) -> None:
    for made_by in ("chain", "another"):
        with RunRecord(tmp_path, NAMES, [made_by]):
            pass
    assert run(tmp_path).count("planned") == 1
    assert run(tmp_path, "--all").count("planned") == 2


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no record of a run"):
        run(tmp_path)
