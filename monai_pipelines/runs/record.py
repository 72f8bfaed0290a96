"""What a run needs before it starts, and what it leaves so that it can be run again."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from fire.parser import DefaultParseValue  # type: ignore[import-untyped]
from monai.bundle import ConfigParser
from monai.bundle import run as monai_run

from monai_pipelines.chains import Chain, did_you_mean
from monai_pipelines.declared import declared_path, list_declared

logger = logging.getLogger(__name__)

_FLAGS = ("resume", "download")  # what reads them takes true and false as text, too
_TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")  # of MONAI's --tracking
_NO_SETTINGS = ("table", "checkpoint", "title", "unit", *_FLAGS)
_OF_THE_PLACE = ("checkpoint", "device", "num_workers", "on_error")
_ENTRY_POINTS = ("train.yaml", "evaluate.yaml", "inference.yaml")
_PACKAGES = (
    *("monai-pipelines", "monai", "torch", "pytorch-ignite"),
    *("numpy", "scipy", "scikit-learn", "SimpleITK", "pydicom", "nibabel"),
)


def start_run(bundle_root: str | PathLike[str]) -> None:
    """Check the command line, and have errors that the user can mend told on the last line, below the traceback.

    Raises:
        SystemExit: ``bundle_root`` is no bundle, or an override names nothing that the configs have.
    """
    if not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        found = f"{str(bundle_root)!r} ({Path(bundle_root).resolve()}) has no configs/metadata.json"
        raise SystemExit(f"bundle_root {found}: run from the bundle's folder or add --bundle_root FOLDER")
    sys.excepthook = _tell_cause_last
    if _by_monai():
        _check_overrides(Path(bundle_root) / "configs")


def record_run(
    output_dir: str | PathLike[str],
    bundle_root: str | PathLike[str],
    chain: Chain,
    augmentation: Chain | None,
    split: Mapping[str, Any],
    source: str | PathLike[str],
) -> dict[str, Any]:
    """Save what is needed to run again: ``output_dir/run.json`` and the bundle's configs in ``output_dir/configs``.

    Args:
        output_dir: folder of the run.
        bundle_root: the bundle.
        chain, augmentation: the fixed and the random chain; their descriptions are recorded.
        split: `split_card` of the data.
        source: where the data come from.

    Returns:
        the content of ``run.json``: ``command``, ``config_files`` (names in ``output_dir/configs``, in order) and
        ``overrides`` of it, ``settings`` (the numbers, names and switches on top of the configs as they were used, for
        tables of hyper-parameters), ``seed``, ``split_seed``, ``split_fractions``, ``data_sha256``, ``source``,
        ``fingerprint`` (of ``chain``), ``chain``, ``augmentation``, ``versions``.
    """
    files, overrides = _command_line(sys.argv[1:]) if _by_monai() else ([], {})
    settings = _settings({**ConfigParser.load_config_files(files), **overrides})
    run = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "config_files": [Path(file).name for file in files],
        "overrides": overrides,
        "settings": settings,
        **{name: value for name, value in split.items() if name != "seen"},
        "seed": settings.get("seed", split["seed"]),
        "split_seed": split["seed"],
        "source": str(source),
        "fingerprint": chain.fingerprint(),
        "chain": chain.describe(),
        "augmentation": augmentation.describe() if augmentation else None,
        "versions": {"python": platform.python_version(), **{p: v for p in _PACKAGES if (v := _version(p))}},
    }
    configs = Path(output_dir) / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    for file in (*(Path(bundle_root) / "configs").iterdir(), *_named_configs()):  # those named last: they were used
        if file.is_file():
            shutil.copyfile(file, configs / file.name)
    (Path(output_dir) / "run.json").write_text(json.dumps(run, indent=1))
    return run


def split_card(seed: int, split_fractions: Sequence[float], cohort: Any) -> dict[str, Any]:
    """What a split is made from and who has been seen in training, to be stored with the weights.

    Args:
        seed, split_fractions: of the split.
        cohort: with ``train`` and ``validation`` (datalists or datasets) and a ``digest``.

    Returns:
        ``seed``, ``split_fractions``, ``data_sha256``, and ``seen``: hashes of the names and patients of the training
        and validation data: who has a list of names can tell which are among them.
    """
    return {
        "seed": seed,
        "split_fractions": [float(f) for f in split_fractions],
        "data_sha256": cohort.digest,
        "seen": sorted(_hashes(cohort.train) | _hashes(cohort.validation)),
    }


def check_split(checkpoint: Mapping[str, Any], split: Mapping[str, Any], cohort: Any) -> None:
    """Check that nobody is tested on whom the training has seen.

    Args:
        checkpoint: of the run, as `monai_pipelines.runs.checkpoint.load_checkpoint` returns it.
        split: `split_card` of the evaluation.
        cohort: of the evaluation, with ``test``.

    Raises:
        ValueError: test images, or images of the same patients, were trained on or chose the epoch.
    """
    then = checkpoint["split"]
    if then is None:
        logger.warning("the checkpoint does not tell what it was trained on: make sure that no test patient was")
        return
    seen = _hashes(cohort.test).intersection(then["seen"])
    if seen:
        told = [f"{n} {then[n]} there, {split[n]} here" for n in ("seed", "split_fractions") if then[n] != split[n]]
        raise ValueError(
            f"{len(seen)} names or patients of the test data have been seen in training; evaluate with the data, seed, "
            f"split_fractions and patient_pattern of the training ({'; '.join(told) or 'the data differ'})"
        )


def inference_config(source: str | PathLike[str], **overrides: Any) -> ConfigParser:
    """The ``inference.yaml`` of a bundle, or of a run with the overlays and numbers that it was trained with.

    Of the overrides of a run's command those are taken that the config has, but no folders, and neither ``checkpoint``
    nor ``device``, ``num_workers`` and ``on_error``.

    Args:
        source: folder of a run (with ``run.json``), folder of a bundle, or name of one of this package's bundles.
        overrides: by id, in place of what the config and the run have.

    Returns:
        the config, nothing of it made yet; ``checkpoint`` of a run is its ``best.pt``.

    Raises:
        ValueError: neither run nor bundle, or a run that lacks one of its configs.

    Example:
        >>> config = inference_config("lung_ct_classification", size=[64, 64, 64])
        >>> config.get_parsed_content("chain").describe()["knobs"]["size"]
        [64, 64, 64]
    """
    folder, files, given = Path(source), ["inference.yaml"], dict[str, Any]()
    if (folder / "run.json").is_file():
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        named, given = run.get("config_files"), run.get("overrides")
        if named is None:  # a run of an earlier version
            named, given = _command_line(shlex.split(run["command"]))
        files += [name for name in (Path(file).name for file in named) if name not in _ENTRY_POINTS]
        overrides = {"checkpoint": str(folder / "best.pt"), **overrides}
    elif not (folder / "configs").is_dir():
        folder = declared_path("bundles") / folder
    paths = [folder / "configs" / name for name in files]
    if missing := [path.name for path in paths if not path.is_file()]:
        near = did_you_mean(str(source), list_declared("bundles"))
        raise ValueError(
            f"{source}: wanted the folder of a run or of a bundle, its configs/{missing[0]} is missing{near}"
        )
    config = ConfigParser()
    config.read_config(paths)
    known = {name for name in config.get() if not _is_place(name)}
    kept = {name: value for name, value in given.items() if _top(name) in known}
    config.update({"bundle_root": str(folder), **kept, **overrides})
    return config


def _hashes(part: Any) -> set[str]:
    """Of the name and the patient of each item of a datalist or dataset."""
    items = getattr(part, "data", part)
    names = {f"{key}:{item[key]}" for item in items for key in ("name", "patient") if key in item}
    return {hashlib.sha256(name.encode()).hexdigest()[:16] for name in names}


def _by_monai() -> bool:
    """Whether this program is ``python -m monai.bundle``."""
    return Path(sys.argv[0]).parent.name == "bundle"


def _top(name: str) -> str:
    """The top-level entry of an id: network_def of ``network_def::widen_factor``."""
    return re.split("::|#", name)[0]


def _is_place(name: str) -> bool:
    """Whether an entry of a config says where things are, or depends on the machine."""
    return name in _OF_THE_PLACE or name.endswith(("_dir", "_root"))


def _command_line(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Config files and overrides in the arguments of ``python -m monai.bundle run``, as `fire` reads them."""
    found: dict[str, Any] = {}
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.startswith("--"):
            name, given, value = argument[2:].partition("=")
            found[name] = DefaultParseValue(value if given else "True" if following.startswith("--") else following)
    if "args_file" in found:
        found = {**ConfigParser.load_config_files(found["args_file"]), **found}
    files = found.get("config_file") or []
    if isinstance(files, str):
        files = [files] if Path(files).is_file() else files.split(",")
    own = inspect.signature(monai_run).parameters
    return [*files], {name: value for name, value in found.items() if name not in own}


def _settings(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """The plain values on top of a config that are no places; lists as text."""
    settings = {}
    for name, value in config.items():
        if name != _top(name) or _is_place(name) or name in _NO_SETTINGS:
            continue
        parts = value if isinstance(value, list) else [value]
        if parts and all(isinstance(part, int | float | str) for part in parts):
            text = ", ".join(map(str, parts))
            if not (text.startswith(("$", "@", "%")) or "/" in text or "\\" in text):
                settings[name] = text if isinstance(value, list) else value
    return settings


def _named_configs() -> set[Path]:
    """The config files that the command line names."""
    return {Path(name) for text in sys.argv for name in re.findall(r"[^\s'\"\[\],=]+\.(?:ya?ml|json)", text)}


def _check_overrides(configs: Path) -> None:
    """End the program on an override of nothing: MONAI takes a misspelt one without a word."""
    known = {*inspect.signature(monai_run).parameters, *_TRACKING}
    for file in _named_configs() or configs.glob("*.yaml"):
        known |= {str(key).partition("::")[0] for key in ConfigParser.load_config_file(file)}
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if not argument.startswith("--"):
            continue
        name = _top(argument[2:].partition("=")[0])
        if name not in known:
            raise SystemExit(f"{argument}: nothing in the configs is called {name!r}{did_you_mean(name, known)}")
        value = argument.partition("=")[2] or following
        if value in ("true", "false") and name not in _FLAGS:
            raise SystemExit(f"{argument} {value}: this would be a text; write {value.capitalize()}")


def _tell_cause_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """MONAI wraps what a component raises; say the first cause once more, at the end."""
    sys.__excepthook__(kind, error, trace)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not error:
        sys.stderr.write(f"\nerror: {cause}\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # this package, run from a checkout without an install
        return None
