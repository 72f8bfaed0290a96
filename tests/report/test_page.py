from __future__ import annotations

import base64
import csv
import io
import json
import math
from html.parser import HTMLParser
from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_pipelines.metrics import classification_metrics
from monai_pipelines.report import embedding_figure, read_history, results, write_report

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
    return [{**row, "shortcut_prob": {"colour": rng.dirichlet(np.ones(len(row["prob"])))}} for row in rows]


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
        unit="scan",
        history=HISTORY,
        run={"seed": 7, "chain": {"name": "lung_ct"}, "root": PurePosixPath("a/b"), "command": "python -m x --y"},
        samples=[("scan 1", np.random.default_rng(0).random((1, 12, 10, 8)))],
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"classes.png", "confusion_matrix.png", "roc.png", "history.png"}
    assert files == pictures | {"predictions.csv", "metrics.json", "report.html"}
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    stored = _strict(tmp_path / "out/metrics.json")
    assert stored == result
    prob, label = np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label))
    shortcut = np.array([row["shortcut_prob"]["colour"] for row in rows])
    assert stored["shortcut"] == pytest.approx(classification_metrics(shortcut, label))
    assert (stored["num_scans"], stored["num_patients"], stored["num_unlabelled"]) == (40, 20, 1)
    assert [size["num_scans"] for size in stored["classes"].values()] == np.bincount(label).tolist()
    assert stored["skipped"] == [{"image": "scans/broken", "reason": "LoadCT: no DICOM in it"}]
    matrix = np.zeros((2, 2), int)
    np.add.at(matrix, (label, prob.argmax(1)), 1)
    assert stored["confusion_matrix"] == matrix.tolist()
    assert stored["run"] == {"seed": 7, "chain": {"name": "lung_ct"}, "root": "a/b", "command": "python -m x --y"}

    page = _Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    ends = "{:.3f} to {:.3f}".format(*stored["intervals"]["roc_auc"])
    assert len(page.links) == 5
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    for wanted in (
        "40 scans of 20 patients scored, 1 skipped",
        f"ROC AUC {stored['metrics']['roc_auc']:.3f} 95%: {ends} shortcut {stored['shortcut']['roc_auc']:.3f}",
        f"0.5 is guessing {stored['metrics']['roc_auc']:.3f} 95%: {ends} {stored['shortcut']['roc_auc']:.3f}",
        "bootstrap resamples of whole patients",
        "The intervals tell what other patients of the same kind would change",
        "scans/broken LoadCT: no DICOM in it",
        "On the same scans the model's ROC AUC",
        "logistic regression on cheap features (colour)",
        "1 scan has no label and is not scored",
        "Best validation ROC AUC at epoch 3",
        "Run it again python -m x --y",
    ):
        assert wanted in page.text
    assert "p99" not in page.text


def test_smallest_report_has_no_empty_section(tmp_path):
    write_report(tmp_path, title="T", rows=_rows(), class_names=CLASSES)
    assert not (tmp_path / "history.png").exists()
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for heading in (
        *("Training", "Skipped", "What was run", "What the model sees", "Run it again", "shortcut 0."),
        *("Shortcuts", "Most confident mistakes", "What looks alike", "at 0.5 Shortcut", "Spread"),
    ):
        assert heading not in page.text
    assert "No shortcut baseline was computed" in page.text


def test_where_the_network_looked(tmp_path):
    results = {"num_slides": 9, "relative_entropy": 0.71234, "num_annotated": 4, "tile_auc": 0.91234,
               "tile_auc_interval": [0.85, 0.97]}  # fmt: skip
    pictures = [("true: ill", np.zeros((3, 500, 1600), np.uint8)), ("true: healthy", np.zeros((3, 90, 60), np.uint8))]
    explained = SimpleNamespace(results=results, pictures=pictures)
    nothing = SimpleNamespace(results={}, pictures=[])
    options = {"title": "T", "rows": _rows(), "class_names": CLASSES, "unit": "slide"}
    result = write_report(tmp_path, **options, explanations=[nothing, explained])
    assert result["explanations"] == _strict(tmp_path / "metrics.json")["explanations"] == [results]
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for wanted in (
        "a tile AUC of 0.912 (95%: 0.850 to 0.970)",
        "of the same slide, mean of 4 slides",
        "entropy of the attention is 0.712 of that of even attention, mean of 9 slides",
        "true: ill",
    ):
        assert wanted in page.text
    sizes = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).size for link in page.links]
    assert {(1200, 375), (60, 90)} <= set(sizes)

    assert write_report(tmp_path, **options, explanations=[nothing])["explanations"] == []
    assert "Where the network looked" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_pictures_without_figures_of_merit(tmp_path):
    """A single tile has no entropy, slides without annotation no AUC."""
    explained = SimpleNamespace(
        results={"num_slides": 1, "relative_entropy": None}, pictures=[("c", np.zeros((3, 9, 9)))]
    )
    write_report(tmp_path, title="T", rows=_rows(), class_names=CLASSES, explanations=[explained])
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Where the network looked" in text
    assert "entropy" not in text
    assert "tile AUC" not in text


def test_model_below_the_shortcut_is_told(tmp_path):
    rows = [{**row, "shortcut_prob": {"colour": np.eye(2)[row["label"]]}} for row in _rows()]
    write_report(tmp_path, title="T", rows=rows, class_names=CLASSES)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = _Page(page).text
    assert '<p class="note warn"><strong>The model does not beat the shortcut</strong>' in page
    assert "Treat it as not having learnt the classes." in text
    assert "disease" not in text


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


def test_threshold_stands_beside_the_half(tmp_path):
    rows = _with_shortcut(_rows())
    stored = write_report(tmp_path, title="T", rows=rows, class_names=CLASSES, threshold=0.3)
    assert stored == _strict(tmp_path / "metrics.json")
    prob, label = np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])
    assert stored["threshold"] == 0.3
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label, threshold=0.3))
    assert stored["metrics_at_half"] == pytest.approx(classification_metrics(prob, label, threshold=0.5))
    assert np.array(stored["confusion_matrix"]).sum(0).tolist() == np.bincount(prob[:, 1] >= 0.3).tolist()
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    values = [stored[name]["recall"] for name in ("metrics", "metrics_at_half", "shortcut")]
    assert "Figure Model at 0.3 Model at 0.5 Shortcut Difference" in text
    ends = "{:.3f} to {:.3f}".format(*stored["intervals"]["recall"])
    assert "{:.3f} 95%: {} {:.3f} {:.3f}".format(values[0], ends, *values[1:]) in text
    assert "ill , predicted from a probability of 0.3 on" in text
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        assert [int(line["predicted"]) for line in csv.DictReader(file)] == (prob[:, 1] >= 0.3).tolist()

    same = write_report(tmp_path, title="T", rows=rows, class_names=CLASSES, threshold=0.5)
    assert same["metrics_at_half"] is None
    assert "Model at 0.5 Shortcut" in _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_several_labels_each(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (30, 3))
    rows = [
        {"image": f"{k}.png", "label": own.tolist(), "prob": rng.random(3), "shortcut_prob": {"size": rng.random(3)}}
        for k, own in enumerate(label)
    ]
    names = ["nodule", "edema", "hernia"]
    stored = write_report(tmp_path, title="T", rows=rows, class_names=names, multilabel=True)
    assert stored == _strict(tmp_path / "metrics.json")
    assert stored["metrics"] == pytest.approx(classification_metrics([row["prob"] for row in rows], label))
    assert [size["num_scans"] for size in stored["classes"].values()] == label.sum(0).tolist()
    assert not (tmp_path / "confusion_matrix.png").exists()
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Any number of the 3 classes may apply to an image" in text
    assert "share of all labels, one for each class and image, that are right" in text
    assert "positive class" not in text
    assert stored["num_patients"] is None
    assert "30 images scored, patients unknown." in text
    assert "where several images are of one patient, the intervals are too narrow" in text
    assert "whose patient" not in text
    assert "table" not in text


def test_pictures_classes_and_shortcuts_stand_in_the_page(tmp_path):
    rows = [
        {**row, "spread": 0.25 if row["prob"].argmax() == row["label"] else 0.5, "shortcut_prob": cheap}
        for row, cheap in zip(_rows(), _cheap(), strict=True)
    ]
    stored = write_report(
        tmp_path,
        title="T",
        rows=rows,
        class_names=CLASSES,
        splits={"train": [{"label": k % 4 == 0, "patient": f"q{k // 8}"} for k in range(40)], "test": rows},
        samples=[("healthy\na.png", np.zeros((3, 28, 28), np.uint8)), ("ill\nb.png", np.zeros((1, 300, 200)))],
        mistakes=[("true: ill\npredicted: healthy, 0.98", np.zeros((3, 224, 224), np.uint8))],
        embeddings={"raw_pixels": embedding_figure([[0, 0], [1, 1]], [0, 1], CLASSES, "Raw pixels")},
    )
    assert (tmp_path / "embedding_raw_pixels.png").read_bytes().startswith(b"\x89PNG")
    assert stored["splits"]["train"]["imbalance_factor"] == 3
    assert (stored["splits"]["train"]["num_patients"], stored["splits"]["test"]["num_patients"]) == (5, 20)
    assert stored["shortcut_name"] == "size"
    assert stored["shortcut"] == stored["shortcuts"]["size"]
    assert stored["spread"] == {"right": 0.25, "wrong": 0.5}
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [link.split(";")[0][5:] for link in page.links] == (
        ["image/png"] * 2 + ["image/jpeg"] + ["image/png"] * 2 + ["image/jpeg", "image/png"]
    )
    sizes = [stored["splits"][name]["classes"][CLASSES[1]]["num_scans"] for name in ("train", "test")]
    figures = stored["shortcuts"]["colour"]
    for wanted in (
        "Class Train Test healthy",
        f"ill positive class {sizes[0]} {sizes[1]} All images 40 40",
        "Imbalance factor images of the largest class for each of the smallest 3.0",
        f"Colour {figures['roc_auc']:.3f} {figures['accuracy']:.3f}",
        "Size the strongest",
        f"1 of {stored['num_wrong']} images with a wrong prediction",
        "0.250 where the prediction is right, 0.500 where it is wrong",
        "predicted: healthy, 0.98",
        "What looks alike",
    ):
        assert wanted in page.text


def test_page_without_intervals_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MAX_INTERVALS", 39)
    stored = write_report(tmp_path, title="T", rows=_rows(), class_names=CLASSES)
    assert stored["intervals"] == {}
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "95%" not in text
    assert "There are no intervals" in text


@pytest.mark.parametrize("known", [True, False])
def test_only_volumes_that_lie_in_a_patient_have_a_right_half(tmp_path, known):
    volume = torch.zeros(1, 8, 8, 8)
    sample = MetaTensor(volume, affine=torch.eye(4)) if known else volume
    write_report(tmp_path, title="T", rows=_rows(), class_names=CLASSES, samples=[("a", sample)])
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert ("right half. R: patient's right" in text) is known
    assert ("Three slices of each, through the middle." in text) is not known


def _cheap():
    rng = np.random.default_rng(2)
    good = [0.3 * rng.dirichlet([1, 1]) + 0.7 * np.eye(2)[row["label"]] for row in _rows()]
    return [{"colour": rng.dirichlet([1, 1]), "size": own} for own in good]


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
        mistakes=[(evil, np.zeros((1, 4, 4)))],
        splits={evil: _rows()},
    )
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(evil) > 10
    assert _strict(tmp_path / "metrics.json")["skipped"] == [{"image": evil, "reason": evil}]


def test_nothing_to_score_is_told_after_the_reasons_are_written(tmp_path):
    rows = [{"image": "x", "label": 0, "prob": None, "skipped": "empty"}]
    with pytest.raises(ValueError, match=r"wanted labelled images to score, got none of 1.*predictions\.csv"):
        write_report(tmp_path, title="T", rows=rows, class_names=CLASSES)
    assert "x,0,healthy,,,,,empty" in (tmp_path / "predictions.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({"prob": [0.2, 0.3, 0.5]}, CLASSES, "scans/0.nii.gz: wanted 2 probabilities"),
        ({"prob": None}, CLASSES, "or the reason why"),
        ({}, ["ill", "ill"], "must differ"),
        ({"shortcut_prob": {"colour": [0.5, 0.5]}}, CLASSES, "same baselines for all 40 scored rows, got 1"),
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
