"""``predict``: a run applied to images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_pipelines.commands import read_knobs

_MAX_SHOWN = 20


def predict(
    run: Annotated[str, typer.Argument(help="Folder of a run; of an ensemble several, joined by commas.")],
    source: Annotated[str, typer.Argument(help="Folder, CSV table with the column image, or one image.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and pictures.")] = Path("predictions"),
    knob: Annotated[
        list[str] | None, typer.Option(help="Of the bundle's inference, as threshold=0.3; repeatable.")
    ] = None,
) -> None:
    """Classify images, or find lesions in them, as the run was trained; exit status 1 if none could be used."""
    from rich.console import Console
    from rich.markup import escape

    from monai_pipelines.engines import load_run

    rows = load_run(run).predict(source, out, **read_knobs(knob))
    console = Console(soft_wrap=True, highlight=False)
    for row in rows[:_MAX_SHOWN]:
        console.print(escape(f"{row['image']}: {row.get('words') or 'skipped, ' + row['skipped']}"))
    if len(rows) > _MAX_SHOWN:
        console.print(f"and {len(rows) - _MAX_SHOWN} more")
    skipped = sum("skipped" in row for row in rows)
    console.print(escape(f"{len(rows) - skipped} predicted, {skipped} skipped: wrote {out / 'predictions.csv'}"))
