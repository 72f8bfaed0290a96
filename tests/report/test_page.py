"""The page: its sections, figures and words."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

from monai_pipelines.metrics import classification_metrics, temper
from monai_pipelines.report import write_report
from monai_pipelines.report.saved import save_picture
from monai_pipelines.report.words import GROUPS, METHODS, rule_words, told_metrics
from tests.report.pages import CLASSES, HISTORY, Page, make_rows, page_of, strict, with_shortcut

pytestmark = pytest.mark.usefixtures("undrawn")


def test_full_report(tmp_path, monkeypatch):
    monkeypatch.undo()
    rows = with_shortcut(make_rows())
    broken = {"image": "scans/broken", "patient": "p99", "label": 1, "prob": None, "skipped": "LoadCT: no DICOM in it"}
    unlabelled = {**rows[0], "image": "scans/new.nii", "label": None}
    volume = np.random.default_rng(0).random((1, 12, 10, 8))
    result = write_report(
        tmp_path,
        title="Lung CT",
        rows=[broken, *rows, unlabelled],
        class_names=CLASSES,
        unit="scan",
        history=HISTORY,
        run={"seed": 7, "chain": {"name": "lung_ct"}, "root": PurePosixPath("a/b"), "command": "python -m x --y"},
        samples=[save_picture(tmp_path, "sample-0", "scan 1", volume)],
    )
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    pictures = {"classes.png", "confusion_matrix.png", "roc.png", "precision_recall.png", "calibration.png",
                "decision_curve.png", "risk_coverage.png", "history.png"}  # fmt: skip
    assert files == pictures | {"predictions.csv", "metrics.json", "report.html"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    stored = strict(tmp_path / "metrics.json")
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

    page = page_of(tmp_path)
    ends = "{:.3f} to {:.3f}".format(*stored["intervals"]["roc_auc"])
    sizes = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).size for link in page.pictures]
    assert len(sizes) == 9
    assert min(map(min, sizes)) > 100
    for wanted in (
        "40 scans of 20 patients scored, 1 skipped",
        f"Of {label.sum()} scans with ill the model finds {matrix[1, 1]} and misses {matrix[1, 0]}.",
        f"Of {40 - label.sum()} without, it calls {matrix[0, 1]} ill by mistake.",
        f"ROC AUC {stored['metrics']['roc_auc']:.3f} 95%: {ends} shortcut {stored['shortcut']['roc_auc']:.3f}",
        f"0.5 is guessing {stored['metrics']['roc_auc']:.3f} 95%: {ends} {stored['shortcut']['roc_auc']:.3f}",
        "2,000 bootstrap resamples of whole patients",
        "The intervals tell what other patients of the same kind would change",
        "scans/broken LoadCT: no DICOM in it",
        "On the same scans the model's ROC AUC",
        "logistic regression on cheap features (colour)",
        "1 scan has no label and is not scored",
        "Best validation ROC AUC at epoch 3",
        "No threshold was chosen: the likelier class is predicted, which is ill above 0.5.",
        "The probabilities are as the network gives them: not calibrated.",
        "The probabilities are not calibrated.",
        "No subgroups were looked at",
        "It was not checked whether patients or scans stand in more than one split.",
        "Run it again python -m x --y",
    ):
        assert wanted in page.text
    assert "p99" not in page.text


def test_contents_lead_to_the_sections_there_are(tmp_path):
    write_report(tmp_path, title="T", rows=make_rows(), class_names=CLASSES)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([\w-]+)">', text)
    assert sections == ["data", "metrics", "threshold", "calibration", "per-class", "figures", "uncertainty", "limits"]
    assert re.findall(r'<a href="#([\w-]+)">', text) == sections
    assert not (tmp_path / "history.png").exists()
    page = page_of(tmp_path)
    for heading in (
        *("Training", "Skipped", "What was run", "What the model sees", "Run it again", "shortcut 0."),
        *("Shortcuts", "Most confident mistakes", "What looks alike", "at 0.5 Shortcut", "Spread", "Audit"),
    ):
        assert heading not in page.text
    assert "No shortcut baseline was computed" in page.text


def test_every_figure_is_told_and_none_twice(tmp_path):
    for num, rows in ((2, make_rows()), (3, make_rows(num_classes=3))):
        stored = write_report(tmp_path, title="T", rows=rows, class_names=["a", "b", "c"][:num])
        assert sorted(stored["metrics"].keys() - {"kappa_quadratic"}) == sorted(
            name for group in GROUPS.values() for name in group if name in stored["metrics"]
        )
        table = page_of(tmp_path).text.partition("Figure Model")[2].partition("Calibration Whether")[0]
        for name, (short, _) in told_metrics("image", multilabel=False).items():
            assert (short in table) is (name in stored["metrics"])


def test_where_attention_was(tmp_path):
    results = {"num_slides": 9, "relative_entropy": 0.71234, "num_annotated": 4, "tile_auc": 0.91234,
               "tile_auc_interval": [0.85, 0.97]}  # fmt: skip
    pictures = [
        save_picture(tmp_path, "looked-0", "true: ill", np.zeros((3, 500, 1600), np.uint8), 1200),
        save_picture(tmp_path, "looked-1", "true: healthy", np.zeros((3, 90, 60), np.uint8), 1200),
    ]
    nothing = {"results": {}, "pictures": []}
    options = {"title": "T", "rows": make_rows(), "class_names": CLASSES, "unit": "slide"}
    explanations = [nothing, {"results": results, "pictures": pictures}]
    result = write_report(tmp_path, **options, explanations=explanations)
    assert result["explanations"] == strict(tmp_path / "metrics.json")["explanations"] == [results]
    page = page_of(tmp_path)
    for wanted in (
        "a tile AUC of 0.912 (95%: 0.850 to 0.970)",
        "of the same slide, mean of 4 slides",
        "entropy of the attention is 0.712 of that of even attention, mean of 9 slides",
        "red ones more than the mean tile",
        "true: ill",
    ):
        assert wanted in page.text
    looked = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).size for link in page.pictures[-2:]]
    assert looked == [(1200, 375), (60, 90)]

    assert write_report(tmp_path, **options, explanations=[nothing])["explanations"] == []
    assert "Where the network looked" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_attention_without_figures_of_merit(tmp_path):
    """A single tile has no entropy, slides without annotation no AUC."""
    pictures = [save_picture(tmp_path, "looked-0", "c", np.zeros((3, 9, 9)))]
    explained = {"results": {"num_slides": 1, "relative_entropy": None}, "pictures": pictures}
    write_report(tmp_path, title="T", rows=make_rows(), class_names=CLASSES, explanations=[explained])
    text = page_of(tmp_path).text
    assert "Where the network looked" in text
    assert "entropy" not in text
    assert "tile AUC" not in text


@pytest.mark.parametrize(
    ("method", "stage", "mm_per_cell", "told"),
    [
        ("gradcam", "layer2", [30.2, 29.9, 41.0], "30 \u00d7 30 \u00d7 41 mm apart: nothing finer can be told."),
        ("gradcam++", "layer2", None, "8 \u00d7 8 \u00d7 16 pixels apart: nothing finer can be told."),
        ("occlusion", None, None, "A patch of the scan is covered, place by place"),
    ],
)
def test_how_finely_a_map_tells_is_told(tmp_path, method, stage, mm_per_cell, told):
    results = {"method": method, "stage": stage, "cells": [8, 8, 4], "cell_px": [8.0, 8.0, 16.0],
               "mm_per_cell": mm_per_cell, "cases": [{"image": "a.nii", "why": "best"}]}  # fmt: skip
    pictures = [save_picture(tmp_path, "looked-0", "best: true ill", np.zeros((3, 90, 60), np.uint8))]
    explained = [{"results": results, "pictures": pictures}]
    stored = write_report(
        tmp_path, title="T", rows=make_rows(), class_names=CLASSES, unit="scan", explanations=explained
    )
    assert stored["explanations"] == [results]
    text = page_of(tmp_path).text
    place = "The map is that of stage layer2 , a" if stage else "The map has a"
    for wanted in (METHODS[method], f"{place} grid of 8 \u00d7 8 \u00d7 4 cells, ", told, "best: true ill"):
        assert wanted in text
    assert "The maps show where the network looked in a few scans." in text
    assert "attention" not in text
    assert f"{'log-odds of' if method == 'occlusion' else 'speak most for'} ill (whatever is predicted)" in text
    assert "each map's own maximum" in text


def test_the_class_that_a_map_explains_is_told(tmp_path):
    results = {"method": "gradcam", "stage": "layer2", "cells": [8], "cell_px": [8.0], "mm_per_cell": None}
    options = {"title": "T", "class_names": ["a", "b", "c"], "explanations": [{"results": results, "pictures": []}]}
    for multilabel, told in ((False, "the predicted class"), (True, "the likeliest class")):
        rows = make_rows(num_classes=3)
        if multilabel:
            rows = [{**row, "label": np.eye(3, dtype=int)[row["label"]].tolist()} for row in rows]
        write_report(tmp_path, **options, rows=rows, multilabel=multilabel)
        assert f"speak most for {told}." in page_of(tmp_path).text


def test_model_below_the_shortcut_is_told(tmp_path):
    rows = [{**row, "shortcut_prob": {"colour": np.eye(2)[row["label"]]}} for row in make_rows()]
    write_report(tmp_path, title="T", rows=rows, class_names=CLASSES)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = Page(page).text
    assert '<p class="note warn"><strong>The model does not beat the shortcut</strong>' in page
    assert "Treat it as not having learnt the classes." in text
    assert "disease" not in text


def test_absent_class_is_null_and_na(tmp_path):
    rows = [row for row in with_shortcut(make_rows(num_classes=3)) if row["label"] != 2]
    stored = write_report(tmp_path, title="T", rows=rows, class_names=["a", "b", "c"])
    assert stored == strict(tmp_path / "metrics.json")
    assert stored["per_class"]["c"]["roc_auc"] is None
    assert math.isfinite(stored["metrics"]["roc_auc"])
    specificity, none = stored["per_class"]["c"]["specificity"], "n/a (no positives)"
    ends = "{:.3f}\u2013{:.3f}".format(*stored["per_class_intervals"]["c"]["specificity"])
    assert f"c 0 {none} {none} {none} {specificity:.3f} {ends} {none}" in page_of(tmp_path).text

    single = write_report(
        tmp_path, title="T", rows=[row for row in rows if row["label"] == 0], class_names=["a", "b", "c"]
    )
    assert single["metrics"]["roc_auc"] is None
    assert "n/a (no negatives)" in page_of(tmp_path).text


def test_threshold_stands_beside_the_half(tmp_path):
    rows = with_shortcut(make_rows())
    options = {"title": "T", "rows": rows, "class_names": CLASSES}
    stored = write_report(tmp_path, **options, threshold=0.3, threshold_by="sensitivity=0.9")
    assert stored == strict(tmp_path / "metrics.json")
    prob, label = np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])
    assert stored["threshold"] == 0.3
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label, threshold=0.3))
    assert stored["metrics_at_half"] == pytest.approx(classification_metrics(prob, label, threshold=0.5))
    assert np.array(stored["confusion_matrix"]).sum(0).tolist() == np.bincount(prob[:, 1] >= 0.3).tolist()
    text = page_of(tmp_path).text
    assert "Figure Model at 0.3 Model at 0.5 Shortcut Difference" in text
    values = [stored[name]["recall"] for name in ("metrics", "metrics_at_half", "shortcut")]
    ends = "{:.3f} to {:.3f}".format(*stored["intervals"]["recall"])
    assert "{:.3f} 95%: {} {:.3f} {:.3f}".format(values[0], ends, *values[1:]) in text
    assert (
        f"{stored['metrics']['brier']:.3f} 95%: {{:.3f}} to {{:.3f}} same".format(*stored["intervals"]["brier"]) in text
    )
    assert "ill , predicted from a probability of 0.3 on" in text
    assert "0.3 was chosen on the validation images for the highest specificity at a sensitivity of 0.9 or more" in text
    called = [prob[:, 1] >= 0.3, prob[:, 1] >= 0.5]
    for name, counts in (
        (f"Found of {label.sum()} with ill", [own[label == 1].sum() for own in called]),
        (f"Missed of {label.sum()} with ill", [(~own[label == 1]).sum() for own in called]),
        (f"False alarms of {40 - label.sum()} without ill", [own[label == 0].sum() for own in called]),
    ):
        assert "{} {} {}".format(name, *counts) in text
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        assert [int(line["predicted"]) for line in csv.DictReader(file)] == (prob[:, 1] >= 0.3).tolist()

    same = write_report(tmp_path, **options, threshold=0.5)
    assert same["metrics_at_half"] is None
    text = page_of(tmp_path).text
    assert "Model at 0.5 Shortcut" in text
    assert "0.5 was given by hand. At 0.5 the same is predicted." in text
    assert "from a probability of 0.5 on, a threshold given by hand" in text
    assert "At 0.5 every figure is the same as at the threshold." in text
    assert "chosen on few" not in text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("youden", "the highest sum of sensitivity and specificity (Youden)"),
        ("specificity=0.9", "the highest sensitivity at a specificity of 0.9 or more"),
        ("cost=5", "the lowest cost, where a miss costs as much as 5 false alarms"),
        (None, None),
    ],
)
def test_rules_are_told_in_words(rule, words):
    assert rule_words(rule) == words


def test_calibration_stands_beside_what_it_was_before(tmp_path):
    stored = write_report(tmp_path, title="T", rows=make_rows(), class_names=CLASSES, temperature=2.5)
    before = stored["calibration"]["before"]
    text = page_of(tmp_path).text
    told = "a temperature of 2.5 ; the images scored here had no say. Above 1: it had been too sure of itself."
    assert told in text
    assert f"Brier score {before['brier']:.3f} {stored['metrics']['brier']:.3f} 95%" in text
    assert "calibrated by one number for all images" in text
    assert "not calibrated" not in text
    write_report(tmp_path, title="T", rows=make_rows(), class_names=CLASSES, temperature=0.9)
    assert "Below 1: it had been less sure than it could be." in page_of(tmp_path).text


def test_calibration_that_did_not_help_is_told(tmp_path):
    for temperature, helped in ((20.0, False), (0.5, True)):
        rows = [{**row, "prob": temper([row["prob"]], temperature)[0]} for row in make_rows()]
        stored = write_report(tmp_path, title="T", rows=rows, class_names=CLASSES, temperature=temperature)
        before = stored["calibration"]["before"]
        assert (stored["metrics"]["brier"] < before["brier"]) is helped
        text = page_of(tmp_path).text
        assert ("On these images it did not help: Brier score and Log loss got worse." in text) is not helped
        assert ("the outputs hardly tell the classes apart" in text) is not helped


def test_doubts_are_referred(tmp_path):
    rows = [{**row, "spread": 0.1 * (k % 4)} for k, row in enumerate(make_rows())]
    stored = write_report(tmp_path, title="T", rows=rows, class_names=CLASSES, unit="scan")
    text = page_of(tmp_path).text
    for own in (stored["uncertainty"], stored["uncertainty_by_spread"]):
        first, tenth = own["referral"][0], own["referral"][2]
        told = "" if tenth["accuracy"] > first["accuracy"] else ": here it does not help to refer them"
        assert (
            f"by {own['by']} Without the most uncertain 10% the accuracy is {tenth['accuracy']:.3f} instead of "
            f"{first['accuracy']:.3f}, on the 36 scans left{told}."
        ) in text
        assert "10% 36 {accuracy:.3f} {balanced_accuracy:.3f} {recall:.3f} {specificity:.3f}".format(**tenth) in text
