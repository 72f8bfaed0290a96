"""The command line of ``python -m monai.bundle run``, read in one place."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue  # type: ignore[import-untyped]
from monai.bundle import ConfigParser
from monai.bundle import run as monai_run
from monai.utils import set_determinism

from monai_pipelines.chains import did_you_mean
from monai_pipelines.declared import declared_path

_TEXT = re.compile(r"[^$@%].*|\$@\w+ \+ '/.*")  # a default that is a text or a path
_MONAI = frozenset(inspect.signature(monai_run).parameters)
_TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")  # of MONAI's --tracking


class CommandLine(NamedTuple):
    """What a command names."""

    config_files: list[str]
    overrides: dict[str, Any]
    """By id, as `fire` reads them."""
    tracking: str | None
    """MONAI's --tracking."""


def read_command(arguments: Sequence[str]) -> CommandLine:
    """Config files and overrides in the arguments of ``python -m monai.bundle run``.

    Example:
        >>> read_command(["run", "--config_file", "['train.yaml','demo.yaml']", "--max_epochs=3"])
        CommandLine(config_files=['train.yaml', 'demo.yaml'], overrides={'max_epochs': 3}, tracking=None)
    """
    named: dict[str, Any] = {}
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.startswith("--"):
            name, has_value, value = argument[2:].partition("=")
            named[name] = DefaultParseValue(value if has_value else "True" if following.startswith("--") else following)
    if "args_file" in named:
        named = {**ConfigParser.load_config_files(named["args_file"]), **named}
    files = named.get("config_file") or []
    if isinstance(files, str):
        files = [files] if Path(files).is_file() else files.split(",")
    overrides = {name: value for name, value in named.items() if name not in _MONAI}
    return CommandLine([*files], overrides, named.get("tracking"))


def this_command() -> CommandLine:
    """Of this program; empty where it is not ``python -m monai.bundle``."""
    by_monai = Path(sys.argv[0]).parent.name == "bundle"
    return read_command(sys.argv[1:]) if by_monai else CommandLine([], {}, None)


def start_run(bundle_root: str | PathLike[str], seed: int | None = None) -> None:
    """Check the command line, print the root cause of an error last, below the traceback, and seed everything.

    Args:
        bundle_root: the bundle.
        seed: of Python, NumPy, torch and MONAI; None seeds nothing.

    Raises:
        SystemExit: ``bundle_root`` is no bundle, or an override names nothing that the configs have.
    """
    if not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        place = f"{str(bundle_root)!r} ({Path(bundle_root).resolve()}) has no configs/metadata.json"
        raise SystemExit(f"bundle_root {place}: run from the bundle's folder or add --bundle_root FOLDER")
    sys.excepthook = _print_cause_last
    command = this_command()
    if command.tracking == "mlflow":
        settings = declared_path("bundles") / "mlflow.yaml"
        raise SystemExit(f"--tracking mlflow: MONAI's settings do not fit these bundles; write --tracking {settings}")
    trained = _of_the_run(command)
    _start_again_as_meant(command, trained)
    known = {*_TRACKING, *map(top, ConfigParser.load_config_files(command.config_files)), *trained}
    for name in command.overrides:
        entry = top(name)
        if entry not in known:
            raise SystemExit(f"--{name}: nothing in the configs is called {entry!r}{did_you_mean(entry, known)}")
    if seed is not None:
        set_determinism(seed)


def _of_the_run(command: CommandLine) -> dict[str, Any]:
    """What an inference takes from the run of its checkpoint."""
    from monai_pipelines.runs.inference import values_beside  # it reads command lines, too

    return values_beside(command.config_files, command.overrides) if command.config_files else {}


def _start_again_as_meant(command: CommandLine, trained: Mapping[str, Any]) -> None:
    """Start this program again if MONAI reads arguments otherwise than they are meant, or not those of the run.

    To MONAI ``true`` is a text, ``--dataset_dir 2024`` a number, and so are the names in ``--classes [0,1]``.
    """
    defaults = ConfigParser.load_config_files(command.config_files)
    arguments = sys.argv[1:]
    for index, argument in enumerate(arguments):
        name, equals, text = argument.removeprefix("--").partition("=")
        at = index if equals else index + 1
        if argument.startswith("--") and at < len(arguments):
            text = text if equals else arguments[at]
            arguments[at] = argument[: len(argument) - len(text)] * bool(equals) + _meant(text, defaults.get(name))
    others = {name: value for name, value in trained.items() if (name, value) not in defaults.items()}
    arguments[1:1] = [f"--{name}={value!r}" for name, value in others.items() if name not in command.overrides]
    if arguments != sys.argv[1:]:
        program = sys.orig_argv[: 1 + len(sys.orig_argv) - len(sys.argv)]
        os.execv(sys.executable, [*program, *arguments])


def _meant(text: str, default: Any) -> str:
    """An argument so that `fire` reads what is meant beside the config's default."""
    if text in ("true", "false"):
        return text.capitalize()
    value = DefaultParseValue(text)
    if isinstance(value, (int, float)) and isinstance(default, str) and _TEXT.fullmatch(default):
        return repr(text)
    names = isinstance(default, list) and default and all(isinstance(name, str) for name in default)
    if names and isinstance(value, list) and any(isinstance(name, (int, float)) for name in value):
        return repr([str(name) for name in value])
    return text


def top(name: str) -> str:
    """The top-level entry of an id: network_def of ``network_def::widen_factor``."""
    return re.split("::|#", name)[0]


def root_cause(error: BaseException) -> BaseException:
    """What was raised first: MONAI wraps what a component raises."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _print_cause_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    if (cause := root_cause(error)) is not error:
        sys.stderr.write(f"\nerror: {cause}\n")
