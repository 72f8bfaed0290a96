"""``prepare``: what a bundle's chain makes of images or scans, made before a training needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from monai_pipelines.commands import SchedulerOption, ShardOption, read_knobs


def prepare(
    source: Annotated[str, typer.Argument(help="Bundle, or folder of a run, whose chain is used.")],
    data: Annotated[str, typer.Argument(help="CSV table with the column image, folder, or one image or scan.")],
    cache_dir: Annotated[str, typer.Option(help="Of the bundle; for slides, its features_dir.")] = "cache",
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare.")] = 2,
    knob: Annotated[
        list[str] | None, typer.Option(help="Of the bundle's inference, as size=[96,96,96]; repeatable.")
    ] = None,
    scheduler: SchedulerOption = None,
    shard: ShardOption = None,
) -> None:
    """Fill the cache of a bundle; what is in it already is kept. Exit status 1 if some images cannot be used."""
    from monai_pipelines.runs.inference import inference_config

    config = inference_config(source, **read_knobs(knob))
    folder = next((name for name in ("features_dir", "cache_dir") if name in config), None)
    if folder is None:
        raise ValueError(f"{source}: has no cache_dir, its images stay in memory; nothing to prepare")
    values = {"dataset_dir": data, folder: cache_dir, "num_workers": workers, "on_error": "skip"}
    shared = {"dataset#scheduler": scheduler, "dataset#shard": shard}
    config.update(values | {name: value for name, value in shared.items() if value is not None})
    dataset = config.get_parsed_content("dataset")
    for item in dataset.skipped:
        typer.secho(f"cannot be used: {item['name']}: {item['skipped']}", fg="yellow", err=True)
    typer.echo(f"{len(dataset)} ready, {len(dataset.skipped)} cannot be used: {cache_dir}")
    if dataset.skipped:
        raise typer.Exit(1)
