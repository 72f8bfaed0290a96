"""``show``: chains and bundles in the terminal, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_pipelines.commands import read_knobs
from monai_pipelines.declared import declared_path, list_declared


def show(
    name: Annotated[str | None, typer.Argument(help="A chain or bundle, by name or path; none lists all.")] = None,
    input: Annotated[str | None, typer.Option(help="A scan or image to run the chain on.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw what each step, or eight draws, make of --input (PNG)."),
    ] = None,
    boxes: Annotated[str | None, typer.Option(help="Boxes to draw: CSV, COCO or VOC, by the name of --input.")] = None,
    knob: Annotated[list[str] | None, typer.Option(help="Of the chain drawn, as name=value; repeatable.")] = None,
) -> None:
    """Print the steps, knobs and numbers of a chain or bundle."""
    if (input is None) != (picture is None):
        raise typer.BadParameter("--picture FILE and --input SCAN go together")
    if (knob or boxes) and picture is None:
        raise typer.BadParameter(f"{'--knob' if knob else '--boxes'} goes with --picture FILE and --input SCAN")
    if name is None:
        _list_all()
        return
    from monai_pipelines.report import chains

    if input is None or picture is None:
        chains.show_one(name)
    else:
        chains.draw_chain(name, input, picture, boxes, **read_knobs(knob))
        typer.echo(f"wrote {picture}")


def _list_all() -> None:
    """From the files alone: building a chain imports torch and MONAI."""
    import yaml
    from rich.console import Console
    from rich.table import Table

    chains = Table("chain", "steps", title="Chains: load_chain(name)")
    for name in list_declared("transforms"):
        steps = yaml.safe_load((declared_path("transforms") / f"{name}.yaml").read_text(encoding="utf-8"))["steps"]
        chains.add_row(name, ", ".join(step for step in steps if "_disabled_" not in steps[step]))
    bundles = Table(
        "bundle", "configs", title="Bundles: python -m monai.bundle run --bundle_root ROOT --config_file ..."
    )
    for name in list_declared("bundles"):
        configs = declared_path("bundles") / name / "configs"
        bundles.add_row(name, ", ".join(sorted(p.name for p in configs.glob("*.yaml"))))
    Console().print(chains, bundles)
