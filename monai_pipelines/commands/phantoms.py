"""``phantoms``: synthetic patients with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write synthetic patients with known truth.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="New folder for what is written.")]
Patients = Annotated[int, typer.Option(min=2, help="Number of patients, half of them diseased.")]
Seed = Annotated[int, typer.Option(help="Same seed, same bytes.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")]


@app.command()
def lung_ct(
    directory: Folder,
    patients: Patients = 40,
    seed: Seed = 0,
    matrix: Annotated[int, typer.Option(min=32, help="Rows and columns of a slice.")] = 256,
    slice_mm: Annotated[float | None, typer.Option(help="Slice distance, mm; default: the scanner's.")] = None,
    lesion_mm: Annotated[tuple[float, float], typer.Option(help="Least and greatest lesion diameter, mm.")] = (20, 40),
    workers: Workers = None,
) -> None:
    """Write a cohort of chest CTs as DICOM series, with table, true lung masks and lesions."""
    from monai_pipelines.phantoms import write_lung_ct_cohort

    table = write_lung_ct_cohort(
        directory, patients, seed, matrix=matrix, slice_mm=slice_mm, lesion_mm=lesion_mm, num_workers=workers
    )
    typer.echo(f"wrote {table}")


@app.command()
def chest_xray(
    directory: Folder,
    patients: Annotated[int, typer.Option(min=2, help="Number of patients.")] = 400,
    seed: Seed = 0,
    multilabel: Annotated[bool, typer.Option(help="Opacity, nodule and effusion, several at once.")] = False,
    size: Annotated[int, typer.Option(min=64, help="Columns of an image.")] = 256,
    workers: Workers = None,
) -> None:
    """Write chest X-rays, normal and pneumonia, as DICOM, PNG and JPEG, with table and boxes of what is found."""
    from monai_pipelines.phantoms import write_chest_xray_cohort

    table = write_chest_xray_cohort(directory, patients, seed, multilabel=multilabel, size=size, num_workers=workers)
    typer.echo(f"wrote {table}")


@app.command()
def histology_tiles(
    directory: Folder,
    per_class: Annotated[int, typer.Option(min=1, help="Tiles of each class.")] = 60,
    count: Annotated[list[str] | None, typer.Option(help="Only these classes, as LYM=200; repeatable.")] = None,
    seed: Seed = 0,
    size: Annotated[int, typer.Option(min=64, help="Rows and columns of a tile, 0.5 um each.")] = 224,
    slides: Annotated[int, typer.Option(min=1, help="Slides the tiles come from.")] = 24,
    workers: Workers = None,
) -> None:
    """Write H&E-like tiles of nine colorectal tissues, a folder for each class."""
    from monai_pipelines.phantoms import write_histology_tiles

    given = [text.partition("=") for text in count or ()]
    if wrong := ["".join(parts) for parts in given if not parts[2].isdecimal()]:
        raise typer.BadParameter(f"--count wants CLASS=number, got {', '.join(wrong)}")
    counts = {name: int(number) for name, _, number in given} or per_class
    folder = write_histology_tiles(directory, counts, seed, size=size, num_slides=slides, num_workers=workers)
    typer.echo(f"wrote {folder}")


@app.command()
def pathmnist(
    directory: Folder,
    slides: Annotated[int, typer.Option(min=10, help="Number of slides, 36 tiles each.")] = 40,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Write histology tiles of nine classes as MedMNIST has its PathMNIST, 28 x 28 pixels, split by slide."""
    from monai_pipelines.phantoms import write_pathmnist

    typer.echo(f"wrote {write_pathmnist(directory, slides, seed, num_workers=workers)}")


@app.command()
def fundus(
    directory: Folder,
    patients: Patients = 200,
    seed: Seed = 0,
    size: Annotated[int, typer.Option(min=64, help="Rows and columns of a photograph.")] = 400,
    workers: Workers = None,
) -> None:
    """Write fundus photographs of both eyes, a folder for disease and normal, with the true lesions."""
    from monai_pipelines.phantoms import write_fundus_cohort

    typer.echo(f"wrote {write_fundus_cohort(directory, patients, seed, size=size, num_workers=workers)}")


@app.command()
def slides(
    directory: Folder,
    slides: Annotated[int, typer.Option(min=2, help="Number of slides, half of them with tumour.")] = 40,
    seed: Seed = 0,
    size_mm: Annotated[tuple[float, float], typer.Option(help="Width and height of a slide, mm.")] = (2.2, 1.7),
    tumour_fraction: Annotated[
        tuple[float, float], typer.Option(help="Least and greatest share of the tissue that is tumour.")
    ] = (0.01, 0.2),
    workers: Workers = None,
) -> None:
    """Write whole slides, normal and with tumour, as pyramidal TIFF, with table, true masks and outlines."""
    from monai_pipelines.phantoms import write_slides

    table = write_slides(directory, slides, seed, size_mm=size_mm, tumour_fraction=tumour_fraction, num_workers=workers)
    typer.echo(f"wrote {table}")
