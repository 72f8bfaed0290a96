"""``sweep``: one training repeated with several seeds, and on all folds of a cross-validation."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_pipelines.atomic import atomic_write
from monai_pipelines.commands import SchedulerOption, ShardOption
from monai_pipelines.runs.folder import RunFolder

logger = logging.getLogger(__name__)

_LAST_LINES = 15  # of the log of a run that failed


def sweep(
    out: Annotated[Path, typer.Argument(help="Folder for seed-0, seed-1, ... and index.html.")],
    arguments: Annotated[list[str], typer.Argument(help="After --: those of python -m monai.bundle run.")],
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 3,
    folds: Annotated[
        int | None, typer.Option(min=3, help="Cross-validation by patient, with each seed: folders seed-0-fold-1, ...")
    ] = None,
    scheduler: SchedulerOption = None,
    shard: ShardOption = None,
) -> None:
    """Train and evaluate a bundle with several seeds, and folds, and show mean and spread in index.html.

    Runs that are already evaluated (report.html newer than best.pt, same ARGUMENTS) are skipped, interrupted ones are
    resumed, and those of other ARGUMENTS are replaced. Each run writes its output to log.txt in its folder. Folders
    that follow output_dir, such as cache_dir, are shared if named in ARGUMENTS. If a run fails, the others still run,
    and the exit status is 1.
    """
    from rich.progress import track

    from monai_pipelines.data.shards import share_of
    from monai_pipelines.report.index import write_index

    runs = [
        {"folder": str((out / _name(seed, fold)).resolve()), "seed": seed, "fold": fold and [fold, folds]}
        for seed in range(seeds)
        for fold in (range(1, folds + 1) if folds else [None])
    ]
    runs = share_of(runs, shard)
    bar = track(_outcomes(runs, arguments, scheduler), f"{len(runs)} runs", total=len(runs))
    failures = [text for text in bar if text is not None]
    for text in failures:
        typer.secho(text, fg="red", err=True)
    typer.echo(f"wrote {write_index(out)}")
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(runs)} runs failed, see above")


def _name(seed: int, fold: int | None) -> str:
    return f"seed-{seed}" if fold is None else f"seed-{seed}-fold-{fold}"


def _outcomes(runs: Sequence[Mapping[str, Any]], arguments: list[str], scheduler: str | None) -> Iterator[str | None]:
    """Why each run failed; None for those that did not."""
    train = _Training(arguments)
    if scheduler is None:
        yield from (train(run)[1] for run in runs)
        return
    from monai_pipelines.data.cluster import on_cluster

    with on_cluster(train, runs, scheduler) as compute:
        for _, (_, failure) in compute(range(len(runs))):
            yield failure


class _Training:
    """Trains and evaluates one run, in new processes.

    Args:
        arguments: of ``python -m monai.bundle run``.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

    def __call__(self, run: Mapping[str, Any]) -> tuple[None, str | None]:
        """None, and the end of the log if the run failed."""
        folder = Path(run["folder"])
        weights, report, used = (folder / name for name in ("best.pt", "report.html", "arguments.json"))
        arguments = [*self.arguments, "--split_fractions", str(run["fold"])] if run["fold"] else self.arguments
        same = not used.is_file() or json.loads(used.read_text("utf-8")) == arguments
        if same and weights.is_file() and report.is_file() and report.stat().st_mtime > weights.stat().st_mtime:
            logger.info("%s: already evaluated", folder.name)
            return None, None
        command = [sys.executable, "-m", "monai.bundle", "run", *arguments]
        command += ["--seed", str(run["seed"]), "--output_dir", str(folder)]
        if not same:  # else, should this training fail, they would pass for its results
            RunFolder(folder).clear(resumed=False)
        with atomic_write(used) as file:
            file.write_text(json.dumps(arguments), encoding="utf-8")
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            for part, options in (("training", ["--resume", "True"]), ("evaluation", ["--run_id", "evaluate"])):
                logger.info("%s: %s, see %s", folder.name, part, log.name)
                status = subprocess.run([*command, *options], stdout=log, stderr=subprocess.STDOUT).returncode
                if status:
                    lines = Path(log.name).read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
                    head = f"{folder.name}: {part} failed with status {status}; end of {log.name}:"
                    return None, "\n".join([head, *lines])
        return None, None
