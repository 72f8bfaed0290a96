"""The config that applies what a run has learned."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_pipelines.chains import did_you_mean
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.runs.command_line import top
from monai_pipelines.runs.folder import RunFolder, is_place
from monai_pipelines.runs.workflow import ENTRY_POINTS


def inference_config(source: str | PathLike[str], **overrides: Any) -> ConfigParser:
    """The ``inference.yaml`` of a bundle, or of a run with the overlays and numbers that it was trained with.

    Of the overrides of a run's command those are taken that the config has, but no folders, and neither ``checkpoint``
    nor ``device``, ``num_workers`` and ``on_error``.

    Args:
        source: folder of a run (with ``run.json``), folder of a bundle, or name of one of this package's bundles.
        overrides: by id, in place of what the config and the run have.

    Returns:
        the config, nothing of it instantiated; ``checkpoint`` of a run is its ``best.pt``.

    Raises:
        ValueError: neither run nor bundle, or a run that lacks one of its configs.

    Example:
        >>> config = inference_config("lung_ct_classification", size=[64, 64, 64])
        >>> config.get_parsed_content("chain").describe()["knobs"]["size"]
        [64, 64, 64]
    """
    folder, files, trained_with = Path(source), ["inference.yaml"], dict[str, Any]()
    if (run := RunFolder(folder).run) is not None:
        trained_with = run["overrides"]
        files += [name for name in run["config_files"] if name not in ENTRY_POINTS]
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
    known = {name for name in config.get() if not is_place(name)}
    numbers = {name: value for name, value in trained_with.items() if top(name) in known}
    config.update({"bundle_root": str(folder), **numbers, **overrides})
    return config
