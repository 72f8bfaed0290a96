"""The command line of ``python -m monai.bundle run``, read in one place."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from fire.parser import DefaultParseValue  # type: ignore[import-untyped]
from monai.bundle import ConfigParser
from monai.bundle import run as monai_run
from monai.utils import set_determinism

from monai_pipelines import processes
from monai_pipelines.chains import did_you_mean
from monai_pipelines.declared import declared_path, find_bundle, in_installed_package
from monai_pipelines.errors import ChainMismatchError, CohortError, ScanError, error_text, root_cause
from monai_pipelines.runs.folder import check_no_run
from monai_pipelines.runs.workflow import configs_of, this_workflow, unused_names

_TEXT = re.compile(r"[^$@%].*|\$@\w+ \+ '/.*")  # a default that is a text or a path
_SWITCHES = {"true": "True", "false": "False", "null": "$None", "none": "$None"}  # as MONAI reads them
_NULL_TEXTS = ("explain", "threshold_by")  # texts for which none is null; of others, such as stain, it is a name
_MONAI = frozenset(inspect.signature(monai_run).parameters)
_TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")  # of MONAI's --tracking
_WITHOUT_TRACEBACK = (CohortError, ScanError, ChainMismatchError, FileNotFoundError, FileExistsError)


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
    """Of ``python -m monai.bundle``, else of the `monai.bundle.ConfigWorkflow` that calls; empty without either."""
    if _by_monai():
        return read_command(sys.argv[1:])
    workflow = this_workflow()
    return CommandLine(*configs_of(workflow), None) if workflow else CommandLine([], {}, None)


def _by_monai() -> bool:
    return Path(sys.argv[0]).parent.name == "bundle"


def start_run(
    bundle_root: str | PathLike[str], seed: int | None = None, output_dir: str | PathLike[str] | None = None
) -> None:
    """Check the configs and overrides, print the root cause of an error last, below the traceback, and seed everything.

    Args:
        bundle_root: the bundle.
        seed: of Python, NumPy, torch and MONAI; None seeds nothing.
        output_dir: where files will be written.

    Raises:
        FileExistsError: an inference into the folder of a training.
        SystemExit: ``bundle_root`` is no bundle, ``output_dir`` is in the installed package, a config comes after those
            that change it, an override names nothing that the configs have, or is no list where they have one.
    """
    if not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        place = f"{str(bundle_root)!r} ({Path(bundle_root).resolve()}) has no configs/metadata.json"
        raise SystemExit(f"bundle_root {place}: run from the bundle's folder or add --bundle_root FOLDER")
    if output_dir is not None and in_installed_package(output_dir):
        raise SystemExit(f"output_dir {output_dir} is in the installed package: name another with --output_dir FOLDER")
    sys.excepthook = _print_cause_last
    command = this_command()
    if command.tracking == "mlflow":
        settings = declared_path("bundles") / "mlflow.yaml"
        raise SystemExit(f"--tracking mlflow: MONAI's settings do not fit these bundles; write --tracking {settings}")
    configs, trained = ConfigParser.load_config_files(command.config_files), dict[str, Any]()
    if _by_monai():
        check_order(command.config_files)
        trained = _of_the_run(command)
        _start_again_as_meant(command, configs, trained)
    _check_overrides(command, configs, trained)
    if output_dir is not None and configs and "train" not in configs:
        check_no_run(output_dir)
    if seed is not None:
        rank = processes.started_rank()  # each process draws differently
        set_determinism(int(np.random.SeedSequence((seed, rank)).generate_state(1)[0]) if rank else seed)


def bundle_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments of ``python -m monai.bundle run`` for a bundle that may be elsewhere, with all its configs found.

    Args:
        arguments: the same, where ``--bundle_root`` may also be the name of a bundle of this package, and the paths of
            configs may be relative to the bundle.

    Raises:
        SystemExit: no config, or none that runs alone.
        FileNotFoundError: no such bundle.
    """
    command = read_command(arguments)
    root = Path(str(command.overrides.get("bundle_root", ".")))
    if not root.is_dir():
        root = find_bundle(str(root))
    files = [file if Path(file).is_file() else str(root / file) for file in command.config_files]
    if not files:
        raise SystemExit("wanted --config_file configs/train.yaml or --config_file configs/inference.yaml")
    check_order(files)
    rest, skip = list[str](), False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        replaced = name in ("--bundle_root", "--config_file")
        if not (replaced or skip):
            rest.append(argument)
        skip = replaced and not equals
    meant = as_meant(rest, ConfigParser.load_config_files(files))
    return [*meant, "--bundle_root", str(root), "--config_file", str(files)]


def check_order(config_files: Sequence[str]) -> None:
    """Check that overlays come after the config that they change.

    Raises:
        SystemExit: overlays alone, or before it.
    """
    whole = [file for file in config_files if "initialize" in ConfigParser.load_config_file(file)]
    if config_files and not whole:
        names = ", ".join(config_files)
        raise SystemExit(
            f"{names}: changes train.yaml or inference.yaml and does not run alone; write --config_file "
            f"\"['{Path(config_files[0]).with_name('train.yaml').as_posix()}','{config_files[0]}']\""
        )
    if config_files and config_files[0] not in whole:
        ordered = sorted(config_files, key=lambda file: file not in whole)
        listed = ",".join(f"'{file}'" for file in ordered)
        raise SystemExit(f'{whole[0]} undoes what comes before it; write --config_file "[{listed}]"')


def _check_overrides(command: CommandLine, configs: Mapping[str, Any], trained: Iterable[str]) -> None:
    known = {*_TRACKING, *map(top, configs), *trained}
    workflow = this_workflow()
    wrong = [name for name in command.overrides if top(name) not in known]
    if workflow and not _by_monai():  # its config has the entries of overlays from elsewhere, too
        wrong = unused_names(workflow, wrong) if configs else []
    for name in wrong:
        raise SystemExit(f"--{name}: nothing in the configs is called {top(name)!r}{did_you_mean(top(name), known)}")
    for name, value in command.overrides.items():
        default = configs.get(name)
        if isinstance(default, list) and isinstance(value, int | float | str) and not str(value).startswith(("$", "@")):
            parts = [part.strip() for part in re.split(r"[;,\s]+", str(value).strip("[]")) if part]
            numbers = not isinstance(value, str) or (bool(default) and not isinstance(default[0], str))
            parts = parts * len(default) if numbers and len(parts) == 1 else parts
            listed = ",".join(parts if numbers else map(repr, parts))
            raise SystemExit(f'--{name} {value}: wanted a list, such as "[{listed}]"')
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        text = value if isinstance(value, str) and not value.startswith(("$", "@", "%")) else ""
        if is_number and text and text.lower() not in _SWITCHES:
            raise SystemExit(f"--{name} {value}: wanted a number, such as {default}")


def _of_the_run(command: CommandLine) -> dict[str, Any]:
    """What an inference takes from the run of its checkpoint."""
    from monai_pipelines.runs.inference import values_beside  # it reads command lines, too

    return values_beside(command.config_files, command.overrides) if command.config_files else {}


def _start_again_as_meant(command: CommandLine, defaults: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    """Start this program again if MONAI reads arguments otherwise than they are meant, or not those of the run.

    To MONAI ``true`` and ``null`` are texts, ``--dataset_dir 2024`` is a number, and so are the names in
    ``--classes [0,1]``; ``None`` leaves the config's value as it is.
    """
    arguments = as_meant(sys.argv[1:], defaults)
    others = {name: value for name, value in trained.items() if (name, value) not in defaults.items()}
    shown = {name: "$None" if value is None else repr(value) for name, value in others.items()}
    arguments[1:1] = [f"--{name}={value}" for name, value in shown.items() if name not in command.overrides]
    if arguments != sys.argv[1:]:
        interpreter = sys.orig_argv[: sys.orig_argv.index("-m")]
        os.execv(sys.executable, [*interpreter, "-m", "monai.bundle", *arguments])


def as_meant(arguments: Sequence[str], defaults: Mapping[str, Any]) -> list[str]:
    """Arguments of ``python -m monai.bundle run`` so that `fire` reads what is meant beside the config's defaults."""
    meant = [*arguments]
    for index, argument in enumerate(arguments):
        name, equals, text = argument.removeprefix("--").partition("=")
        at = index if equals else index + 1
        if argument.startswith("--") and at < len(arguments):
            text = text if equals else arguments[at]
            meant[at] = argument[: len(argument) - len(text)] * bool(equals) + _meant(name, text, defaults.get(name))
    return meant


def _meant(name: str, text: str, default: Any) -> str:
    is_text = isinstance(default, str) and bool(_TEXT.fullmatch(default))
    has_names = is_text and not default.startswith("$") and name not in _NULL_TEXTS
    if text.lower() in _SWITCHES and not (text == "none" and has_names):
        return _SWITCHES[text.lower()]
    value = DefaultParseValue(text)
    if isinstance(value, (int, float)) and is_text:
        return repr(text)
    names = isinstance(default, list) and default and all(isinstance(name, str) for name in default)
    if names and isinstance(value, list) and any(isinstance(name, (int, float)) for name in value):
        return repr([str(name) for name in value])
    return text


def top(name: str) -> str:
    """The top-level entry of an id: network_def of ``network_def::widen_factor``."""
    return re.split("::|#", name)[0]


def _print_cause_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = root_cause(error)
    if not isinstance(cause, _WITHOUT_TRACEBACK):
        sys.__excepthook__(kind, error, trace)
    if cause is not error or isinstance(cause, _WITHOUT_TRACEBACK):
        sys.stderr.write(f"\nerror: {error_text(cause)}\n")
