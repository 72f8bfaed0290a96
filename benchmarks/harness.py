"""What all benchmarks share: methods timed by turns in one process, a table on the screen, rows appended to a CSV."""

from __future__ import annotations

import datetime
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from recording import appended

from monai_pipelines.versions import library_versions

COLUMNS = (
    *("date", "method", "median_ms", "min_ms", "max_ms", "times_ours", "difference", "n", "data", "machine"),
    *("versions", "command"),
)


def timed(methods: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method in each round; methods alternate, and a round before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(rounds + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def record(
    csv: Path,
    seconds: Mapping[str, list[float]],
    ours: Callable[[str], str],
    differences: Mapping[str, str],
    data: str,
    *packages: str,
) -> None:
    """Print medians and ratios, and append them to a CSV.

    Args:
        csv: the file.
        seconds: of `timed`.
        ours: name of our method that does the same job as another.
        differences: by method, how far its output is from ours.
        data: what they worked on.
        packages: whose versions matter.
    """
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    versions = ", ".join(f"{name} {version}" for name, version in library_versions(*packages).items())
    width = max(map(len, seconds))
    with appended(csv, COLUMNS) as rows:
        for name, values in seconds.items():
            milliseconds = [round(1000 * value, 1) for value in (medians[name], min(values), max(values))]
            ratio, difference = medians[name] / medians[ours(name)], differences.get(name, "")
            done = (len(values), data, machine(), versions, shlex.join(["python", *sys.argv]))
            rows.writerow([datetime.date.today(), name, *milliseconds, round(ratio, 2), difference, *done])
            print(f"{name:{width}} {milliseconds[0]:9.1f} ms  x{ratio:6.2f}  {difference}")


def machine() -> str:
    """Processor and threads."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
