"""``bundles``: where the bundles are, and a copy to edit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from monai_pipelines.declared import find_bundle, list_declared


def bundles(
    name: Annotated[str | None, typer.Argument(help="Prints the folder of this bundle; none lists all.")] = None,
    copy: Annotated[Path | None, typer.Option(help="New folder for a copy of the bundle, to be edited.")] = None,
) -> None:
    """List the bundles, print the folder of one, or copy it."""
    if name is None:
        if copy is not None:
            raise typer.BadParameter(f"--copy goes with the name of a bundle: {', '.join(list_declared('bundles'))}")
        typer.echo("\n".join(list_declared("bundles")))
        return
    folder = find_bundle(name)
    if copy is None:
        typer.echo(folder)
        return
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("output", "eval", "models", "logs", "runs"))
    typer.echo(f"wrote {copy}")
