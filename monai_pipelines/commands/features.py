"""``features``: the tiles of slides through a frozen network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_pipelines.commands import SchedulerOption, ShardOption, read_knobs


def features(
    source: Annotated[str, typer.Argument(help="CSV table with the column image, folder of slides, or one slide.")],
    out: Annotated[
        str, typer.Argument(help="Folder or URL for the features, a file of each slide's name: use pseudonyms.")
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
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read slides; with --scheduler, threads of each worker.")
    ] = 2,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32; auto: bf16 on CUDA and AMX.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float16, of the features in the files.")] = "float32",
    scheduler: SchedulerOption = None,
    shard: ShardOption = None,
) -> None:
    """Features of the tiles of slides, made where missing; exit status 1 if slides were skipped."""
    from collections import Counter

    from monai_pipelines.chains import load_chain
    from monai_pipelines.data import find_slides
    from monai_pipelines.features import extract_features
    from monai_pipelines.features.extraction import read_backbone

    knobs = read_knobs(knob)
    if wrong := sorted(knobs.keys() & {"mpp", "tile_px", "name", "steps"}):
        raise typer.BadParameter(
            f"--knob wants a knob of slide_tiles, got {', '.join(wrong)} (--mpp and --tile-px have options)"
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
        scheduler=scheduler,
        shard=shard,
    )
    count = Counter(row["status"] for row in rows)
    for row in rows:
        if row["status"] == "skipped":
            typer.secho(f"skipped {row['name']}: {row['reason']}", fg="yellow", err=True)
    typer.echo(", ".join(f"{count[status]} {status}" for status in ("done", "kept", "skipped")) + f": {out}")
    if count["skipped"]:
        raise typer.Exit(1)
