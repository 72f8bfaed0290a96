"""What the tests of the page have in common."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np

CLASSES = ["healthy", "ill"]
HISTORY = [
    {"epoch": k, "lr": 1e-3, "train": {"loss": 1 / k, "f1": 0.5}, "val": {"loss": 1.1 / k, "roc_auc": 0.5 + k / 10}}
    for k in (1, 2, 3)
]


class Page(HTMLParser):
    """Text, links and pictures of a page; complains about tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.links, self.words, self.open, self.tags = [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def pictures(self):
        return [link for link in self.links if not link.startswith("#")]


def page_of(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


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
    return [{**row, "shortcut_prob": {"colour": rng.dirichlet(np.ones(len(row["prob"])))}} for row in rows]


def strict(path):
    def refuse(token):
        raise AssertionError(token)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
