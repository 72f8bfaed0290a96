"""``report``: a run's page, or a page over many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path | None, typer.Argument(help="Folder of an evaluated run; its page is written anew.")] = None,
    all: Annotated[Path | None, typer.Option(help="Folder of runs: writes index.html, a table of them.")] = None,
) -> None:
    """Write a run's report.html again from its files, or an index page over many runs."""
    if (run is None) == (all is None):
        raise typer.BadParameter("name one run, or --all FOLDER of runs")
    if run is not None:
        from monai_pipelines.report import rebuild_report

        rebuild_report(run)
        typer.echo(f"wrote {run / 'report.html'}")
    elif all is not None:
        from monai_pipelines.report.index import write_index

        typer.echo(f"wrote {write_index(all)}")
