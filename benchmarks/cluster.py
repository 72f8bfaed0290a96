"""Work on a Dask cluster on this machine: what an item costs, memory, and how much faster two workers are than one.

    TMPDIR=/dev/shm python benchmarks/cluster.py [--rounds 3] [--items 1000 10000 100000] [--scans 32]

The items of the first rows do nothing, so their time is overhead. Scheduler and client are processes of their own; "MB"
is the largest resident memory of each since it started. The last rows prepare phantoms by `lung_ct` anew, each worker
with one thread; on a disk that takes longer to write 8 MB than a core to make them, the second worker is of no use,
hence TMPDIR.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from operator import itemgetter
from pathlib import Path

from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster
from harness import arguments, record, timed
from loading import write_scans

from monai_pipelines import load_chain
from monai_pipelines.data import PreparedDataset
from monai_pipelines.data.workers import each_outcome

logging.disable(logging.WARNING)
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def do_nothing(num: int, scheduler: str, client_mb: dict[str, int], name: str) -> None:
    items = [{"outcome": (number, None)} for number in range(num)]
    outcomes = list(each_outcome(itemgetter("outcome"), items, name, scheduler=scheduler))
    if [number for number, _ in outcomes] != list(range(num)):
        raise RuntimeError(f"{name}: wrong outcomes")
    client_mb[name] = peak_mb()


def prepare(data: list[dict], folder: Path, scheduler: str | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    PreparedDataset(data, load_chain("lung_ct"), folder, scheduler=scheduler)


def main() -> None:
    parser = arguments(__doc__, "cluster.csv", rounds=3)
    parser.add_argument("--items", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--scans", type=int, default=32)
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clusters = {
            num: stack.enter_context(SubprocessCluster(n_workers=num, threads_per_worker=1, dashboard_address=":0"))
            for num in (1, 2)
        }
        addresses = {num: cluster.scheduler_address for num, cluster in clusters.items()}
        client_mb: dict[str, int] = {}
        scheduler_mb: dict[str, int] = {}
        seconds: dict[str, list[float]] = {}
        ms_per_item: dict[str, float] = {}
        for num in args.items:
            name = f"{num:,} items"
            seconds |= timed({name: partial(do_nothing, num, addresses[2], client_mb, name)}, args.rounds)
            ms_per_item[name] = round(1000 * sorted(seconds[name])[len(seconds[name]) // 2] / num, 4)
            with Client(addresses[2]) as client:
                scheduler_mb[name] = client.run_on_scheduler(peak_mb)
        data = write_scans(folder, args.scans)
        preparations = {
            f"{args.scans} CTs, {num} worker{'s' * (num > 1)}": partial(prepare, data, folder / "cache", address)
            for num, address in addresses.items()
        }
        seconds |= timed(preparations, args.rounds)
        extra = {"ms_per_item": ms_per_item, "client_mb": client_mb, "scheduler_mb": scheduler_mb}
        one = next(iter(preparations))
        record(
            args.csv,
            seconds,
            lambda name: one if name in preparations else name,
            {},
            "items without work; phantoms as DICOM series, 128 x 128, slices of 5 mm",
            *("dask", "distributed", "torch"),
            extra=extra,
        )


if __name__ == "__main__":
    main()
