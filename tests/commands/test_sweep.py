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
        self.started: list[tuple[str, str]] = []
        self.splits: dict[str, str | None] = {}
        self.fails: str | None = None

    def __call__(self, command: list[str], stdout: Any, **_: Any) -> CompletedProcess[str]:
        assert command[:8] == [sys.executable, "-m", "monai.bundle", "run", *ARGUMENTS]
        options = dict(zip(command[8::2], command[9::2], strict=True))
        folder, evaluates = Path(options["--output_dir"]), options.get("--run_id") == "evaluate"
        self.started.append((folder.name, "evaluation" if evaluates else "training"))
        assert evaluates or options["--resume"] == "True"
        self.splits[folder.name] = options.get("--split_fractions")
        print("many words\n" * 100 + "out of luck", file=stdout, flush=True)
        if self.fails == folder.name:
            return CompletedProcess(command, 3)
        seed = int(options["--seed"])
        run = {"seed": seed, "split_seed": seed, "settings": {"seed": seed}, "overrides": {}, "config_files": []}
        run |= {"command": "python", "data_sha256": "", "fingerprint": ""}
        run |= {"split_fractions": json.loads(options.get("--split_fractions", "[0.7, 0.15, 0.15]"))}
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


def _both(*names: str) -> list[tuple[str, str]]:
    return [(name, part) for name in names for part in ("training", "evaluation")]


def test_every_seed_is_trained_and_evaluated_once(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, ARGUMENTS, seeds=3)
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'index.html'}"
    assert program.started == _both("seed-0", "seed-1", "seed-2")
    page = page_of(tmp_path, "index.html")
    assert page.value("num_runs") == 3
    assert page.value("roc_auc", section="seeds") == pytest.approx(0.1)
    assert (tmp_path / "seed-1" / "log.txt").read_text().count("out of luck") == 2

    program.started.clear()
    (tmp_path / "seed-1" / "best.pt").touch()  # interrupted before its evaluation
    os.utime(tmp_path / "seed-1" / "report.html", (0, 0))
    (tmp_path / "seed-2" / "report.html").unlink()  # interrupted in it, after metrics.json
    sweep(tmp_path, ARGUMENTS, seeds=4)
    assert program.started == _both("seed-1", "seed-2", "seed-3")


def test_other_arguments_train_again(program: Program, tmp_path: Path) -> None:
    sweep(tmp_path, ARGUMENTS, seeds=1)
    (tmp_path / "seed-0" / "arguments.json").write_text(json.dumps([*ARGUMENTS, "--max_epochs", "3"]))
    program.started.clear()
    sweep(tmp_path, ARGUMENTS, seeds=1)
    assert program.started == _both("seed-0")
    program.started.clear()
    (tmp_path / "seed-0" / "arguments.json").unlink()  # as an earlier version left it
    sweep(tmp_path, ARGUMENTS, seeds=1)
    assert program.started == []


def test_results_of_other_arguments_are_not_taken_for_those_of_a_run_that_failed(
    program: Program, tmp_path: Path
) -> None:
    sweep(tmp_path, ARGUMENTS, seeds=1)
    program.fails, more = "seed-0", [*ARGUMENTS, "--max_epochs", "3"]
    for _ in range(2):
        program.started.clear()
        with pytest.raises(RuntimeError, match="1 of 1 runs failed"):
            sweep(tmp_path, more, seeds=1)
        assert program.started == [("seed-0", "training")]
        assert not {"best.pt", "last.pt", "metrics.json"} & {*os.listdir(tmp_path / "seed-0")}


def test_folds_of_another_number_are_other_runs(program: Program, tmp_path: Path) -> None:
    sweep(tmp_path, ARGUMENTS, seeds=1, folds=5)
    program.started.clear()
    sweep(tmp_path, ARGUMENTS, seeds=1, folds=5)
    assert program.started == []
    sweep(tmp_path, ARGUMENTS, seeds=1, folds=3)
    assert program.started == _both("seed-0-fold-1", "seed-0-fold-2", "seed-0-fold-3")


def test_folds(program: Program, tmp_path: Path) -> None:
    sweep(tmp_path, ARGUMENTS, seeds=2, folds=3)
    assert program.splits == {f"seed-{s}-fold-{k}": f"[{k}, 3]" for s in range(2) for k in (1, 2, 3)}
    page = page_of(tmp_path, "index.html")
    assert page.value("num_runs") == 6
    assert "folds" in page.notes


def test_jobs_of_an_array_share_the_runs(program: Program, tmp_path: Path) -> None:
    for job in (1, 2):
        sweep(tmp_path, ARGUMENTS, seeds=3, shard=f"{job}/2")
    assert program.started == _both("seed-0", "seed-2", "seed-1")


def test_others_still_run_if_one_fails(program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.fails = "seed-1"
    with pytest.raises(RuntimeError, match="1 of 3 runs failed"):
        sweep(tmp_path, ARGUMENTS, seeds=3)
    assert program.started == [*_both("seed-0"), ("seed-1", "training"), *_both("seed-2")]
    lines = capsys.readouterr().err.strip().splitlines()
    first = next(k for k, line in enumerate(lines) if "seed-1: training failed with status 3; end of" in line)
    assert lines[first:][-1] == "out of luck"
    assert len(lines[first:]) < 20
    assert page_of(tmp_path, "index.html").value("num_runs") == 2
