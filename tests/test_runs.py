"""What a run needs before it starts, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines import load_chain, runs
from monai_pipelines.checkpoints import save_plain
from monai_pipelines.declared import declared_path
from monai_pipelines.errors import CohortError

BUNDLE = declared_path("bundles") / "lung_ct_classification"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "table.csv"
    file.write_text("image,label\nJane Doe,1\n")
    return file


def _record(output_dir: Path, table: Path, **changed: Any) -> dict[str, Any]:
    settings = {"chain": load_chain("lung_ct"), "augmentation": None, "seed": 3, "split_fractions": (0.6, 0.2, 0.2)}
    return runs.record_run(output_dir, BUNDLE, table=table, **{**settings, **changed})


def test_record_says_how_to_run_again(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "--config_file", "['configs/train.yaml']", "--dataset_dir", "a folder"]
    monkeypatch.setattr(sys, "orig_argv", ["/venv/bin/python", "-m", "monai.bundle", *arguments])
    chain, augmentation = load_chain("lung_ct", size=[8, 8, 8]), load_chain("augment_ct")
    run = _record(tmp_path / "run", table, chain=chain, augmentation=augmentation)
    assert run == json.loads((tmp_path / "run" / "run.json").read_text())
    assert shlex.split(run["command"]) == ["python", "-m", "monai.bundle", *arguments]
    assert run["table_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert (run["seed"], run["split_fractions"]) == (3, [0.6, 0.2, 0.2])
    assert (run["chain"], run["fingerprint"]) == (chain.describe(), chain.fingerprint())
    assert run["augmentation"] == augmentation.describe()
    assert {"python", "monai", "torch", "numpy", "pydicom"} <= set(run["versions"])
    assert "Doe" not in (tmp_path / "run" / "run.json").read_text()
    for file in (BUNDLE / "configs").iterdir():
        assert (tmp_path / "run" / "configs" / file.name).read_bytes() == file.read_bytes()


def test_record_without_augmentation(tmp_path: Path, table: Path) -> None:
    assert _record(tmp_path, table)["augmentation"] is None


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such table of scans; name its folder with --dataset_dir"):
        _record(tmp_path / "run", tmp_path / "table.csv")
    assert not (tmp_path / "run").exists()


def _card(folder: Path, table: Path, seed: int = 3, fractions: tuple[float, ...] = (0.6, 0.2, 0.2)) -> Path:
    file = folder / "best.pt"
    save_plain({"split": runs.split_card(seed, fractions, table)}, file)
    return file


def test_same_split_passes(tmp_path: Path, table: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs.check_split(_card(tmp_path, table), runs.split_card(3, [0.6, 0.2, 0.2], table))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("seed", "fractions", "told"),
    [
        (4, [0.6, 0.2, 0.2], r"\(seed 3 there, 4 here\)"),
        (3, [0.7, 0.1, 0.2], r"\(split_fractions \[0.6, 0.2, 0.2\] there, \[0.7, 0.1, 0.2\] here\)"),
        (0, [0.7, 0.1, 0.2], r"seed 3 there, 0 here; split_fractions"),
    ],
)
def test_another_split_is_refused(tmp_path: Path, table: Path, seed: int, fractions: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=f"trained on another split of the same table .*{told}"):
        runs.check_split(_card(tmp_path, table), runs.split_card(seed, fractions, table))


def test_another_table_is_a_warning(tmp_path: Path, table: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = _card(tmp_path, table)
    table.write_text("image,label\nother,0\n")
    runs.check_split(file, runs.split_card(3, [0.6, 0.2, 0.2], table))
    assert "was trained on another table" in caplog.text


@pytest.mark.parametrize(
    ("argument", "told"),
    [("--max_epoch", "did you mean 'max_epochs'?"), ("--network_deff::_target_", "did you mean 'network_def'?")],
)
def test_misspelt_override_is_told(monkeypatch: pytest.MonkeyPatch, argument: str, told: str) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for arguments in (["--max_epochs", "3", "--network_def::widen_factor=0.5", "--config_file", "x"], [argument, "3"]):
        monkeypatch.setattr(sys, "argv", ["site/monai/bundle/__main__.py", "run", *arguments])
        if argument in arguments:
            with pytest.raises(SystemExit, match=re.escape(told)):
                runs.start_run(BUNDLE)
        else:
            runs.start_run(BUNDLE)


def test_wrong_bundle_root(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run from the bundle's folder or add --bundle_root FOLDER"):
        runs.start_run(tmp_path)


def test_first_cause_is_told_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    runs.start_run(BUNDLE)
    cause = CohortError("table.csv", ["line 2: lost", "line 3: no label"])
    middle, outer = RuntimeError("failed to instantiate"), RuntimeError("failed again")
    middle.__cause__, outer.__cause__ = cause, middle
    sys.excepthook(RuntimeError, outer, None)
    assert capsys.readouterr().err.endswith(f"\nerror: {cause}\n")
    sys.excepthook(ValueError, ValueError("alone"), None)
    assert capsys.readouterr().err.count("alone") == 1
