"""Time for the data of an epoch: the first, which prepares the scans, and those that read them from the cache.

    python benchmarks/ct_cache.py [--scans 6] [--rounds 3] [--csv benchmarks/results/ct_cache.csv]

Phantom series of 512 x 512 pixels are prepared by the chain `lung_ct` (128 x 128 x 128) into a `PreparedDataset` with a
new cache and read in batches of 2, in one process: "first". "next run" makes the dataset again on that cache, as a
second training does; "second" reads the same dataset once more. Medians over rounds are appended to the CSV with
machine and date; ``times_faster`` is relative to the first epoch.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from recording import appended

from monai_pipelines import load_chain
from monai_pipelines.data import PreparedDataset, make_loader
from monai_pipelines.phantoms import thorax_phantom, write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS

COLUMNS = (
    *("date", "epoch", "storage", "median_ms", "min_ms", "max_ms", "times_faster", "scans", "volume", "rounds"),
    *("machine", "command"),
)


def epoch(dataset: PreparedDataset) -> None:
    """Read every batch."""
    for batch in make_loader(dataset, 2):
        batch["image"].sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--slice-mm", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "ct_cache.csv")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        data = []
        for seed in range(args.scans):
            scan = thorax_phantom(
                seed, diseased=True, matrix=512, slice_mm=args.slice_mm, lesion_mm=(20, 40), scanner=SCANNERS[0]
            )
            series = write_dicom_series(Path(folder) / f"scan{seed}", scan.hu, scan.affine)
            data.append({"image": str(series), "name": series.name, "label": seed % 2})
        rows = [
            (storage, name, times)
            for storage in ("float32", "uint8")
            for name, times in _measured(data, Path(folder), storage, args.rounds).items()
        ]
        volume = "x".join(map(str, scan.hu.shape))
    firsts = {storage: statistics.median(times) for storage, name, times in rows if name == "first"}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    with appended(args.csv, COLUMNS) as out:
        for storage, name, times in rows:
            median = statistics.median(times)
            numbers = [round(number) for number in (median, min(times), max(times))]
            faster = round(firsts[storage] / median, 1)
            command = shlex.join(["python", *sys.argv])
            out.writerow(
                [datetime.date.today(), name, storage, *numbers, faster, args.scans, volume, args.rounds]
                + [machine, command]
            )
            print(f"{storage:8} {name:10} {numbers[0]:6} ms ({numbers[1]}-{numbers[2]})  {faster} times faster")


def _measured(data: list[dict], folder: Path, storage: str, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"first": [], "next run": [], "second": []}

    def timed(name: str, work: Callable[[], PreparedDataset]) -> PreparedDataset:
        start = time.perf_counter()
        dataset = work()
        epoch(dataset)
        times[name].append(1000 * (time.perf_counter() - start))
        return dataset

    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as cache:

            def make(cache: str = cache) -> PreparedDataset:
                return PreparedDataset(data, load_chain("lung_ct"), cache, storage=storage)

            timed("first", make)
            dataset = timed("next run", make)
            timed("second", lambda dataset=dataset: dataset)
    return times


if __name__ == "__main__":
    main()
