"""One module for each command of ``python -m monai_pipelines``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

SchedulerOption = Annotated[
    str | None,
    typer.Option(
        help="Work on a running Dask cluster instead, as tcp://host:8786. A worker holds one item at a time (a CT of "
        "512 x 512 x 332: 0.8 GB): start workers with --nthreads 1 and --memory-limit, and one for each GPU."
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(help="i/n: only every n-th, from the i-th on, as for job i of an array of n."),
]


def read_knobs(options: list[str] | None) -> dict[str, Any]:
    """Values of the options ``--knob name=value`` by name, read as YAML.

    Raises:
        typer.BadParameter: an option that is not name=value.
    """
    import yaml

    if wrong := [text for text in options or () if "=" not in text]:
        raise typer.BadParameter(f"--knob wants name=value, got {', '.join(wrong)}")
    return {text.partition("=")[0]: yaml.safe_load(text.partition("=")[2]) for text in options or ()}
