"""What a run needs before it starts, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines import load_chain, runs
from monai_pipelines.checkpoints import load_checkpoint, save_plain
from monai_pipelines.data import Cohort, read_cohort
from monai_pipelines.declared import declared_path
from monai_pipelines.errors import CohortError

BUNDLE = declared_path("bundles") / "lung_ct_classification"


def _cohort(*labels: int) -> Cohort:
    items = [{"name": f"Jane Doe {k}", "label": label, "patient": f"Jane Doe {k}"} for k, label in enumerate(labels)]
    return Cohort(items[:-2], items[-2:-1], items[-1:], ("healthy", "disease"))


DIGEST = _cohort(0, 1, 0, 1).digest


def _record(output_dir: Path, **changed: Any) -> dict[str, Any]:
    settings = {"chain": load_chain("lung_ct"), "augmentation": None, "source": Path("a folder")}
    return runs.record_run(
        output_dir, BUNDLE, split=runs.split_card(3, (0.6, 0.2, 0.2), DIGEST), **{**settings, **changed}
    )


def test_record_says_how_to_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "--config_file", "['configs/train.yaml']", "--dataset_dir", "a folder"]
    monkeypatch.setattr(sys, "orig_argv", ["/venv/bin/python", "-m", "monai.bundle", *arguments])
    chain, augmentation = load_chain("lung_ct", size=[8, 8, 8]), load_chain("augment_ct")
    run = _record(tmp_path / "run", chain=chain, augmentation=augmentation)
    assert run == json.loads((tmp_path / "run" / "run.json").read_text())
    assert shlex.split(run["command"]) == ["python", "-m", "monai.bundle", *arguments]
    assert (run["seed"], run["split_fractions"], run["data_sha256"]) == (3, [0.6, 0.2, 0.2], DIGEST)
    assert run["source"] == "a folder"
    assert (run["chain"], run["fingerprint"]) == (chain.describe(), chain.fingerprint())
    assert run["augmentation"] == augmentation.describe()
    assert {"python", "monai", "torch", "numpy", "pydicom"} <= set(run["versions"])
    assert "Doe" not in (tmp_path / "run" / "run.json").read_text()
    for file in (BUNDLE / "configs").iterdir():
        assert (tmp_path / "run" / "configs" / file.name).read_bytes() == file.read_bytes()


def test_record_without_augmentation(tmp_path: Path) -> None:
    assert _record(tmp_path)["augmentation"] is None


def test_split_card() -> None:
    card = runs.split_card(3, (1, 0, 0), DIGEST)
    assert json.dumps(card) == json.dumps({"seed": 3, "split_fractions": [1.0, 0.0, 0.0], "data_sha256": DIGEST})


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """A checkpoint as it comes back from disk."""
    save_plain({"split": runs.split_card(3, (0.6, 0.2, 0.2), DIGEST)}, tmp_path / "best.pt")
    return load_checkpoint(tmp_path / "best.pt")


def test_same_split_passes(trained: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    runs.check_split(trained, runs.split_card(3, [0.6, 0.2, 0.2], _cohort(0, 1, 0, 1).digest))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("seed", "fractions", "told"),
    [
        (4, [0.6, 0.2, 0.2], r"\(seed 3 there, 4 here\)"),
        (3, [0.7, 0.1, 0.2], r"\(split_fractions \[0.6, 0.2, 0.2\] there, \[0.7, 0.1, 0.2\] here\)"),
        (0, [0.7, 0.1, 0.2], r"\(seed 3 there, 0 here; split_fractions .* here\)"),
    ],
)
def test_another_split_is_refused(trained: dict[str, Any], seed: int, fractions: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=f"trained on another split of the same data .*{told}; use the same numbers"):
        runs.check_split(trained, runs.split_card(seed, fractions, DIGEST))


@pytest.mark.parametrize("known", [True, False])
def test_other_data_are_a_warning(trained: dict[str, Any], caplog: pytest.LogCaptureFixture, known: bool) -> None:
    """Known to be other data, or from a checkpoint that does not tell."""
    other = _cohort(0, 1, 1, 1).digest
    runs.check_split(trained if known else {"split": None}, runs.split_card(4, [0.6, 0.2, 0.2], other))
    assert "was trained on other data: make sure that no test patient was trained on" in caplog.text


def test_a_table_drawn_with_another_seed_is_refused_another_table_is_not(
    trained: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def card(seed: int, split: str = "") -> dict[str, Any]:
        lines = [f"{k}.png,{k % 2},{split and ('train', 'test', split)[k // 2 % 3]}" for k in range(12)]
        (tmp_path / "table.csv").write_text("\n".join(["image,label,split", *lines]))
        return runs.split_card(seed, (0.6, 0.2, 0.2), read_cohort(tmp_path / "table.csv", seed=seed).digest)

    for k in range(12):
        (tmp_path / f"{k}.png").touch()
    trained["split"] = card(0)
    runs.check_split(trained, card(0))
    assert caplog.text == ""
    with pytest.raises(ValueError, match="seed 0 there, 1 here"):
        runs.check_split(trained, card(1))
    trained["split"] = card(0, "validation")
    runs.check_split(trained, card(0, "test"))
    assert "was trained on other data" in caplog.text


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
