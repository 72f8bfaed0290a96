"""The bundles of the package: listed, found and copied."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monai_pipelines.declared import declared_path, list_declared

app = import_module("monai_pipelines.__main__").app

NAME = "chest_xray_classification"


def _output(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["bundles", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_they_are_listed_and_found() -> None:
    assert _output() == list_declared("bundles")
    assert _output(NAME) == [str(declared_path("bundles") / NAME)]


def test_a_copy_to_edit(tmp_path: Path) -> None:
    assert _output(NAME, "--copy", str(tmp_path / "mine")) == [f"wrote {tmp_path / 'mine'}"]
    for file in (declared_path("bundles") / NAME / "configs").iterdir():
        assert (tmp_path / "mine" / "configs" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(FileExistsError):
        CliRunner().invoke(app, ["bundles", NAME, "--copy", str(tmp_path)], catch_exceptions=False)


def test_there_is_no_such_bundle() -> None:
    with pytest.raises(FileNotFoundError, match=f"no bundle 'xray'; there are {NAME}, "):
        CliRunner().invoke(app, ["bundles", "xray"], catch_exceptions=False)
    assert CliRunner().invoke(app, ["bundles", "--copy", "x"]).exit_code == 2
