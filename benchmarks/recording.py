"""Results of benchmarks, appended to CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def appended(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """A CSV writer at the end of a file, which is made with its columns if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        if new:
            writer.writerow(columns)
        yield writer
