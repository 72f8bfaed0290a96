"""``audit``: the images of a data set counted, measured and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from monai_pipelines.data.audit import Audit

_SHOWN = 20  # lines of a list


def audit(
    source: Annotated[Path, typer.Argument(help="Folder of class folders, zip of one, or CSV table.")],
    classes: Annotated[str | None, typer.Option(help="Class names by index, a,b,...; default: the folders'.")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its first group in a file's name is the patient.")
    ] = None,
    multilabel: Annotated[bool, typer.Option(help="Labels of a table are names joined by |.")] = False,
    similarity: Annotated[float, typer.Option(min=0, max=1, help="Threshold for near duplicates; tiles: 0.5.")] = 0.95,
    extract_dir: Annotated[Path | None, typer.Option(help="Where a zip is unpacked; default: beside it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json.")] = None,
) -> None:
    """Count, measure and compare the images of a data set; exit status 1 if something must be fixed first."""
    import json

    from monai_pipelines.data import list_images
    from monai_pipelines.data.audit import audit_images

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    findings = audit_images(list_images(source, names, patient_pattern, multilabel, extract_dir), similarity)
    print_audit(findings)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "audit.json"
        file.write_text(json.dumps(findings.to_dict(), indent=2) + "\n", encoding="utf-8")
        typer.echo(f"wrote {file}")
    if findings.to_fix:
        raise typer.Exit(1)


def print_audit(audit: Audit) -> None:
    """Print the findings as tables; long lists are cut, `Audit.to_dict` has everything."""
    console = Console()
    table = Table("class", *audit.counts, "height x width (median)", "file types", "colors", title=audit.source)
    for name, size in audit.sizes.items():
        counts = (str(by_class[name]) for by_class in audit.counts.values())
        types, colors = (
            ", ".join(f"{key} {count}" for key, count in sorted(values[name].items()))
            for values in (audit.file_types, audit.colors)
        )
        table.add_row(escape(name), *counts, _size_text(size), types, colors)
    factors = (f"{factor:.1f}" if factor else "a class is empty" for factor in audit.imbalance.values())
    table.add_section()
    table.add_row("largest / smallest", *factors)
    console.print(table)
    _print_lines(console, "Problems of the source", audit.problems)
    _print_lines(console, "Unreadable images", [f"{name}: {reason}" for name, reason in audit.unreadable.items()])
    patients = [
        "; ".join(f"{split}: {len(names)} image(s), such as {names[0]}" for split, names in patient.items())
        for patient in audit.patients_in_several_splits
    ]
    _print_lines(console, "Patients in several splits", patients)
    for title, groups in (("Equal images", audit.exact), ("Near duplicates to review", audit.near)):
        lines = [
            f"{group.kind} ({group.similarity:.3f}): "
            + ", ".join(f"{n} [{c}, {s}]" for n, c, s in zip(group.images, group.classes, group.splits, strict=True))
            for group in groups
        ]
        _print_lines(console, title, lines)
    to_fix = "; ".join(audit.to_fix) or "nothing"
    console.print(f"[bold]To fix:[/bold] {to_fix}. To review: {len(audit.near)} groups of near duplicates.")


def _size_text(size: Mapping[str, Any]) -> str:
    if not size:
        return "-"
    (low, mid, high), (narrow, middle, wide) = size["height"], size["width"]
    return f"{mid} x {middle}" + ("" if size["num_sizes"] == 1 else f" ({low}-{high} x {narrow}-{wide})")


def _print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        table = Table(f"{title}: {len(lines)}")
        for line in lines[:_SHOWN]:
            table.add_row(escape(line))
        if len(lines) > _SHOWN:
            table.add_row(f"... and {len(lines) - _SHOWN} more")
        console.print(table)
