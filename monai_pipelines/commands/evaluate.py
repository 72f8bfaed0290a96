"""``evaluate``: a run on labeled data from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from monai_pipelines.commands import read_knobs


def evaluate(
    run: Annotated[str, typer.Argument(help="Folder of a run; of an ensemble several, joined by commas.")],
    data: Annotated[str, typer.Argument(help="Labeled data as for the training; all of them are the test.")],
    out: Annotated[Path, typer.Option(help="Folder for the report, metrics and predictions.")] = Path("evaluation"),
    map: Annotated[
        str | None, typer.Option(help="Classes by the names in DATA: PNEUMONIA=disease,NORMAL=healthy.")
    ] = None,
    subgroups: Annotated[str | None, typer.Option(help="Columns of the table: sex,site.")] = None,
    knob: Annotated[
        list[str] | None, typer.Option(help="Of the bundle's training, as threshold=0.3; repeatable.")
    ] = None,
) -> None:
    """Evaluate a run on an external test set, at its threshold and temperature; the training data are not needed."""
    from monai_pipelines.engines import load_run

    pairs = [pair.partition("=") for pair in re.split("[,;]", map)] if map else []
    if wrong := ["".join(pair) for pair in pairs if not (pair[0].strip() and pair[2].strip())]:
        raise typer.BadParameter(f"--map wants THEIRS=YOURS,..., got {', '.join(wrong)}")
    rename = {theirs.strip(): yours.strip() for theirs, _, yours in pairs}
    columns = [column.strip() for column in subgroups.split(",")] if subgroups else []
    load_run(run).evaluate(data, out, rename=rename, subgroups=columns, **read_knobs(knob))
    typer.echo(f"wrote {out}: report.html, metrics.json, predictions.csv")
