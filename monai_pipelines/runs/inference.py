"""The configs that apply and evaluate what a run has learned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_pipelines.chains import did_you_mean
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.runs.command_line import top
from monai_pipelines.runs.folder import RunFolder, is_place

_WEIGHTS = "backbone_weights"  # file of the tile network's
_REFERENCE = re.compile(r"@(\w+)")
_OF_INFERENCE = frozenset(
    ("threshold", "ensemble", "batch_size", "precision", "viewer_files", "handlers", "network")
    + ("model", "trained", "evaluator", "data", "initialize", "run")
)


def inference_config(source: str | PathLike[str], **overrides: Any) -> ConfigParser:
    """The ``inference.yaml`` of a bundle, or of a run with all that defines its model and the preparation of data.

    Args:
        source: folder of a run (with ``run.json``), folder of a bundle, or name of one of this package's bundles.
        overrides: by id, in place of what the config and the run have.

    Returns:
        the config, nothing of it instantiated; ``checkpoint`` of a run is its ``best.pt``.

    Raises:
        ValueError: neither run nor bundle, a run that lacks one of its configs, or an override that names nothing.

    Example:
        >>> config = inference_config("lung_ct_classification", size=[64, 64, 64])
        >>> config.get_parsed_content("chain").describe()["knobs"]["size"]
        [64, 64, 64]
    """
    folder = Path(source)
    is_run = RunFolder(folder).run is not None
    if not is_run and not (folder / "configs").is_dir():
        folder = declared_path("bundles") / folder
    config = _read(source, [folder / "configs" / "inference.yaml"])
    values = {**trained_values(folder, config.get()), "checkpoint": str(folder / "best.pt")} if is_run else {}
    config.update({"bundle_root": str(folder), **values})
    _override(config, overrides)
    _check_weights(config.get(), folder)
    return config


def training_config(run: str | PathLike[str], **overrides: Any) -> ConfigParser:
    """The config that a run was trained with: its files, then the overrides of its command.

    Args:
        run: folder with ``run.json``.
        overrides: by id, in place of what the run has.

    Raises:
        ValueError: no run, one that lacks one of its configs, or an override that names nothing.
    """
    folder = Path(run)
    record = RunFolder(folder).run
    if record is None:
        raise ValueError(f"{run}: no run: wanted the output_dir of a training, which has a run.json")
    config = _read(run, [folder / "configs" / name for name in record["config_files"] or ["train.yaml"]])
    config.update({**record["overrides"], "bundle_root": str(folder)})
    if isinstance(file := config.get(_WEIGHTS), str):
        config.update({_WEIGHTS: str(Path(record.get("folder", "."), file))})
    _override(config, overrides)
    return config


def trained_values(run: str | PathLike[str], inference: Mapping[str, Any]) -> dict[str, Any]:
    """What a config for inference takes from the training of a run: the model and the preparation of its data.

    That is the value in the training of every entry that the two share, and what these values refer to. Left alone are
    places, entries of the inference itself (`_OF_INFERENCE`), and ``network``, which has weights to start from in a
    training, unless an overlay changed it.

    Args:
        run: folder with ``run.json``.
        inference: the content of an ``inference.yaml``.

    Returns:
        values by top-level id.

    Raises:
        ValueError: as `training_config`.
    """
    trained = training_config(run).get()
    left_alone = _OF_INFERENCE - ({"network"} & _changed(Path(run)))
    values: dict[str, Any] = {}
    wanted = [name for name in trained if name in inference and not (is_place(name) or name in left_alone)]
    while wanted:
        values |= {name: trained[name] for name in wanted}
        named = dict.fromkeys(_REFERENCE.findall(json.dumps([values[name] for name in wanted], default=str)))
        wanted = [name for name in named if name in trained and name not in inference and name not in values]
    return {name: None if name == "imagenet" else value for name, value in values.items()}  # the run has weights


def values_beside(files: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`trained_values` for the config of a command whose checkpoint, or first of an ensemble, is of a run.

    What overlays name that the training did not have stays as they have it. Other configs get nothing.

    Args:
        files: config files of the command.
        overrides: of the command.
    """
    inference = ConfigParser.load_config_files(files)
    if "train" in inference or "checkpoint" not in inference:
        return {}
    config = ConfigParser({**inference})
    config.update(dict(overrides))
    several = config.get_parsed_content("ensemble") if "ensemble" in config else None
    named = several or config.get_parsed_content("checkpoint")
    first = Path(str(named.split(",")[0] if isinstance(named, str) else named[0]).strip())
    folder = first if first.is_dir() else first.parent
    if (record := RunFolder(folder).run) is None:
        return {}
    others = [file for file in files[1:] if Path(file).name not in record["config_files"]]
    stay = {top(name) for name in ConfigParser.load_config_files(others)}
    values = {name: value for name, value in trained_values(folder, inference).items() if name not in stay}
    _check_weights({name: value for name, value in values.items() if name not in overrides}, folder)
    return values


def _changed(run: Path) -> set[str]:
    """Top-level ids that the overlays and overrides of a training name."""
    record = RunFolder(run).run or {}
    overlays = [ConfigParser.load_config_file(str(run / "configs" / name)) for name in record["config_files"][1:]]
    return {top(name) for config in (*overlays, record["overrides"]) for name in config}


def _override(config: ConfigParser, overrides: Mapping[str, Any]) -> None:
    for name in map(top, overrides):
        if name not in config:
            raise ValueError(f"{name}: nothing in the configs is called {name!r}{did_you_mean(name, config.get())}")
    config.update(dict(overrides))


def _check_weights(values: Mapping[str, Any], run: Path) -> None:
    """Check that the tile network's weights that a training has named are still there."""
    file = values.get(_WEIGHTS)
    if isinstance(file, str) and not Path(file).is_file():
        raise ValueError(
            f"{run}: trained with {_WEIGHTS} {file}, which is not there: name the file with --{_WEIGHTS} FILE "
            f"(predict and evaluate: --knob {_WEIGHTS}=FILE)"
        )


def _read(source: str | PathLike[str], paths: list[Path]) -> ConfigParser:
    if missing := [path.name for path in paths if not path.is_file()]:
        near = did_you_mean(str(source), list_declared("bundles"))
        raise ValueError(
            f"{source}: wanted the folder of a run or of a bundle, its configs/{missing[0]} is missing{near}"
        )
    config = ConfigParser()
    config.read_config(paths)
    return config
