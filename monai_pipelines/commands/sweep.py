"""``sweep``: one training repeated with several seeds."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

logger = logging.getLogger(__name__)

_LAST_LINES = 15  # of the log of a seed that failed


def sweep(
    out: Annotated[Path, typer.Argument(help="Folder for seed-0, seed-1, ... and index.html.")],
    arguments: Annotated[list[str], typer.Argument(help="After --: those of python -m monai.bundle run.")],
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 3,
) -> None:
    """Train and evaluate a bundle with several seeds and show mean and spread in index.html.

    Seeds that are already evaluated (metrics.json newer than best.pt) are skipped, others are trained anew. Each run
    writes its output to log.txt in its folder. Folders that follow output_dir, such as cache_dir, are shared if named
    in ARGUMENTS.
    """
    from rich.progress import track

    from monai_pipelines.report.index import write_index

    for seed in track(range(seeds), f"{seeds} seed{'' if seeds == 1 else 's'}"):
        folder = out / f"seed-{seed}"
        weights, metrics = folder / "best.pt", folder / "metrics.json"
        if weights.is_file() and metrics.is_file() and metrics.stat().st_mtime > weights.stat().st_mtime:
            logger.info("seed %d: already evaluated", seed)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "monai.bundle", "run", *arguments]
        command += ["--seed", str(seed), "--output_dir", str(folder)]
        replaced = ["--overwrite", "True"] if (folder / "last.pt").is_file() else []
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            for part, options in (("training", replaced), ("evaluation", ["--run_id", "evaluate"])):
                logger.info("seed %d: %s, see %s", seed, part, log.name)
                status = subprocess.run([*command, *options], stdout=log, stderr=subprocess.STDOUT).returncode
                if status:
                    lines = Path(log.name).read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
                    message = f"seed {seed}: {part} failed with status {status}; end of {log.name}:"
                    raise RuntimeError("\n".join([message, *lines]))
    typer.echo(f"wrote {write_index(out)}")
