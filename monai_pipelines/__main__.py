"""Command line: ``python -m monai_pipelines``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="MONAI pipelines that classify medical images.", no_args_is_help=True, add_completion=False)
phantoms = typer.Typer(help="Write synthetic patients with known truth.", no_args_is_help=True)
app.add_typer(phantoms, name="phantoms")


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(help="A chain or bundle, by name or path; none lists all.")] = None,
    input: Annotated[Path | None, typer.Option(help="A scan to run the chain on.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw what each step does to --input here (PNG).")] = None,
    knob: Annotated[list[str] | None, typer.Option(help="Of the chain drawn, as name=value; repeatable.")] = None,
) -> None:
    """Print the steps, knobs and numbers of a chain or bundle."""
    import yaml

    from monai_pipelines import show as showing

    if (input is None) != (picture is None):
        raise typer.BadParameter("--picture FILE and --input SCAN go together")
    if name is None:
        showing.show_all()
    elif input is None or picture is None:
        showing.show_one(name)
    else:
        wrong = [given for given in knob or () if "=" not in given]
        if wrong:
            raise typer.BadParameter(f"--knob wants name=value, got {', '.join(wrong)}")
        knobs = {given.partition("=")[0]: yaml.safe_load(given.partition("=")[2]) for given in knob or ()}
        showing.draw_chain(name, input, picture, **knobs)
        typer.echo(f"wrote {picture}")


@phantoms.command("lung-ct")
def lung_ct(
    directory: Annotated[Path, typer.Argument(help="New folder for the cohort.")],
    patients: Annotated[int, typer.Option(min=2, help="Number of patients, half of them diseased.")] = 40,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    matrix: Annotated[int, typer.Option(min=32, help="Rows and columns of a slice.")] = 256,
    slice_mm: Annotated[float | None, typer.Option(help="Slice distance, mm; default: the scanner's.")] = None,
    lesion_mm: Annotated[tuple[float, float], typer.Option(help="Smallest and largest lesion diameter, mm.")] = (
        20,
        40,
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Write a cohort of chest CTs as DICOM series, with table, true lung masks and lesions."""
    from monai_pipelines.phantoms import write_lung_ct_cohort

    table = write_lung_ct_cohort(
        directory, patients, seed, matrix=matrix, slice_mm=slice_mm, lesion_mm=lesion_mm, num_workers=workers
    )
    typer.echo(f"wrote {table}")


def main() -> None:
    """Run the command line; what the user can mend is told without a traceback."""
    try:
        app()
    except (ValueError, KeyError, OSError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        typer.secho(f"error: {message}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
