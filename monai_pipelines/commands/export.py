"""``export``: the network of a run as TorchScript or ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_pipelines.commands import read_knobs


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    file: Annotated[Path, typer.Argument(help="NAME.onnx, or NAME.ts for TorchScript.")],
    size: Annotated[
        str | None, typer.Option(help="Sides of the images, as 224,224, where the network takes no others.")
    ] = None,
    knob: Annotated[
        list[str] | None, typer.Option(help="Of the bundle's inference, as backbone_weights=FILE; repeatable.")
    ] = None,
) -> None:
    """Write the network of a run as TorchScript or ONNX, checked against the network."""
    from monai_pipelines.engines import load_run

    try:
        sides = size and [int(side) for side in size.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--size wants numbers as 224,224, got {size}") from None
    description = load_run(run).export(file, sides or None, **read_knobs(knob))
    for kind in ("inputs", "outputs"):
        for name, axes in description[kind].items():
            typer.echo(f"{kind[:-1]} {name}: {', '.join(map(str, axes))}")
    typer.echo(f"wrote {file}")
