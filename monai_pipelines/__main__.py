"""Command line: ``python -m monai_pipelines``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="MONAI pipelines that classify medical images.", no_args_is_help=True, add_completion=False)
phantoms = typer.Typer(help="Write synthetic patients with known truth.", no_args_is_help=True)
app.add_typer(phantoms, name="phantoms")


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(help="A chain or bundle, by name or path; none lists all.")] = None,
    input: Annotated[Path | None, typer.Option(help="A scan or image to run the chain on.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw what each step does to --input here (PNG).")] = None,
    knob: Annotated[list[str] | None, typer.Option(help="Of the chain drawn, as name=value; repeatable.")] = None,
) -> None:
    """Print the steps, knobs and numbers of a chain or bundle."""
    from monai_pipelines.commands import show as showing

    if (input is None) != (picture is None):
        raise typer.BadParameter("--picture FILE and --input SCAN go together")
    if name is None:
        showing.show_all()
    elif input is None or picture is None:
        showing.show_one(name)
    else:
        showing.draw_chain(name, input, picture, **_knobs(knob))
        typer.echo(f"wrote {picture}")


@app.command()
def audit(
    source: Annotated[Path, typer.Argument(help="Folder of class folders, zip of one, or CSV table.")],
    classes: Annotated[str | None, typer.Option(help="Class names by index, a,b,...; default: the folders'.")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its first group in a file's name is the patient.")
    ] = None,
    multilabel: Annotated[bool, typer.Option(help="Labels of a table are names joined by |.")] = False,
    similarity: Annotated[
        float, typer.Option(min=0, max=1, help="From which on two images are near duplicates; tiles: 0.5.")
    ] = 0.95,
    extract_dir: Annotated[Path | None, typer.Option(help="Where a zip is unpacked; default: beside it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json.")] = None,
) -> None:
    """Count, measure and compare the images of a data set; exit status 1 if something must be mended first."""
    import json

    from monai_pipelines.data import list_images
    from monai_pipelines.data.audit import audit_images, print_audit

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    found = audit_images(list_images(source, names, patient_pattern, multilabel, extract_dir), similarity)
    print_audit(found)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "audit.json"
        file.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
        typer.echo(f"wrote {file}")
    if found.to_mend:
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(help="Folder of an evaluated run; its page is written anew.")] = None,
    all: Annotated[Path | None, typer.Option(help="Folder of runs: writes index.html, a table of them.")] = None,
) -> None:
    """Write a run's report.html again from its files, or an index page over many runs."""
    if (run is None) == (all is None):
        raise typer.BadParameter("name one run, or --all FOLDER of runs")
    if run is not None:
        from monai_pipelines.report import rebuild_report

        rebuild_report(run)
        typer.echo(f"wrote {run / 'report.html'}")
    elif all is not None:
        from monai_pipelines.report.index import write_index

        typer.echo(f"wrote {write_index(all)}")


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of an evaluated run.")],
    run_b: Annotated[Path, typer.Argument(help="Another, evaluated on the same images.")],
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.html and comparison.json.")] = None,
) -> None:
    """Compare two models on the same images: paired bootstrap of patients, DeLong's test."""
    from monai_pipelines.commands.compare import compare_runs

    compare_runs(run_a, run_b, out)


@app.command()
def explain(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or of a bundle together with --checkpoint.")],
    image: Annotated[Path, typer.Argument(help="A scan or image, as inference takes them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the map and what is predicted.")],
    method: Annotated[str, typer.Option(help="gradcam, gradcam++ or occlusion.")] = "gradcam",
    stage: Annotated[str | None, typer.Option(help="Layer of the network; default: by the size of its cells.")] = None,
    class_name: Annotated[
        str | None, typer.Option(help="Default: the second of two classes, else the predicted one.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: best.pt of the run.")] = None,
) -> None:
    """Show what in one scan speaks for a class; of a volume also as NIfTI on the scan's own grid."""
    from monai_pipelines.explain.scan import explain_scan

    explain_scan(source, image, out, method=method, stage=stage, class_name=class_name, checkpoint=checkpoint)


@app.command()
def features(
    source: Annotated[Path, typer.Argument(help="CSV table with the column image, folder of slides, or one slide.")],
    out: Annotated[
        Path, typer.Argument(help="Folder for the features, a file of each slide's name: name slides by pseudonyms.")
    ],
    backbone: Annotated[
        str, typer.Option(help="ResNet or DenseNet of monai.networks.nets, or a YAML file with the entry backbone.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Of the named network: best.pt of a tile bundle, or torchvision's file.")
    ] = None,
    mpp: Annotated[float, typer.Option(help="um per pixel of the tiles.")] = 0.5,
    tile_px: Annotated[int, typer.Option(min=1, help="Side of a tile, pixels.")] = 256,
    knob: Annotated[list[str] | None, typer.Option(help="Of slide_tiles, as name=value; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles at once through the network.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read slides.")] = 2,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32; auto: bf16 on CUDA and AMX.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float16, of the features in the files.")] = "float32",
) -> None:
    """Features of the tiles of slides, made where missing; exit status 1 if slides were skipped."""
    from collections import Counter

    from monai_pipelines import load_chain
    from monai_pipelines.data import find_slides
    from monai_pipelines.features import extract_features
    from monai_pipelines.features.extraction import read_backbone

    knobs = _knobs(knob)
    if wrong := sorted(knobs.keys() & {"mpp", "tile_px", "name", "steps"}):
        raise typer.BadParameter(
            f"--knob wants a knob of slide_tiles, got {', '.join(wrong)} (--mpp and --tile-px are options of their own)"
        )
    chain = load_chain("slide_tiles", mpp=mpp, tile_px=tile_px, **knobs)
    rows = extract_features(
        find_slides(source),
        out,
        chain,
        read_backbone(backbone, weights),
        batch_size=batch_size,
        num_workers=workers,
        precision=precision,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
    )
    count = Counter(row["status"] for row in rows)
    for row in rows:
        if row["status"] == "skipped":
            typer.secho(f"skipped {row['name']}: {row['reason']}", fg="yellow", err=True)
    typer.echo(", ".join(f"{count[status]} {status}" for status in ("done", "kept", "skipped")) + f": {out}")
    if count["skipped"]:
        raise typer.Exit(1)


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


@phantoms.command("chest-xray")
def chest_xray(
    directory: Annotated[Path, typer.Argument(help="New folder for the cohort.")],
    patients: Annotated[int, typer.Option(min=2, help="Number of patients.")] = 400,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    multilabel: Annotated[bool, typer.Option(help="Opacity, nodule and effusion, several at once.")] = False,
    size: Annotated[int, typer.Option(min=64, help="Columns of an image.")] = 256,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Write chest X-rays, normal and pneumonia, as DICOM, PNG and JPEG, with table and boxes of what is found."""
    from monai_pipelines.phantoms import write_chest_xray_cohort

    table = write_chest_xray_cohort(directory, patients, seed, multilabel=multilabel, size=size, num_workers=workers)
    typer.echo(f"wrote {table}")


@phantoms.command("histology-tiles")
def histology_tiles(
    directory: Annotated[Path, typer.Argument(help="New folder for the tiles.")],
    per_class: Annotated[int, typer.Option(min=1, help="Tiles of each class.")] = 60,
    count: Annotated[list[str] | None, typer.Option(help="Only these classes, as LYM=200; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=64, help="Rows and columns of a tile, 0.5 um each.")] = 224,
    slides: Annotated[int, typer.Option(min=1, help="Slides the tiles come from.")] = 24,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Write H&E-like tiles of nine colorectal tissues, a folder for each class."""
    from monai_pipelines.phantoms import write_histology_tiles

    wrong = [given for given in count or () if not given.partition("=")[2].isdecimal()]
    if wrong:
        raise typer.BadParameter(f"--count wants CLASS=number, got {', '.join(wrong)}")
    counts = {given.partition("=")[0]: int(given.partition("=")[2]) for given in count or ()}
    folder = write_histology_tiles(
        directory, counts or per_class, seed, size=size, num_slides=slides, num_workers=workers
    )
    typer.echo(f"wrote {folder}")


@phantoms.command("pathmnist")
def pathmnist(
    directory: Annotated[Path, typer.Argument(help="New folder for pathmnist.npz.")],
    slides: Annotated[int, typer.Option(min=10, help="Number of slides, 36 tiles each.")] = 40,
    seed: Annotated[int, typer.Option(help="Same seed, same tiles.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Write histology tiles of nine classes as MedMNIST has its PathMNIST, 28 x 28 pixels, split by slide."""
    from monai_pipelines.phantoms import write_pathmnist

    typer.echo(f"wrote {write_pathmnist(directory, slides, seed, num_workers=workers)}")


@phantoms.command("fundus")
def fundus(
    directory: Annotated[Path, typer.Argument(help="New folder for the cohort.")],
    patients: Annotated[int, typer.Option(min=2, help="Number of patients, half of them diseased.")] = 200,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=64, help="Rows and columns of a photograph.")] = 400,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Write fundus photographs of both eyes, a folder for disease and normal, with the true lesions."""
    from monai_pipelines.phantoms import write_fundus_cohort

    folder = write_fundus_cohort(directory, patients, seed, size=size, num_workers=workers)
    typer.echo(f"wrote {folder}")


@phantoms.command("slides")
def slides(
    directory: Annotated[Path, typer.Argument(help="New folder for the cohort.")],
    slides: Annotated[int, typer.Option(min=2, help="Number of slides, half of them with tumour.")] = 40,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    size_mm: Annotated[tuple[float, float], typer.Option(help="Width and height of a slide, mm.")] = (2.2, 1.7),
    tumour_fraction: Annotated[
        tuple[float, float], typer.Option(help="Least and greatest share of the tissue that is tumour.")
    ] = (0.01, 0.2),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Write whole slides, normal and with tumour, as pyramidal TIFF, with table, true masks and outlines."""
    from monai_pipelines.phantoms import write_slides

    table = write_slides(directory, slides, seed, size_mm=size_mm, tumour_fraction=tumour_fraction, num_workers=workers)
    typer.echo(f"wrote {table}")


def _knobs(given: list[str] | None) -> dict[str, Any]:
    import yaml

    wrong = [text for text in given or () if "=" not in text]
    if wrong:
        raise typer.BadParameter(f"--knob wants name=value, got {', '.join(wrong)}")
    return {text.partition("=")[0]: yaml.safe_load(text.partition("=")[2]) for text in given or ()}


def main() -> None:
    """Run the command line; what the user can mend is told without a traceback."""
    try:
        app()
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        cause: BaseException = error
        while isinstance(cause, RuntimeError) and cause.__cause__ is not None:  # MONAI wraps what a component raises
            cause = cause.__cause__
        if not isinstance(cause, (ValueError, KeyError, OSError)):
            raise
        message = cause.args[0] if isinstance(cause, KeyError) else cause
        typer.secho(f"error: {message}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
