"""The findings of an audit on disk: JSON, a table, and one page with pictures."""

from __future__ import annotations

import base64
import csv
import json
from collections import defaultdict
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from monai_pipelines.audit import Audit
from monai_pipelines.report.page import page_template
from monai_pipelines.report.pictures import in_turn

COLUMNS = ("name", "split", "class", "verdict", "size", "spacing", "low", "mean", "high", "file_type", "scanner",
           "outlier", "equal_to", "similar_to")  # fmt: skip
_NUM_SAMPLES = 12
_LISTED = 50  # of each finding on the page


def write_audit(output_dir: str | PathLike[str], audit: Audit, command: str) -> Path:
    """Write ``audit.json``, ``audit.csv`` (a row for each item) and ``audit.html``, which needs no network.

    Args:
        output_dir: folder, created if missing.
        audit: the findings.
        command: that made them, shown at the end of the page.

    Returns:
        the page.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    findings = audit.to_dict()
    text = json.dumps(findings, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "audit.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "audit.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rows(audit))
    page = folder / "audit.html"
    page.write_text(_page(audit, findings, command), encoding="utf-8")
    return page


def _rows(audit: Audit) -> list[dict[str, Any]]:
    others: dict[str, defaultdict[str, list[str]]] = {"equal_to": defaultdict(list), "similar_to": defaultdict(list)}
    for column, groups in (("equal_to", audit.exact), ("similar_to", audit.near)):
        for group in groups:
            for name in group.images:
                others[column][name] += [other for other in group.images if other != name]
    rows = []
    for item in audit.items:
        joined = {key: " x ".join(f"{v:g}" for v in item[key]) for key in ("size", "spacing") if item.get(key)}
        found = {column: " | ".join(names[item["name"]]) for column, names in others.items() if item["name"] in names}
        rows.append({**item, **joined, "outlier": "; ".join(audit.outliers.get(item["name"], ())), **found})
    return rows


def _page(audit: Audit, findings: dict[str, Any], command: str) -> str:
    shown = in_turn((item for item in audit.items if item["name"] in audit.pictures), _class_of, _NUM_SAMPLES)
    repaired = {
        item["name"]: item["verdict"]
        for item in audit.items
        if item["verdict"] != "ok" and item["name"] in audit.pictures
    }
    return page_template("audit.html.j2").render(
        audit=findings,
        num_items=len(audit.items),
        groups=[("equal", audit.exact), ("similar", audit.near)],
        repaired=repaired,
        samples=shown,
        sources={name: _source(audit, name) for name in _pictured(audit, shown)},
        listed=_LISTED,
        command=command,
    )


def _class_of(item: dict[str, Any]) -> str:
    return str(item["class"])


def _pictured(audit: Audit, shown: list[dict[str, Any]]) -> list[str]:
    """Names of the items whose pictures the page shows."""
    of_groups = [
        name for groups in (audit.exact, audit.near) for group in groups[:_LISTED] for name in group.images[:6]
    ]
    names = [*list(audit.outliers)[:_LISTED], *audit.blank[:_LISTED], *audit.not_hu[:_LISTED], *of_groups]
    return list(dict.fromkeys([*names, *(item["name"] for item in shown)]))


def _source(audit: Audit, name: str) -> str:
    content = BytesIO()
    Image.fromarray(audit.pictures[name]).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
