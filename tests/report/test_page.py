from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import PurePosixPath

import numpy as np
import pytest

from monai_pipelines.metrics import classification_metrics
from monai_pipelines.report import read_history, write_predictions, write_report

CLASSES = ["healthy", "ill"]
HISTORY = [
    {"epoch": k, "lr": 1e-3, "train": {"loss": 1 / k, "f1": 0.5}, "val": {"loss": 1.1 / k, "roc_auc": 0.5 + k / 10}}
    for k in (1, 2, 3)
]


class _Page(HTMLParser):
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


def _rows(num=40, num_classes=2, seed=0):
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


def _with_shortcut(rows, seed=1):
    rng = np.random.default_rng(seed)
    return [{**row, "shortcut_prob": rng.dirichlet(np.ones(len(row["prob"])))} for row in rows]


def _strict(path):
    def refuse(token):
        raise AssertionError(token)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_full_report(tmp_path):
    rows = _with_shortcut(_rows())
    broken = {"image": "scans/broken", "patient": "p99", "label": 1, "prob": None, "skipped": "LoadCT: no DICOM in it"}
    unlabelled = {**rows[0], "image": "scans/new.nii", "label": None}
    result = write_report(
        tmp_path / "out",
        title="Lung CT",
        rows=[broken, *rows, unlabelled],
        class_names=CLASSES,
        history=HISTORY,
        run={"seed": 7, "chain": {"name": "lung_ct"}, "root": PurePosixPath("a/b"), "command": "python -m x --y"},
        samples=[("scan 1", np.random.default_rng(0).random((1, 12, 10, 8)))],
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"confusion_matrix.png", "roc.png", "history.png"}
    assert files == pictures | {"predictions.csv", "metrics.json", "report.html"}
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    stored = _strict(tmp_path / "out/metrics.json")
    assert stored == result
    prob, label = np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label))
    shortcut = np.array([row["shortcut_prob"] for row in rows])
    assert stored["shortcut"] == pytest.approx(classification_metrics(shortcut, label))
    assert (stored["num_scans"], stored["num_patients"], stored["num_unlabelled"]) == (40, 20, 1)
    assert [size["num_scans"] for size in stored["classes"].values()] == np.bincount(label).tolist()
    assert stored["skipped"] == [{"image": "scans/broken", "reason": "LoadCT: no DICOM in it"}]
    matrix = np.zeros((2, 2), int)
    np.add.at(matrix, (label, prob.argmax(1)), 1)
    assert stored["confusion_matrix"] == matrix.tolist()
    assert stored["run"] == {"seed": 7, "chain": {"name": "lung_ct"}, "root": "a/b", "command": "python -m x --y"}

    page = _Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert len(page.links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    for wanted in (
        "40 scans of 20 patients scored, 1 skipped",
        f"ROC AUC {stored['metrics']['roc_auc']:.3f} shortcut {stored['shortcut']['roc_auc']:.3f}",
        "scans/broken LoadCT: no DICOM in it",
        "1 scan has no label and is not scored",
        "Best validation ROC AUC at epoch 3",
        "point estimate without an interval",
        "Run it again python -m x --y",
    ):
        assert wanted in page.text
    assert "p99" not in page.text


def test_smallest_report_has_no_empty_section(tmp_path):
    write_report(tmp_path, title="T", rows=_rows(), class_names=CLASSES)
    assert not (tmp_path / "history.png").exists()
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for heading in ("Training", "Skipped scans", "What was run", "What the model sees", "Run it again", "shortcut 0."):
        assert heading not in page.text
    assert "No shortcut baseline was computed" in page.text


def test_model_below_the_shortcut_is_told(tmp_path):
    rows = [{**row, "shortcut_prob": np.eye(2)[row["label"]]} for row in _rows()]
    write_report(tmp_path, title="T", rows=rows, class_names=CLASSES)
    assert "does not beat the shortcut" in _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_absent_class_is_null_and_na(tmp_path):
    rows = [row for row in _with_shortcut(_rows(num_classes=3)) if row["label"] != 2]
    stored = write_report(tmp_path, title="T", rows=rows, class_names=["a", "b", "c"])
    assert stored == _strict(tmp_path / "metrics.json")
    assert stored["per_class"]["c"]["roc_auc"] is None
    assert math.isfinite(stored["metrics"]["roc_auc"])
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert f"c 0 n/a n/a n/a {stored['per_class']['c']['specificity']:.3f} n/a n/a" in text

    single = write_report(
        tmp_path, title="T", rows=[row for row in rows if row["label"] == 0], class_names=["a", "b", "c"]
    )
    assert single["metrics"]["roc_auc"] is None


def test_hostile_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&$x$"
    rows = [*_rows(), {"image": evil, "patient": None, "label": None, "prob": None, "skipped": evil}]
    write_report(
        tmp_path,
        title=evil,
        rows=rows,
        class_names=[evil, f"b{evil}"],
        run={evil: evil, "command": evil},
        samples=[(evil, np.zeros((1, 4, 4, 4)))],
    )
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(evil) > 10
    assert _strict(tmp_path / "metrics.json")["skipped"] == [{"image": evil, "reason": evil}]


def test_predictions_come_back(tmp_path):
    rows = _rows(num_classes=3)
    rows[4] = {"image": 'a,"b"\nc', "patient": "p2", "label": 1, "prob": None, "skipped": "too, bad"}
    rows[5]["split"] = "test"
    names = ["a", "b,c", "d"]
    write_predictions(tmp_path / "predictions.csv", rows, names)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    assert reader.fieldnames == (
        ["image", "patient", "split", "label", "label_name", "prob_a", "prob_b,c", "prob_d"]
        + ["predicted", "predicted_name", "skipped"]
    )
    assert [line["image"] for line in lines] == [row["image"] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        assert int(line["label"]) == row["label"]
        assert line["label_name"] == names[row["label"]]
        if row["skipped"]:
            assert (line["skipped"], line["prob_a"], line["predicted"]) == ("too, bad", "", "")
        else:
            assert [float(line[f"prob_{name}"]) for name in names] == row["prob"].tolist()
            assert line["predicted_name"] == names[int(line["predicted"])] == names[row["prob"].argmax()]
            assert line["skipped"] == ""
    assert lines[5]["split"] == "test"


def test_nothing_to_score_is_told_after_the_reasons_are_written(tmp_path):
    rows = [{"image": "x", "label": 0, "prob": None, "skipped": "empty"}]
    with pytest.raises(ValueError, match=r"wanted labelled scans to score, got none of 1.*predictions\.csv"):
        write_report(tmp_path, title="T", rows=rows, class_names=CLASSES)
    assert "x,0,healthy,,,,,empty" in (tmp_path / "predictions.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({"prob": [0.2, 0.3, 0.5]}, CLASSES, "scans/0.nii.gz: wanted 2 probabilities"),
        ({"prob": None}, CLASSES, "or the reason why"),
        ({}, ["ill", "ill"], "must differ"),
        ({"shortcut_prob": [0.5, 0.5]}, CLASSES, "all 40 scored scans or none, got 1"),
        ({"prob": [math.nan, 0.5]}, CLASSES, "finite"),
    ],
)
def test_bad_rows_are_told(tmp_path, change, names, message):
    rows = _rows()
    rows[0] |= change
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, title="T", rows=rows, class_names=names)


def test_history_comes_back_or_is_refused(tmp_path):
    path = tmp_path / "history.json"
    path.write_text(json.dumps(HISTORY))
    assert read_history(path) == HISTORY
    for bad in ({"epoch": 1}, [{"train": {}}], [1]):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="wanted a list"):
            read_history(path)
