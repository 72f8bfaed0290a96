from __future__ import annotations

import os
from pathlib import Path

import torch
import typer
from typer.testing import CliRunner

from monai_pipelines.commands.cache import cache as command
from monai_pipelines.data.cache import Cache

app = typer.Typer()
app.command()(command)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_entries_are_listed_checked_and_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    files = [cache.folder / f"{digit * 32}.entry" for digit in "ab"]
    for file in files:
        cache.write(file, torch.zeros(300_000))
    (cache.folder / "notes.txt").touch()
    assert run(str(cache.folder)) == (0, f"entries: 2, 2.3 MB: {cache.folder}\n")
    data = bytearray(files[0].read_bytes())
    data[5000] ^= 1
    files[0].write_bytes(data)
    assert run(str(cache.folder))[0] == 0
    assert run(str(cache.folder), "--check") == (
        1,
        f"entries: 2, 2.3 MB: {cache.folder}\ndamaged: {files[0].name}\n",
    )
    (cache.folder / f"{files[1].name}.{'c' * 32}.part").touch()
    assert "killed in the last 10 minutes: 1\n" in run(str(cache.folder))[1]
    left = cache.folder / f"{files[1].name}.{'d' * 32}.part"
    left.write_bytes(bytes(2**22))
    os.utime(left, (0, 0))
    assert run(str(cache.folder))[1].splitlines() == [
        f"entries: 2, 2.3 MB: {cache.folder}",
        "temporary files of running processes, or of those killed in the last 10 minutes: 1",
    ]
    assert run(str(cache.folder), "--clear") == (0, f"files removed: 3, 2.3 MB: {cache.folder}\n")
    assert [file.name for file in cache.folder.iterdir()] == ["notes.txt"]
