"""``audit``: the images, scans or slides of a data set counted, measured and compared."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from monai_pipelines.commands import SchedulerOption, read_knobs

if TYPE_CHECKING:
    from rich.console import Console

    from monai_pipelines.audit import Audit

_SHOWN = 20  # lines of a list


def audit(
    source: Annotated[str, typer.Argument(help="CSV table, folder of class folders, scans or slides, or zip.")],
    kind: Annotated[
        Literal["image", "scan", "slide"] | None, typer.Option(help="Default: by the names and headers of the files.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Class names by index, a,b,...; default: the folders'.")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its first group in a file's name is the patient.")
    ] = None,
    multilabel: Annotated[bool, typer.Option(help="Labels of a table are names joined by |.")] = False,
    similarity: Annotated[float, typer.Option(min=0, max=1, help="Threshold for near duplicates; tiles: 0.5.")] = 0.95,
    knob: Annotated[
        list[str] | None, typer.Option(help="Of LoadCT, as name=value, such as tilt=correct; repeatable.")
    ] = None,
    extract_dir: Annotated[Path | None, typer.Option(help="Where a zip is unpacked; default: beside it.")] = None,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Processes that read; default: one per core.")] = None,
    scheduler: SchedulerOption = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.html, audit.csv and audit.json.")] = Path("audit"),
) -> None:
    """Read, count, measure and compare a data set; exit status 1 if something must be fixed before training."""
    from monai_pipelines.audit import audit_cohort, kind_named, list_source
    from monai_pipelines.report.audit import write_audit

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    found, listing = list_source(source, kind, names, patient_pattern, multilabel, extract_dir)
    findings = audit_cohort(listing, kind_named(found, **read_knobs(knob)), similarity, num_workers, scheduler)
    print_audit(findings)
    command = shlex.join(["python", "-m", "monai_pipelines", *sys.argv[1:]])
    typer.echo(f"wrote {write_audit(out, findings, command)}")
    if findings.to_fix:
        raise typer.Exit(1)


def print_audit(audit: Audit) -> None:
    """Print the findings as tables; long lists are cut, `Audit.to_dict` has everything."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("class", *audit.counts, "size (median)", "spacing", "file types", "colors", title=audit.source)
    for name, size in audit.sizes.items():
        counts = (str(by_class[name]) for by_class in audit.counts.values())
        tallies = (
            ", ".join(f"{escape(key)}: {count}" for key, count in sorted(found[name].items()))
            for found in (audit.file_types, audit.colors)
        )
        table.add_row(escape(name), *counts, _extent(size), _extent(audit.spacings[name]), *tallies)
    factors = (f"{factor:.1f}" if factor else "a class is empty" for factor in audit.imbalance.values())
    table.add_section()
    table.add_row("largest / smallest", *factors)
    console.print(table)
    _print_lines(console, "Problems of the source", audit.problems)
    _print_lines(console, f"Unreadable {audit.unit}s", [f"{name}: {why}" for name, why in audit.unreadable.items()])
    _print_lines(console, "Blank", audit.blank)
    _print_lines(console, "Not in HU", audit.not_hu)
    patients = [
        "; ".join(f"{split}: {len(names)} {audit.unit}(s), such as {names[0]}" for split, names in patient.items())
        for patient in audit.patients_in_several_splits
    ]
    _print_lines(console, "Patients in several splits", patients)
    for title, groups in ((f"Equal {audit.unit}s", audit.exact), ("Near duplicates to review", audit.near)):
        lines = [
            f"{group.kind} ({group.similarity:.3f}): "
            + ", ".join(f"{n} [{c}, {s}]" for n, c, s in zip(group.images, group.classes, group.splits, strict=True))
            for group in groups
        ]
        _print_lines(console, title, lines)
    _print_lines(console, "Outliers", [f"{name}: {'; '.join(why)}" for name, why in audit.outliers.items()])
    if audit.shortcuts:
        shortcuts = Table("features", "ROC AUC", "95% interval", title="What cheap features reveal about the class")
        for row in audit.shortcuts:
            interval = "n/a" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            shortcuts.add_row(row["features"], f"{row['roc_auc']:.3f}", interval)
        console.print(shortcuts)
    for title, findings in (("To fix", audit.to_fix), ("To review", audit.to_review)):
        console.print(f"[bold]{title}:[/bold] {'; '.join(findings) or 'nothing'}.")


def _extent(extent: Mapping[str, Any]) -> str:
    """Medians along the axes, with the smallest and largest where they differ."""
    ends = [value for axis, value in extent.items() if axis != "num_sizes"]
    if not ends:
        return "-"
    medians = " x ".join(_number(middle) for _, middle, _ in ends)
    if extent["num_sizes"] == 1:
        return medians
    ranges = (_number(low) if low == high else f"{_number(low)}-{_number(high)}" for low, _, high in ends)
    return f"{medians} ({' x '.join(ranges)})"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if lines:
        table = Table(f"{title}: {len(lines)}")
        for line in lines[:_SHOWN]:
            table.add_row(escape(line))
        if len(lines) > _SHOWN:
            table.add_row(f"... and {len(lines) - _SHOWN} more")
        console.print(table)
