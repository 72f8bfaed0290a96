"""``show``: chains and bundles in the terminal, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_pipelines.commands.knobs import read_knobs


def show(
    name: Annotated[str | None, typer.Argument(help="A chain or bundle, by name or path; none lists all.")] = None,
    input: Annotated[Path | None, typer.Option(help="A scan or image to run the chain on.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw what each step does to --input here (PNG).")] = None,
    knob: Annotated[list[str] | None, typer.Option(help="Of the chain drawn, as name=value; repeatable.")] = None,
) -> None:
    """Print the steps, knobs and numbers of a chain or bundle."""
    from monai_pipelines.report import chains

    if (input is None) != (picture is None):
        raise typer.BadParameter("--picture FILE and --input SCAN go together")
    if name is None:
        chains.show_all()
    elif input is None or picture is None:
        chains.show_one(name)
    else:
        chains.draw_chain(name, input, picture, **read_knobs(knob))
        typer.echo(f"wrote {picture}")
