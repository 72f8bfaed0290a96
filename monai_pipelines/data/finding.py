"""Inputs to be classified: the rows of a table, one file, or everything of a kind in a folder."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path

from monai_pipelines.data.split import Item
from monai_pipelines.errors import CohortError


def find_inputs(
    source: str | PathLike[str],
    kind: str,
    wanted: str,
    list_folder: Callable[[Path], Iterable[Path]],
    columns: Sequence[str] = (),
) -> list[Item]:
    """The ``image`` column of a CSV table, one file, or the inputs in a folder; a missing file is left to the reader.

    Args:
        source: a CSV file, a file or a folder.
        kind: of the input, for messages: "scan", "image", ...
        wanted: in a folder, for messages.
        list_folder: gives the inputs in a folder, which may be the folder itself, in order.
        columns: further columns of a table that are kept where they are not empty.

    Returns:
        a MONAI datalist: ``image`` (path), ``name`` (relative to the folder, or as the table has it), ``columns``.

    Raises:
        FileNotFoundError: no such file or folder.
        CohortError: nothing to classify in it.
    """
    path = Path(source)
    if not path.exists():
        article = "an" if kind[0] in "aeiou" else "a"
        raise FileNotFoundError(
            f"{path}: no such file or folder; wanted a CSV table, a folder of {kind}s, or {article} {kind}"
        )
    if path.suffix.lower() == ".csv":
        return _from_table(path, columns)
    if path.is_file():
        return [{"image": str(path), "name": path.name}]
    inputs = list(list_folder(path))
    if not inputs:
        raise CohortError(source, [f"no {kind} in it: wanted {wanted}"])
    return [
        {"image": str(p), "name": p.relative_to(path).as_posix() if p != path else path.resolve().name} for p in inputs
    ]


def _from_table(table: Path, columns: Sequence[str]) -> list[Item]:
    rows = read_rows(table, needed=("image",))
    missing = [f"line {row['line']}: no image" for row in rows if not row["image"].strip()]
    if missing:
        raise CohortError(table, missing)
    return [
        {"image": str(table.parent / row["image"].strip()), "name": row["image"].strip()}
        | {column: row[column].strip() for column in columns if row.get(column, "").strip()}
        for row in rows
    ]


def read_rows(table: str | PathLike[str], needed: Sequence[str]) -> list[Item]:
    """The rows of a CSV table as dictionaries, with their ``line``.

    Raises:
        CohortError: no such table, a ``needed`` column is missing, no row, or more fields than columns.
    """
    if not Path(table).is_file():
        raise CohortError(table, [f"no such table; wanted a CSV with the columns {', '.join(needed)}"])
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        rows: list[Item] = [{**row, "line": reader.line_num} for row in reader]
        columns = list(reader.fieldnames or ())
    problems = [f"no column {c!r}; the table's columns are {', '.join(columns)}" for c in needed if c not in columns]
    problems += [f"line {r['line']}: more fields than columns (a comma without quotes?)" for r in rows if None in r]
    if problems:
        raise CohortError(table, problems)
    if not rows:
        raise CohortError(table, ["no row in it"])
    return rows
