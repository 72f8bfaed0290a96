from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from monai_pipelines.commands import sweep as sweeping
from monai_pipelines.commands.sweep import sweep
from tests.report.pages import page_of

ARGUMENTS = ["--config_file", "train.yaml", "--dataset_dir", "data"]


class Program:
    """Stands for `subprocess.run`: leaves what a training and an evaluation leave, or fails."""

    def __init__(self) -> None:
        self.started: list[tuple[str, bool]] = []
        self.overwritten: list[str] = []
        self.fails: str | None = None

    def __call__(self, command: list[str], stdout: Any, **_: Any) -> CompletedProcess[str]:
        assert command[:8] == [sys.executable, "-m", "monai.bundle", "run", *ARGUMENTS]
        options = dict(zip(command[8::2], command[9::2], strict=True))
        folder, evaluates = Path(options["--output_dir"]), options.get("--run_id") == "evaluate"
        assert folder.name == f"seed-{options['--seed']}"
        self.started.append((options["--seed"], evaluates))
        if "--overwrite" in options:
            assert not evaluates
            self.overwritten.append(options["--seed"])
        print("many words\n" * 100 + "out of luck", file=stdout, flush=True)
        if self.fails == options["--seed"]:
            return CompletedProcess(command, 3)
        seed = int(options["--seed"])
        run = {"seed": seed, "split_seed": seed, "settings": {"seed": seed}, "overrides": {}, "config_files": []}
        run |= {"command": "python", "data_sha256": "", "fingerprint": ""}
        if evaluates:
            metrics = {"metrics": {"roc_auc": seed / 10}, "intervals": {}, "shortcut": None, "threshold": None}
            metrics |= {"num_images": 4, "num_patients": None, "run": run}
            (folder / "metrics.json").write_text(json.dumps(metrics))
            (folder / "report.html").touch()
            os.utime(folder / "best.pt", (0, 0))
        else:
            (folder / "run.json").write_text(json.dumps(run))
            (folder / "best.pt").touch()
            (folder / "last.pt").touch()
        return CompletedProcess(command, 0)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    program = Program()
    monkeypatch.setattr(sweeping.subprocess, "run", program)
    return program


def test_every_seed_is_trained_and_evaluated_once(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, ARGUMENTS, seeds=3)
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'index.html'}"
    assert program.started == [(seed, evaluates) for seed in "012" for evaluates in (False, True)]
    page = page_of(tmp_path, "index.html")
    assert page.value("num_runs") == 3
    assert page.value("roc_auc", section="seeds") == pytest.approx(0.1)
    assert (tmp_path / "seed-1" / "log.txt").read_text().count("out of luck") == 2

    program.started.clear()
    (tmp_path / "seed-1" / "best.pt").touch()  # trained again
    os.utime(tmp_path / "seed-1" / "metrics.json", (0, 0))
    sweep(tmp_path, ARGUMENTS, seeds=4)
    assert program.started == [(seed, evaluates) for seed in "13" for evaluates in (False, True)]
    assert program.overwritten == ["1"]


def test_a_seed_that_fails_stops_with_the_end_of_its_log(program: Program, tmp_path: Path) -> None:
    program.fails = "1"
    with pytest.raises(
        RuntimeError, match=r"seed 1: training failed with status 3; end of .*seed-1.log\.txt:\n"
    ) as error:
        sweep(tmp_path, ARGUMENTS, seeds=3)
    assert str(error.value).endswith("\nout of luck")
    assert len(str(error.value).splitlines()) < 20
    assert program.started == [("0", False), ("0", True), ("1", False)]
