"""``cache``: what prepared results take on disk, and how to get rid of them."""

from __future__ import annotations

from typing import Annotated

import typer


def cache(
    directory: Annotated[str, typer.Argument(help="cache_dir of a run: a folder, or its URL.")],
    check: Annotated[bool, typer.Option(help="Read every entry and verify its checksum.")] = False,
    clear: Annotated[bool, typer.Option(help="Remove the entries; other files stay.")] = False,
) -> None:
    """List the entries of a cache; exit status 1 if some are damaged (a run makes them again)."""
    from monai_pipelines.data.cache import SUFFIX, Cache, entries
    from monai_pipelines.remote import as_place, read_start, unlink

    if not as_place(directory).is_dir():
        raise typer.BadParameter(f"{as_place(directory)}: wanted a folder with a cache")
    kept = Cache(directory)  # removes what killed runs left
    files = list(entries(directory))
    size_mb = sum(read_start(file, 0)[1] for file in files) / 2**20
    whole = [file for file in files if file.suffix == SUFFIX]
    if clear:
        for file in files:
            unlink(file)
        typer.echo(f"files removed: {len(files)}, {size_mb:,.1f} MB: {directory}")
        return
    damaged = [file for file in whole if (kept.read(file) if check else kept.note(file)) is None]
    typer.echo(f"entries: {len(whole)}, {size_mb:,.1f} MB: {directory}")
    if leftovers := len(files) - len(whole):
        typer.echo(f"temporary files of running processes, or of those killed in the last 10 minutes: {leftovers}")
    for file in damaged:
        typer.secho(f"damaged: {file.name}", fg="yellow", err=True)
    if damaged:
        raise typer.Exit(1)
