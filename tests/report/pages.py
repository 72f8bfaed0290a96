"""Pages read back through their `data-` ids, and evaluations to render."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest

from monai_pipelines.report import Evaluation, write_report

CLASSES = ["healthy", "ill"]
HISTORY = [
    {"epoch": k, "lr": 1e-3, "train": {"loss": 1 / k, "f1": 0.5}, "val": {"loss": 1.1 / k, "roc_auc": 0.5 + k / 10}}
    for k in (1, 2, 3)
]
_VOID = ("meta", "img")


@dataclass
class Cell:
    """An element with ``data-metric``."""

    tag: str
    section: str | None
    row: str | None
    attributes: dict
    words: list = field(default_factory=list)

    @property
    def value(self):
        return _number(self.attributes.get("data-value"))

    @property
    def interval(self):
        ends = [self.attributes.get(f"data-{end}") for end in ("low", "high")]
        return None if None in ends else [float(end) for end in ends]

    @property
    def shown(self):
        return " ".join(" ".join(self.words).split())

    def check(self):
        """The text of a value begins with it, rounded."""
        number = re.match(r"[-+\u2212]?[\d,]+(?:\.(\d+))?", self.shown)
        if self.value is None:
            assert not number or "data-value" not in self.attributes, self
        elif isinstance(self.value, float) and (number or self.tag == "td"):
            shown = float(number[0].replace(",", "").replace("\u2212", "-"))
            assert shown == pytest.approx(self.value, abs=0.501 * 10.0 ** -len(number[1] or "")), self


class Page(HTMLParser):
    """Cells, notes, sections, links and words of a page; complains about tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.notes, self.sections, self.links, self.words, self.tags = [], set(), [], [], [], set()
        self._open = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.notes.update(attributes.get("data-note", "").split())
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        if tag == "section":
            self.sections.append(attributes["id"])
        cell = None
        if "data-metric" in attributes:
            cell = Cell(tag, self._enclosing("section", "id"), self._enclosing("tr", "data-row"), attributes)
            self.cells.append(cell)
        if tag not in _VOID:
            self._open.append((tag, attributes, cell))

    def handle_endtag(self, tag):
        opened, _, cell = self._open.pop()
        assert opened == tag
        if cell:
            cell.check()

    def handle_data(self, data):
        if not self._open or self._open[-1][0] != "style":
            self.words.append(data)
        for _, _, cell in self._open:
            if cell:
                cell.words.append(data)

    def _enclosing(self, tag, name):
        return next((attributes.get(name) for opened, attributes, _ in self._open[::-1] if opened == tag), None)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def pictures(self):
        return [link for link in self.links if not link.startswith("#")]

    def find(self, metric, **where):
        """Cells of a metric; ``where``: ``of``, ``section``, ``row``."""
        found = [cell for cell in self.cells if cell.attributes["data-metric"] == metric]
        if "of" in where:
            found = [cell for cell in found if cell.attributes.get("data-of") == where["of"]]
        return [cell for cell in found if all(getattr(cell, name) == where[name] for name in where if name != "of")]

    def cell(self, metric, **where):
        (cell,) = self.find(metric, **where)
        return cell

    def value(self, metric, **where):
        return self.cell(metric, **where).value


def _number(text):
    try:
        return float(text) if text not in (None, "", "None") else None
    except ValueError:
        return text


def page_of(folder, name="report.html"):
    return Page((folder / name).read_text(encoding="utf-8"))


def report_of(folder, rows, classes=CLASSES, title="T", **options):
    """Write a report; its metrics and its page."""
    metrics = write_report(folder, Evaluation(title, rows, classes, **options))
    return metrics, page_of(folder)


def make_rows(num=40, num_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, num)
    prob = 0.6 * rng.dirichlet(np.ones(num_classes), num) + 0.4 * np.eye(num_classes)[label]
    return [
        {
            "image": f"scans/{k}.nii.gz",
            "patient": f"p{k // 2}",
            "label": int(label[k]),
            "prob": prob[k],
            "skipped": None,
        }
        for k in range(num)
    ]


def with_shortcut(rows, seed=1):
    rng = np.random.default_rng(seed)
    return [{**row, "shortcut_prob": {"color": rng.dirichlet(np.ones(len(row["prob"])))}} for row in rows]


def strict(path):
    def refuse(token):
        raise AssertionError(token)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
