"""The same run over several seeds: trained and evaluated for each, told together."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from rich.progress import track

from monai_pipelines.report.seeds_page import write_page

__all__ = ["repeat_run", "seed_commands", "summarize_seeds"]

logger = logging.getLogger(__name__)

_LAST_LINES = 15  # of a failed seed's output
_EXPLAINED = ("tile_auc", "relative_entropy")  # figures of `ExplainSlides`


def repeat_run(
    n_seeds: int,
    seed: int,
    output_dir: str | PathLike[str],
    bundle_root: str | PathLike[str],
    title: str = "Several seeds",
    unit: str = "image",
    shared: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and evaluate for several seeds by this program's own command line, and report mean and spread.

    For each of ``seed``, ``seed + 1``, ... the command that is running now is started twice, see
    :func:`seed_commands`: it leaves ``output_dir/seed-<seed>`` as any run does, and ``log.txt`` there. A seed that was
    evaluated before by the same command and the same configs is not run again. Then ``seeds.json``, ``seeds.csv`` and
    ``report.html``, which links to the report of each seed, are written to ``output_dir``.

    Args:
        n_seeds: number of seeds.
        seed: the first.
        output_dir: folder of all seeds.
        bundle_root: the bundle; its ``configs/evaluate.yaml`` evaluates.
        title: of the page.
        unit: what the page calls an input: image, scan or slide.
        shared: settings that would follow ``output_dir`` and are to be the same for all seeds, such as
            ``{"cache_dir": ...}``.

    Returns:
        the content of ``seeds.json``, see :func:`summarize_seeds`.

    Raises:
        ValueError: no seed is wanted, or the command line names no config that starts this.
        RuntimeError: a seed failed; with the last lines of its output.
    """
    if n_seeds < 1:
        raise ValueError(f"repeat_run: n_seeds must be at least 1, got {n_seeds}")
    root, seeds = Path(output_dir), range(seed, seed + n_seeds)
    for own in track(seeds, f"{n_seeds} seeds"):
        folder = root / f"seed-{own}"
        options = {**(shared or {}), "seed": own, "output_dir": folder}
        training, evaluation = seed_commands(
            sys.orig_argv[1:], Path(bundle_root) / "configs" / "evaluate.yaml", options
        )
        if _is_done(folder, training, evaluation):
            logger.info("seed %d: done before", own)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)  # of another command
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            for name, command in (("training", training), ("evaluation", evaluation)):
                logger.info("seed %d: %s, see %s", own, name, log.name)
                status = subprocess.run([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT).returncode
                if status:
                    output = Path(log.name).read_text("utf-8", errors="replace").splitlines()
                    told = "\n".join(output[-_LAST_LINES:])
                    raise RuntimeError(f"seed {own}: {name} ended with status {status}; last in {log.name}:\n{told}")
    result = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        **summarize_seeds({own: root / f"seed-{own}" for own in seeds}),
    }
    (root / "seeds.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    lines = [_flat(row) for row in result["seeds"]]
    with (root / "seeds.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    write_page(root / "report.html", title, unit, result)
    logger.info("%d seeds: %s", n_seeds, root / "report.html")
    return result


def seed_commands(
    arguments: Sequence[str], evaluate: str | PathLike[str], options: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """The arguments of Python that train, and those that evaluate, from the ones that started :func:`repeat_run`.

    Without ``--n_seeds`` and without the configs that name `repeat_run`; with other values of some options.

    Args:
        arguments: of Python, such as ``-m monai.bundle run --config_file ...``.
        evaluate: the config that evaluates, added as the last one for the evaluation.
        options: name -> value, instead of what ``arguments`` say; None is written as ``$None``.

    Raises:
        ValueError: no config of ``arguments`` names `repeat_run`: what is started would be the same again.

    Example:
        >>> from tempfile import mkdtemp
        >>> train, seeds = Path(mkdtemp()) / "train.yaml", Path(mkdtemp()) / "seeds.yaml"
        >>> train.touch()
        >>> _ = seeds.write_text("run: [{_target_: monai_pipelines.report.seeds.repeat_run}]")
        >>> started = ["-m", "monai.bundle", "run", "--n_seeds=5", "--config_file", f"{train},{seeds}", "--seed", "3"]
        >>> training, evaluation = seed_commands(started, "evaluate.yaml", {"seed": 4})
        >>> training == ["-m", "monai.bundle", "run", "--config_file", str([str(train)]), "--seed", "4"]
        True
        >>> evaluation[4] == str([str(train), "evaluate.yaml"])
        True
    """
    given = _option(arguments, "config_file")
    named = yaml.safe_load(given or "[]")
    if isinstance(named, str):
        named = [named] if Path(named).is_file() else named.split(",")
    configs = [name for name in named if "repeat_run" not in Path(name).read_text("utf-8")]
    if len(configs) == len(named):
        raise ValueError(
            "repeat_run: wanted --config_file with a config of its own that names repeat_run, such as "
            f"['configs/train.yaml','configs/seeds.yaml'], got {given or 'no --config_file'}"
        )
    kept = _without(arguments, {"config_file", "n_seeds", *options})
    last = [part for name, value in options.items() for part in (f"--{name}", "$None" if value is None else str(value))]
    training, evaluation = (
        [*kept, "--config_file", str(files), *last] for files in (configs, [*configs, str(evaluate)])
    )
    return training, evaluation


def summarize_seeds(folders: Mapping[int, Path]) -> dict[str, Any]:
    """Key figures of each seed, and their mean and spread.

    Args:
        folders: seed -> folder of its run, with ``metrics.json`` and ``predictions.csv``.

    Returns:
        ``seeds``: for each ``seed``, ``folder`` (name), ``num_scans``, ``num_patients``, ``metrics``, ``intervals``,
        ``threshold``, ``shortcut_name``, ``shortcut`` (its figures or None), ``explanations`` (``tile_auc`` and
        ``relative_entropy`` of the attention, where there is any); ``summary``: ``metrics``, ``shortcut``
        and ``explanations``, each figure -> ``mean``, ``sd`` (n - 1; None for one seed), ``lowest``, ``highest``,
        ``num_seeds`` (that have the figure); ``same_test``: whether all seeds were tested on the same.
    """
    seeds, tested = [], set()
    for seed, folder in folders.items():
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        kept = ("num_scans", "num_patients", "metrics", "intervals", "threshold", "shortcut_name", "shortcut")
        seeds.append(
            {
                "seed": seed,
                "folder": folder.name,
                **{name: metrics[name] for name in kept},
                "explanations": {
                    name: own[name] for own in metrics.get("explanations", ()) for name in _EXPLAINED if name in own
                },
            }
        )
        with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            tested.add(frozenset(row["image"] for row in csv.DictReader(file)))
    summary = {
        part: {
            name: _spread([(row[part] or {}).get(name) for row in seeds])
            for name in dict.fromkeys(name for row in seeds for name in row[part] or {})
        }
        for part in ("metrics", "shortcut", "explanations")
    }
    return {"seeds": seeds, "summary": summary, "same_test": len(tested) == 1}


def _is_done(folder: Path, training: Sequence[str], evaluation: Sequence[str]) -> bool:
    """Whether the folder holds what just these commands leave, with the configs as they are now."""
    if not (folder / "metrics.json").is_file():
        return False
    command = json.loads((folder / "metrics.json").read_text("utf-8"))["run"].get("command")
    configs = [Path(name) for name in yaml.safe_load(_option(evaluation, "config_file") or "[]")]
    copies = {copy.name: copy.read_bytes() for copy in (folder / "configs").glob("*")}
    return command == shlex.join(["python", *training]) and all(
        copies.get(config.name) == config.read_bytes() for config in configs
    )


def _option(arguments: Sequence[str], name: str) -> str | None:
    """The value of ``--name value`` or ``--name=value``, the last one."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == f"--{name}":
            value = following
        elif argument.startswith(f"--{name}="):
            value = argument.partition("=")[2]
    return value


def _without(arguments: Sequence[str], names: set[str]) -> list[str]:
    """The arguments but ``--name value`` and ``--name=value`` of some names."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in names:
            kept.append(argument)
        elif not equals:
            next(rest, None)
    return kept


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "lowest": min(known, default=None),
        "highest": max(known, default=None),
        "num_seeds": len(known),
    }


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A seed as a line of the table."""
    return {
        **{name: row[name] for name in ("seed", "num_scans", "num_patients", "threshold")},
        **row["metrics"],
        "shortcut": row["shortcut_name"],
        "shortcut_roc_auc": row["shortcut"] and row["shortcut"]["roc_auc"],
        **row["explanations"],
    }
