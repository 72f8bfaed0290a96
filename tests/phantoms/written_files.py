"""What the cohort writers wrote."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
