"""Rows of tables as spreadsheets save them: any encoding and separator, known columns by any spelling of their case."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from monai_pipelines.errors import CohortError
from monai_pipelines.remote import Place, Source, as_place, local

logger = logging.getLogger(__name__)

COLUMNS = ("image", "label", "patient", "split", "mpp", "annotation")
_OTHER_WORDS = {
    "image": ("file", "filename", "filepath", "path", "scan", "slide"),
    "label": ("class", "classname", "target", "diagnosis"),
    "patient": ("subject", "subjectid", "pid", "mrn", "person", "personid"),
    "split": ("set", "subset", "partition"),
}


def read_rows(table: Source, needed: Sequence[str], known: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
    """The rows of a CSV table as dictionaries, with their ``line``.

    UTF-8, UTF-16 and Windows-1252, separated by commas, semicolons or tabs. The ``known`` columns are found
    whatever their case and the blanks around them; text is brought to Unicode's composed form. Rows without any value
    are left out.

    Raises:
        CohortError: no such table, a ``needed`` column is missing, a column that is nearly a known one, one that
            appears twice, no row, or more fields than columns.
        ScanError: of a table at a URL, whose store denies access or does not answer.
    """
    path = as_place(table)
    if not path.is_file():
        raise CohortError(path, [f"no such table; wanted a CSV with the columns {', '.join(needed)}"])
    text = _decoded(path)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=False)
    try:
        head = next(reader, [])
        columns = [_column(name, known) for name in head]
        lines = [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except csv.Error as error:
        raise CohortError(path, [f"unreadable CSV ({error}); save it again as CSV"]) from None
    if renamed := [f"{old!r} as {new}" for old, new in zip(head, columns, strict=True) if old != new]:
        logger.info("%s: columns read: %s", path, ", ".join(renamed))
    problems = _column_problems(columns, needed, known)
    wide = [number for number, fields in lines if len(fields) > len(columns) and any(fields[len(columns) :])]
    problems += [f"line {number}: more fields than columns (a {separator!r} without quotes?)" for number in wide]
    if problems:
        raise CohortError(path, problems)
    if not lines:
        raise CohortError(path, ["no row in it"])
    empty = [""] * len(columns)
    return [{**dict(zip(columns, [*fields, *empty], strict=False)), "line": number} for number, fields in lines]


def _decoded(path: Place) -> str:
    with local(path) as file:
        data = file.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif data[1:2] == b"\0" or data[:1] == b"\0":
        encodings = ["utf-16-le" if data[1:2] == b"\0" else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "cp1252":
            logger.warning("%s: not UTF-8, read as Windows-1252", path)
        if "\0" not in text:
            return unicodedata.normalize("NFC", text)
    raise CohortError(path, [f"not text in {' or '.join(encodings)}; save it again as CSV UTF-8"])


def _column(name: str, known: Sequence[str]) -> str:
    stripped = name.strip()
    return stripped.lower() if stripped.lower() in known else stripped


def _column_problems(columns: Sequence[str], needed: Sequence[str], wanted: Sequence[str]) -> list[str]:
    problems = [f"column {name!r} appears {n} times" for name, n in Counter(columns).items() if n > 1 and name]
    listed = ", ".join(columns)
    for known in wanted:
        others = [column for column in columns if known not in columns and column not in wanted]
        near = [column for column in others if _is_near(column, known)]
        if known in needed and known not in columns:
            hint = f" (rename {near[0]!r}?)" if near else ""
            problems.append(f"no column {known!r}; the table's columns are {listed}{hint}")
        else:
            problems += [
                f"column {column!r} is not used (did you mean {known!r}?): rename it to that or to another word"
                for column in near
            ]
    return problems


def _is_near(column: str, known: str) -> bool:
    """Whether a column may be meant for a known one: "patient_id", "lable", "subject", but not "patient_age"."""
    name = re.sub(r"[\W_]", "", column.lower())
    if name in _OTHER_WORDS.get(known, ()):
        return True
    if name.startswith(known) or name.endswith(known):
        return len(name) <= len(known) + 2
    return len(known) > 4 and difflib.SequenceMatcher(None, name, known).ratio() >= 0.8
