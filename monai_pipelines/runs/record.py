"""What a run leaves so that it can be run again."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_pipelines import processes
from monai_pipelines.chains import Chain
from monai_pipelines.data.split import check_trainable
from monai_pipelines.model import Model
from monai_pipelines.privacy import without_secrets
from monai_pipelines.runs.command_line import this_command, top
from monai_pipelines.runs.folder import is_place
from monai_pipelines.runs.workflow import ENTRY_POINTS
from monai_pipelines.versions import library_versions

_NO_SETTINGS = ("table", "title", "unit", "resume", "overwrite", "download")


def record_run(
    output_dir: str | PathLike[str],
    bundle_root: str | PathLike[str],
    model: Model,
    cohort: Any,
    augmentation: Chain | None,
    source: str | PathLike[str],
    subgroups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Save what is needed to run again: ``output_dir/run.json`` and the bundle's configs in ``output_dir/configs``.

    Args:
        output_dir: folder of the run.
        bundle_root: the bundle.
        model: what is trained.
        cohort: with ``test`` and ``split_card``.
        augmentation: the random chain.
        source: where the data come from.
        subgroups: of the evaluation, see `check_subgroups`.

    Returns:
        the content of ``run.json``: ``command``, ``config_files`` (names in ``output_dir/configs``, in order) and
        ``overrides`` of it, ``settings`` (the numbers, names and switches on top of the configs as they were used, and
        what else distinguishes runs: ``network``, ``num_parameters``, ``overlays``, ``chain``, ``data``, ``inferer``,
        ``num_processes``;
        for tables of hyper-parameters), ``seed``, ``split_seed``, ``split_fractions``, ``data_sha256``, ``source``,
        ``folder`` (the working directory), ``fingerprint`` (of the chain), ``chain``, ``augmentation``, ``versions``.

    Raises:
        TypeError, KeyError: see `check_subgroups`.
    """
    check_trainable(cohort)
    check_subgroups(subgroups or (), getattr(cohort.test, "data", cohort.test))
    command, split, chain = this_command(), cohort.split_card, model.chain
    files = [Path(file).name for file in command.config_files]
    settings = _settings({**ConfigParser.load_config_files(command.config_files), **command.overrides})
    settings |= {
        "network": type(model.network).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "overlays": ", ".join(Path(name).stem for name in files if name not in ENTRY_POINTS) or "none",
        "chain": f"{chain.describe()['name']} {chain.fingerprint()}",
        "data": split["data_sha256"][:16],
        "inferer": type(model.inferer).__name__,
        "num_processes": processes.num_processes(),
    }
    run = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "config_files": files,
        "overrides": command.overrides,
        "settings": settings,
        "seed": settings.get("seed", split["seed"]),
        "split_seed": split["seed"],
        "split_fractions": split["split_fractions"],
        "data_sha256": split["data_sha256"],
        "source": str(source),
        "folder": str(Path.cwd()),
        "fingerprint": chain.fingerprint(),
        "chain": chain.describe(),
        "augmentation": augmentation.describe() if augmentation else None,
        "versions": library_versions(),
    }
    if not processes.is_main():
        return run
    configs = Path(output_dir) / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    # those of the command last: they were used, also where one is named as a file of the bundle
    for file in (*(Path(bundle_root) / "configs").iterdir(), *map(Path, command.config_files)):
        if file.is_file():
            shutil.copyfile(file, configs / file.name)
    (Path(output_dir) / "run.json").write_text(without_secrets(json.dumps(run, indent=1, default=str)))
    return run


def check_subgroups(subgroups: Sequence[str], items: Sequence[Mapping[str, Any]]) -> None:
    """Check that the columns whose values are evaluated apart are there.

    Raises:
        TypeError: text instead of a list.
        KeyError: a column that none of the items has.
    """
    if isinstance(subgroups, str):
        raise TypeError(f"subgroups: wanted a list of columns, got {subgroups!r}; write \"['{subgroups}']\"")
    columns = {name for item in items for name in item}
    if missing := [column for column in subgroups if column not in columns]:
        raise KeyError(f"subgroups: no column {', '.join(missing)}; there are {', '.join(sorted(columns))}")


def _settings(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """The plain values on top of a config that are no places; lists as text."""
    settings = {}
    for name, value in config.items():
        if name != top(name) or is_place(name) or name in _NO_SETTINGS:
            continue
        parts = value if isinstance(value, list) else [value]
        if parts and all(isinstance(part, int | float | str) for part in parts):
            text = ", ".join(map(str, parts))
            if not (text.startswith(("$", "@", "%")) or "/" in text or "\\" in text):
                settings[name] = text if isinstance(value, list) else value
    return settings
