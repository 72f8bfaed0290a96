"""A cohort of chest CTs prepared by one and by two workers, and beside a busy neighbor: seconds and peak memory.

    python benchmarks/cohort.py [--patients 64] [--rounds 1] [--csv benchmarks/results/cohort.csv]

Runs ``python -m monai_pipelines prepare lung_ct_classification`` on phantoms, with an empty cache. Each run is timed in
a new process that has already prepared one patient, so imports and compilation are not included. The neighbor keeps
multiplying matrices with torch, on its default number of threads. `peak_mb` is the largest sum of the proportional set
sizes (pages shared by several processes count once) of the process and its workers, sampled every second;
`peak_mb_first_half` is the peak during the first half of the run, for comparison. Ratios are meaningful on an idle
machine only; the load average before the run is recorded.
"""

from __future__ import annotations

import contextlib
import csv
import io
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from harness import arguments, record, speedups, timed

from monai_pipelines.commands.prepare import prepare
from monai_pipelines.phantoms import write_lung_ct_cohort

BUNDLE = "lung_ct_classification"
ONE, TWO = "1 worker", "2 workers"
FORK = multiprocessing.get_context("fork")  # so that the workers are forked too, as those of the command are


class Preparation:
    """A preparation of the cohort by a new process.

    Args:
        table: the cohort's.
        one: a table of one patient.
        folder: for caches.
        workers: of ``prepare``.
        neighbor: whether another process is busy.
    """

    def __init__(self, table: Path, one: Path, folder: str, workers: int, neighbor: bool = False) -> None:
        self.table, self.one, self.folder, self.workers, self.neighbor = table, one, folder, workers, neighbor
        self.peaks: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Start the process, wait until it has prepared one patient, and sample its memory."""
        self.pipe, end = FORK.Pipe()
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            process = FORK.Process(target=prepare_on_demand, args=(end, self.one, self.table, cache, self.workers))
            process.start()
            self.pipe.recv()
            with busy_neighbor() if self.neighbor else contextlib.nullcontext(), watched(process.pid or 0) as sizes:
                yield
            self.peaks.append((max(sizes), max(sizes[: len(sizes) // 2 + 1])))
            process.join()

    def run(self) -> None:
        """Prepare the cohort and wait until it is done."""
        self.pipe.send(None)
        self.pipe.recv()


def prepare_on_demand(pipe: Connection, one: Path, table: Path, cache: str, workers: int) -> None:
    """Prepare one patient, report readiness, and prepare the cohort on request; runs in a process of its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(BUNDLE, one, Path(cache, "one"), 0, None)
        pipe.send("ready")
        pipe.recv()
        prepare(BUNDLE, table, Path(cache, "all"), workers, None)
        pipe.send("done")


@contextlib.contextmanager
def busy_neighbor() -> Iterator[None]:
    """A second process under full load."""
    process = FORK.Process(target=multiply_forever, daemon=True)
    process.start()
    time.sleep(5)  # until it has imported torch
    yield
    process.terminate()
    process.join()


def multiply_forever() -> None:
    """Keep a core busy until terminated."""
    import torch

    matrix = torch.rand(1000, 1000)
    while True:
        matrix @ matrix


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[float]]:
    """Memory of a process and its descendants, MB, sampled every second: each sample takes the kernel milliseconds."""
    sizes = [tree_mb(pid)]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            sizes.append(tree_mb(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    yield sizes
    done.set()
    thread.join()


def tree_mb(pid: int) -> float:
    """Proportional set size of a process and its descendants, MB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return own + sum(tree_mb(int(child)) for child in children)


def main() -> None:
    parser = arguments(__doc__, "cohort.csv", rounds=1)
    parser.add_argument("--patients", type=int, default=64)
    parser.add_argument("--matrix", type=int, default=192, help="rows and columns of a slice")
    parser.add_argument("--slice-mm", type=float, default=2.5)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        table = write_lung_ct_cohort(
            Path(folder, "cohort"), args.patients, 0, matrix=args.matrix, slice_mm=args.slice_mm
        )
        one = table.with_name("one.csv")
        with table.open(encoding="utf-8") as file, one.open("w", encoding="utf-8") as out:
            out.writelines([next(file), next(file)])
        with table.open(encoding="utf-8") as file:
            num_scans = sum(1 for _ in csv.DictReader(file))
        preparations = {
            ONE: Preparation(table, one, folder, 1),
            TWO: Preparation(table, one, folder, 2),
            f"{TWO}, busy neighbor": Preparation(table, one, folder, 2, neighbor=True),
        }
        methods = {name: preparation.run for name, preparation in preparations.items()}
        seconds = timed(
            methods, args.rounds, {name: made.started for name, made in preparations.items()}, warm_up=False
        )
    peaks = {name: [max(values) for values in zip(*made.peaks, strict=True)] for name, made in preparations.items()}
    extra = {
        "times_one_worker": speedups(seconds, ONE),
        "peak_mb": {name: round(peak) for name, (peak, _) in peaks.items()},
        "peak_mb_first_half": {name: round(peak) for name, (_, peak) in peaks.items()},
    }
    data = f"{num_scans} scans of {args.patients} patients, {args.matrix} x {args.matrix}, slices of {args.slice_mm} mm"
    data += f"; load of the machine before {load:.1f}"
    record(args.csv, seconds, partner, {}, data, "torch", "monai", "numba", extra=extra)


def partner(name: str) -> str:
    """What it is compared with."""
    return TWO if name.startswith(TWO) and name != TWO else ONE


if __name__ == "__main__":
    main()
