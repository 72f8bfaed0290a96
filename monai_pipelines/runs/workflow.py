"""The `monai.bundle.ConfigWorkflow` that runs a bundle, and what it was made from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

ENTRY_POINTS = ("train.yaml", "inference.yaml")


def this_workflow() -> ConfigWorkflow | None:
    """The workflow whose config calls; None outside one."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(workflow := frame.f_locals.get("self"), ConfigWorkflow):
            return workflow
        frame = frame.f_back
    return None


def configs_of(workflow: ConfigWorkflow) -> tuple[list[str], dict[str, Any]]:
    """Config files and overrides of a workflow that was made in Python.

    MONAI keeps neither. The files are ``train.yaml`` or ``inference.yaml`` of its folder and each overlay there that
    brings them nearer to its config; the overrides are what the config has beyond them.
    """
    config = {name: value for name, value in workflow.parser.get().items() if name != ConfigParser.meta_key}
    folder = workflow.config_root_path
    files = [folder / ("train.yaml" if "train" in config else "inference.yaml")]
    if not files[0].is_file():
        return [], {}
    overrides = _changes(files, config)
    for file in sorted({*folder.glob("*.yaml")} - {folder / name for name in ENTRY_POINTS}):
        rest = _changes([*files, file], config)
        if len(rest) < len(overrides):
            files, overrides = [*files, file], rest
    return [str(file) for file in files], overrides


def _changes(files: Sequence[Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config has beyond files, by id."""
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.resolve_macro_and_relative_ids()  # as the workflow has done
    return dict(_differing(parser.get(), config))


def _differing(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and old.keys() <= value.keys():
            yield from _differing(old, value, f"{prefix}{name}::")
        elif name not in before or value != old:
            yield prefix + name, value


def unused_names(workflow: ConfigWorkflow, names: Sequence[str]) -> list[str]:
    """Those of a config's entries that are plain values and that nothing in the config refers to."""
    config = workflow.parser.get()
    plain = [name for name in names if not re.search(r"\$|_target_", str(config.get(name)))]
    return [name for name in plain if not re.search(rf"@{re.escape(name)}\b", str(config))]
