"""``compare``: two evaluated runs on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of an evaluated run.")],
    run_b: Annotated[Path, typer.Argument(help="Another, evaluated on the same images.")],
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.html and comparison.json.")] = None,
) -> None:
    """Compare two models on the same images: paired bootstrap of patients, DeLong's test."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from monai_pipelines.report.comparison import (
        DECIDE_FIRST,
        compare_runs,
        compared_metrics,
        format_interval,
        format_p,
        rules_differ,
        verdict,
    )

    result = compare_runs(run_a, run_b, out)
    console, unit = Console(), result["unit"]
    for key, run in result["runs"].items():
        only = f", {run['num_only']} of them not in the other run and excluded" if run["num_only"] else ""
        text = f"{key.upper()}: {escape(run['folder'])}: {run['num_images']} {unit}s{only}"
        console.print(text, highlight=False, soft_wrap=True)
    headers = ("A", "B", "B - A", "95% interval", "p", "better")
    columns = (Column(header, justify="right", no_wrap=True) for header in headers)
    patients = "" if result["num_patients"] is None else f", {result['num_patients']} patients"
    title = f"{result['num_images']} {unit}s in common{patients}"
    table = Table("", *columns, title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for name, (short, _) in compared_metrics(result).items():
        row = result["metrics"][name]
        values = ["n/a" if row[key] is None else f"{row[key]:.3f}" for key in ("a", "b")]
        difference = "n/a" if row["difference"] is None else f"{row['difference']:+.3f}"
        cells = (*values, difference, format_interval(row), format_p(row["p"]), (row["better"] or "").upper())
        table.add_row(short, *cells, style="bold" if row["better"] else None)
    console.print(table)
    for name, row in result["delong"].items():
        if row["p"] is not None:
            text = f"{row['difference']:+.3f}, {format_interval(row)}, p {format_p(row['p'])}"
            console.print(escape(f"DeLong, ROC AUC of {name}: {text}"), highlight=False)
    console.print(escape(" ".join([*verdict(result), DECIDE_FIRST])), highlight=False)
    if warning := rules_differ(result):
        console.print(escape(warning), style="bold", highlight=False)
    if out is not None:
        typer.echo(f"wrote {out / 'comparison.html'}")
