"""The command line of MONAI's bundles: read, checked, and errors printed last."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.errors import CohortError
from monai_pipelines.runs import start_run
from monai_pipelines.runs.command_line import bundle_arguments, read_command

AsBundle = Callable[..., None]


@pytest.mark.parametrize(
    ("arguments", "files", "overrides"),
    [
        (["--config_file", "a/train.yaml,a/b.yaml", "--x", "1"], ["a/train.yaml", "a/b.yaml"], {"x": 1}),
        (["--config_file=['a.yaml']", "--x=-1.5", "--y", "-2"], ["a.yaml"], {"x": -1.5, "y": -2}),
        (["--x", "--run_id", "run", "--meta_file", "m.json"], [], {"x": True}),
        (["--flag"], [], {"flag": True}),
        (["--args_file", "{args}", "--x", "2"], ["t.yaml"], {"x": 2, "y": "b"}),
    ],
)
def test_command_line_is_read_as_fire_does(
    arguments: list[str], files: list[str], overrides: dict[str, Any], tmp_path: Path
) -> None:
    args = tmp_path / "args.yaml"
    args.write_text("config_file: [t.yaml]\nx: 1\ny: b\n")
    assert read_command(["run", *(a.format(args=args) for a in arguments)]) == (files, overrides, None)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--max_epoch=3", "--max_epoch: nothing in the configs is called 'max_epoch' (did you mean 'max_epochs'?)"),
        ("--network_deff::_target_=3", "(did you mean 'network_def'?)"),
        ("--best_by=loss", "nothing in the configs is called 'best_by'"),
        ("--tracking=mlflow", "write --tracking "),
        ("--size=64", '--size 64: wanted a list, such as "[64,64,64]"'),
        ("--size=32;32;16", '--size 32;32;16: wanted a list, such as "[32,32,16]"'),
        ("--classes=healthy;ill", "--classes healthy;ill: wanted a list, such as \"['healthy','ill']\""),
        ("--size=[32;32;16]", '--size [32;32;16]: wanted a list, such as "[32,32,16]"'),
        ("--seed=abc", "--seed abc: wanted a number, such as 0"),
        ("--learning_rate=fast", "--learning_rate fast: wanted a number, such as "),
        ("--subgroups=sex", "--subgroups sex: wanted a list, such as \"['sex']\""),
    ],
)
def test_override_of_nothing_or_by_a_text_is_an_error(
    bundle: Path, as_bundle: AsBundle, argument: str, message: str
) -> None:
    good = ["--config_file", str(bundle / "configs" / "train.yaml"), "--max_epochs", "3", "--network_def::act=elu",
            "--resume", "False", "--run_id", "evaluate", "--tracking", "../mlflow.yaml"]  # fmt: skip
    as_bundle(*good)
    start_run(bundle)
    as_bundle(*good, argument)
    with pytest.raises(SystemExit, match=re.escape(message)):
        start_run(bundle)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--resume", "true"], ["--resume", "True"]),
        (["--patience", "null"], ["--patience", "$None"]),
        (["--patience=None"], ["--patience=$None"]),
        (["--clip_norm", "none"], ["--clip_norm", "$None"]),
        (["--cache_dir", "none"], ["--cache_dir", "$None"]),
        (["--threshold_by", "none"], ["--threshold_by", "$None"]),
        (["--resume=false"], ["--resume=False"]),
        (["--dataset_dir", "2024"], ["--dataset_dir", "'2024'"]),
        (["--output_dir=1"], ["--output_dir='1'"]),
        (["--classes", "[0,1]"], ["--classes", "['0', '1']"]),
    ],
)
def test_arguments_that_monai_would_read_otherwise_start_the_program_again(
    bundle: Path,
    as_bundle: AsBundle,
    given: list[str],
    meant: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []

    def execv(file: str, arguments: list[str]) -> None:
        started.append(arguments)
        as_bundle(*arguments[arguments.index("run") + 1 :])

    monkeypatch.setattr("os.execv", execv)
    config = str(bundle / "configs" / "train.yaml")
    unchanged = ["--max_epochs", "3", "--network_def::act=elu", "--classes", "[healthy,ill]", "--class_weights", "none"]
    as_bundle("--config_file", config, *unchanged)
    start_run(bundle)
    assert not started
    as_bundle("--config_file", config, *unchanged, *given)
    start_run(bundle)
    assert started[0][-len(given) :] == meant
    start_run(bundle)
    assert len(started) == 1


@pytest.mark.parametrize(
    ("names", "ordered", "message"),
    [
        (["demo", "train", "resnet34"], ["train", "demo", "resnet34"], "train.yaml undoes what comes before it"),
        (["demo"], ["train", "demo"], "demo.yaml: changes train.yaml or inference.yaml and does not run alone"),
    ],
)
def test_overlays_alone_or_first_are_an_error(bundle: Path, names: list[str], ordered: list[str], message: str) -> None:
    files, wanted = ([str(bundle / "configs" / f"{name}.yaml") for name in part] for part in (names, ordered))
    listed = ",".join(f"'{file}'" for file in wanted)
    with pytest.raises(SystemExit, match=re.escape(f'{message}; write --config_file "[{listed}]"')):
        bundle_arguments(["--bundle_root", str(bundle), "--config_file", str(files)])


def test_a_bundle_by_its_name_has_its_configs_found(bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("max_epochs: 3\n")
    arguments = ["--dataset_dir", "2024", "--bundle_root=lung_ct_classification", "--patience", "null"]
    found = bundle_arguments([*arguments, "--config_file", "configs/train.yaml,mine.yaml", "--resume", "true"])
    files = str([str(bundle / "configs" / "train.yaml"), "mine.yaml"])
    given = ["--dataset_dir", "'2024'", "--patience", "$None", "--resume", "True"]
    assert found == [*given, "--bundle_root", str(bundle), "--config_file", files]
    with pytest.raises(FileNotFoundError, match=r"no bundle 'lung'; there are .*lung_ct_classification"):
        bundle_arguments(["--bundle_root", "lung"])
    with pytest.raises(SystemExit, match=r"wanted --config_file configs/train\.yaml"):
        bundle_arguments(["--bundle_root", str(bundle)])


def test_wrong_bundle_root(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run from the bundle's folder or add --bundle_root FOLDER"):
        start_run(tmp_path)


def test_root_cause_is_printed_last(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_run(bundle)
    cause = CohortError("table.csv", ["line 2: lost", "line 3: no label"])
    middle, outer = RuntimeError("failed to instantiate"), RuntimeError("failed again")
    middle.__cause__, outer.__cause__ = cause, middle
    sys.excepthook(RuntimeError, outer, None)
    assert capsys.readouterr().err.endswith(f"\nerror: {cause}\n")
    sys.excepthook(ValueError, ValueError("alone"), None)
    assert capsys.readouterr().err.count("alone") == 1
    outer.__cause__ = KeyError("no column 'sex'")
    sys.excepthook(RuntimeError, outer, None)
    assert capsys.readouterr().err.endswith("\nerror: no column 'sex'\n")
