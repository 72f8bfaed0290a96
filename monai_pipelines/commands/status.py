"""``status``: how far the runs that fill a cache or a folder of features are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from monai_pipelines.data.progress import Progress


def status(
    directory: Annotated[
        str, typer.Argument(help="cache_dir or features_dir that prepare, features or a training fills.")
    ],
    all_jobs: Annotated[bool, typer.Option("--all", help="Earlier jobs, too: other tables, chains, networks.")] = False,
) -> None:
    """Items done, unusable (and why) and left, items per second and time left, of the latest job in a folder."""
    from monai_pipelines.data.progress import read_progress

    jobs = read_progress(directory)
    if not jobs:
        raise ValueError(f"{directory}: no record of a run; wanted a folder that prepare, features or a training fills")
    for shards in jobs if all_jobs else jobs[:1]:
        _print_job(shards)


def _print_job(shards: list[Progress]) -> None:
    planned, done, left = (sum(getattr(shard, name) for shard in shards) for name in ("planned", "done", "left"))
    unusable = {name: why for shard in shards for name, why in shard.unusable.items()}
    typer.echo(f"{planned:,} planned: {done:,} done, {len(unusable):,} unusable, {left:,} left")
    for shard in shards:
        name = f"shard {shard.shard}: " if shard.shard else ""
        typer.echo(f"{name}{shard.planned - shard.left:,} of {shard.planned:,}, {_state(shard)}")
    if shards[0].shard and len(shards) < (number := int(shards[0].shard.partition("/")[2])):
        typer.echo(f"{number - len(shards)} of {number} shards have not started")
    for name, why in unusable.items():
        typer.secho(f"cannot be used: {name}: {why}", fg="yellow")


def _state(shard: Progress) -> str:
    if shard.state == "running" and not shard.is_alive:
        return "no longer running: killed, or its machine is gone; the same command goes on from there"
    if shard.state == "stopped":
        return "stopped by an error; the same command goes on from there"
    if shard.state == "finished" or not shard.per_s:
        return shard.state
    return f"{shard.per_s:.3g} per s, {_duration(shard.left / shard.per_s)} left"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
