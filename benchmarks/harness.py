"""What all benchmarks share: methods timed by turns in one process, a table on the screen, rows appended to a CSV."""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai_pipelines.versions import library_versions

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("date", "method", "median_ms", "min_ms", "max_ms", "times_ours", "difference")
CONDITIONS = ("n", "data", "machine", "versions", "command")


def arguments(doc: str | None, csv: str, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with ``--rounds`` and ``--csv``, by default a file of the results."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--csv", type=Path, default=RESULTS / csv)
    return parser


def timed(
    methods: Mapping[str, Callable[[], Any]],
    rounds: int,
    around: Mapping[str, Callable[[], AbstractContextManager]] | None = None,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each method in each round; methods alternate.

    Args:
        methods: by name.
        rounds: that are counted.
        around: by method, the context that it runs in; entering and leaving it is not timed.
        warm_up: run a round first that is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(not warm_up, rounds + 1):
        for name, method in methods.items():
            with (around or {}).get(name, nullcontext)():
                start = time.perf_counter()
                method()
                spent = time.perf_counter() - start
            if round_:
                seconds[name].append(spent)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each method."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def per_second(seconds: Mapping[str, list[float]], items: int) -> dict[str, float]:
    """Items per second of each method that works on ``items``; below 100 with two decimals."""
    rates = {name: items / median for name, median in medians(seconds).items()}
    return {name: round(rate, 2) if rate < 100 else round(rate) for name, rate in rates.items()}


def speedups(seconds: Mapping[str, list[float]], over: str) -> dict[str, float]:
    """How many times as fast as the method ``over`` each is."""
    times = medians(seconds)
    return {name: round(times[over] / median, 2) for name, median in times.items()}


def record(
    csv: Path,
    seconds: Mapping[str, list[float]],
    ours: Callable[[str], str],
    differences: Mapping[str, str],
    data: str,
    *packages: str,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "cpu",
) -> None:
    """Print medians and ratios, and append them to a CSV.

    Args:
        csv: the file.
        seconds: of `timed`.
        ours: name of our method that does the same job as another.
        differences: by method, how far its output is from ours.
        data: what they worked on.
        packages: whose versions matter.
        extra: more columns, each with its values by method.
        device: where they ran.
    """
    extra, times = extra or {}, medians(seconds)
    versions = ", ".join(f"{name} {version}" for name, version in library_versions(*packages).items())
    width = max(map(len, seconds))
    with appended(csv, (*COLUMNS, *extra, *CONDITIONS)) as rows:
        for name, values in seconds.items():
            milliseconds = [round(1000 * value, 1) for value in (times[name], min(values), max(values))]
            ratio, difference = times[name] / times[ours(name)], differences.get(name, "")
            more = [column.get(name, "") for column in extra.values()]
            done = (len(values), data, machine(device), versions, shlex.join(["python", *sys.argv]))
            rows.writerow([datetime.date.today(), name, *milliseconds, round(ratio, 2), difference, *more, *done])
            shown = ", ".join(f"{column} {value}" for column, value in zip(extra, more, strict=True) if value != "")
            print(f"{name:{width}} {milliseconds[0]:9.1f} ms  x{ratio:6.2f}  {shown}  {difference}".rstrip())


@contextmanager
def appended(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """A CSV writer at the end of a file, which is made with its columns if it is missing.

    Raises:
        ValueError: the file has other columns.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    header = ",".join(columns)
    if not file.exists():
        file.write_text(header + "\n", encoding="utf-8")
    with file.open("r+", newline="", encoding="utf-8") as out:
        if (found := out.readline().rstrip()) != header:
            raise ValueError(f"{file}: wanted the columns {header}, got {found}; give another --csv")
        out.seek(0, 2)
        yield csv.writer(out, lineterminator="\n")


def installed(package: str) -> bool:
    """Whether a package to compare with is installed; if it is not, that is printed."""
    found = find_spec(package) is not None
    if not found:
        print(f"skipped: {package} is not installed (benchmarks/requirements.txt)")
    return found


def machine(device: str = "cpu") -> str:
    """Processor and cores, with torch its threads, and the GPU if that is the device."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    parts = [names[0] if names else platform.processor(), f"{len(names)} cores"]
    if torch := sys.modules.get("torch"):  # not imported for this: benchmarks also measure memory
        parts.append(f"{torch.get_num_threads()} threads")
        parts += [torch.cuda.get_device_name(device)] if device.startswith("cuda") else []
    return ", ".join(parts)


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
