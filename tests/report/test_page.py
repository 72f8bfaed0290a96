"""The page: its sections, metrics and notes."""

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
from monai_pipelines.report.saved import picture
from monai_pipelines.report.words import GROUPS, METHODS, described_metrics, rule_words
from tests.report.pages import HISTORY, make_rows, report_of, strict, with_shortcut

pytestmark = pytest.mark.usefixtures("undrawn")


def _arrays(rows):
    return np.array([row["prob"] for row in rows]), np.array([row["label"] for row in rows])


def test_full_report(tmp_path, monkeypatch):
    monkeypatch.undo()
    rows = with_shortcut(make_rows())
    broken = {"image": "scans/broken", "patient": "p99", "label": 1, "prob": None, "skipped": "LoadCT: no DICOM in it"}
    unlabelled = {**rows[0], "image": "scans/new.nii", "label": None}
    volume = np.random.default_rng(0).random((1, 12, 10, 8))
    result, page = report_of(
        tmp_path,
        [broken, *rows, unlabelled],
        title="Lung CT",
        unit="scan",
        history=HISTORY,
        run={"seed": 7, "chain": {"name": "lung_ct"}, "root": PurePosixPath("a/b"), "command": "python -m x --y"},
        samples=[picture("sample-0", "scan 1", volume)],
    )
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    pictures = {"classes.png", "confusion_matrix.png", "roc.png", "precision_recall.png", "calibration.png",
                "decision_curve.png", "risk_coverage.png", "history.png"}  # fmt: skip
    assert files == pictures | {"predictions.csv", "metrics.json", "report.html"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    stored = strict(tmp_path / "metrics.json")
    assert stored == result
    prob, label = _arrays(rows)
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label))
    shortcut = np.array([row["shortcut_prob"]["color"] for row in rows])
    assert stored["shortcut"] == pytest.approx(classification_metrics(shortcut, label))
    assert (stored["num_images"], stored["num_patients"], stored["num_unlabelled"]) == (40, 20, 1)
    assert [size["num_images"] for size in stored["classes"].values()] == np.bincount(label).tolist()
    assert stored["skipped"] == [{"image": "scans/broken", "reason": "LoadCT: no DICOM in it"}]
    matrix = np.zeros((2, 2), int)
    np.add.at(matrix, (label, prob.argmax(1)), 1)
    assert stored["confusion_matrix"] == matrix.tolist()
    assert stored["run"] == {"seed": 7, "chain": {"name": "lung_ct"}, "root": "a/b", "command": "python -m x --y"}

    sizes = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).size for link in page.pictures]
    assert len(sizes) == 9
    assert min(map(min, sizes)) > 100
    for name, value in (("detected", matrix[1, 1]), ("missed", matrix[1, 0]), ("false_alarms", matrix[0, 1])):
        assert {cell.value for cell in page.find(name)} == {value}
        assert {cell.section for cell in page.find(name)} == {None, "threshold"}
    assert {cell.value for cell in page.find("ruled_out")} == {matrix[0, 0]}
    for section in (None, "metrics"):
        cell = page.cell("roc_auc", of="model", section=section)
        assert (cell.value, cell.interval) == (stored["metrics"]["roc_auc"], stored["intervals"]["roc_auc"])
        assert page.value("roc_auc", of="shortcut", section=section) == stored["shortcut"]["roc_auc"]
        gain = stored["metrics"]["roc_auc"] - stored["shortcut"]["roc_auc"]
        cell = page.cell("roc_auc", of="difference", section=section)
        assert (cell.value, cell.interval) == (pytest.approx(gain), stored["differences"]["roc_auc"]["interval"])
    assert page.value("num_unlabelled") == 1
    assert page.value("best_epoch", of="roc_auc") == 3
    assert page.notes == {"beats-shortcut", "no-threshold", "not-calibrated", "no-subgroups", "no-audit"} | {
        note for note in page.notes if note.startswith("referral-no-help")
    }
    for content in ("scans/broken LoadCT: no DICOM in it", "(color)", "python -m x --y"):
        assert content in page.text
    assert "p99" not in page.text


def test_contents_link_to_the_sections(tmp_path):
    _, page = report_of(tmp_path, make_rows())
    sections = ["data", "metrics", "threshold", "calibration", "per-class", "figures", "uncertainty", "limits"]
    assert page.sections == sections
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="#([\w-]+)">', text) == sections
    assert not (tmp_path / "history.png").exists()
    assert not [cell for name in ("spread", "patients_in_several_splits") for cell in page.find(name)]
    assert not [cell for cell in page.cells if cell.attributes["data-of"] in ("shortcut", "half", "difference")]
    assert "no-shortcut" in page.notes


def test_every_metric_is_shown_once(tmp_path):
    for num, rows in ((2, make_rows()), (3, make_rows(num_classes=3))):
        stored, page = report_of(tmp_path, rows, ["a", "b", "c"][:num])
        assert sorted(stored["metrics"]) == sorted(
            name for group in GROUPS.values() for name in group if name in stored["metrics"]
        )
        for name in described_metrics("image", multilabel=False):
            assert len(page.find(name, section="metrics")) == (name in stored["metrics"])
            if name in stored["metrics"]:
                cell = page.cell(name, section="metrics")
                assert (cell.value, cell.interval) == (stored["metrics"][name], stored["intervals"].get(name))


def test_attention(tmp_path):
    results = {"num_slides": 9, "relative_entropy": 0.71234, "num_annotated": 4, "tile_auc": 0.91234,
               "tile_auc_interval": [0.85, 0.97]}  # fmt: skip
    pictures = [
        picture("looked-0", "true: ill", np.zeros((3, 500, 1600), np.uint8), 1200),
        picture("looked-1", "true: healthy", np.zeros((3, 90, 60), np.uint8), 1200),
    ]
    nothing = {"results": {}, "pictures": []}
    explanations = [nothing, {"results": results, "pictures": pictures}]
    result, page = report_of(tmp_path, make_rows(), unit="slide", explanations=explanations)
    assert result["explanations"] == strict(tmp_path / "metrics.json")["explanations"] == [results]
    assert (page.value("tile_auc"), page.cell("tile_auc").interval) == (0.91234, [0.85, 0.97])
    assert page.value("relative_entropy") == 0.71234
    assert "true: ill" in page.text
    assert not page.find("cells")
    looked = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).size for link in page.pictures[-2:]]
    assert looked == [(1200, 375), (60, 90)]

    result, page = report_of(tmp_path, make_rows(), unit="slide", explanations=[nothing])
    assert result["explanations"] == []
    assert "looked" not in page.sections


def test_attention_without_metrics(tmp_path):
    """A single tile has no entropy, slides without annotation no AUC."""
    pictures = [picture("looked-0", "c", np.zeros((3, 9, 9)))]
    explained = {"results": {"num_slides": 1, "relative_entropy": None}, "pictures": pictures}
    _, page = report_of(tmp_path, make_rows(), explanations=[explained])
    assert "looked" in page.sections
    assert not page.find("relative_entropy") + page.find("tile_auc")


@pytest.mark.parametrize(
    ("method", "stage", "mm_per_cell", "spacing"),
    [
        ("gradcam", "layer2", [30.2, 29.9, 41.0], ("spacing_mm", "30 \u00d7 30 \u00d7 41")),
        ("gradcam++", "layer2", None, ("spacing_px", "8 \u00d7 8 \u00d7 16")),
        ("occlusion", None, None, ("spacing_px", "8 \u00d7 8 \u00d7 16")),
    ],
)
def test_resolution_of_a_map(tmp_path, method, stage, mm_per_cell, spacing):
    results = {"method": method, "stage": stage, "cells": [8, 8, 4], "cell_px": [8.0, 8.0, 16.0],
               "mm_per_cell": mm_per_cell, "cases": [{"image": "a.nii", "why": "best"}]}  # fmt: skip
    pictures = [picture("looked-0", "best: true ill", np.zeros((3, 90, 60), np.uint8))]
    explained = [{"results": results, "pictures": pictures}]
    stored, page = report_of(tmp_path, make_rows(), unit="scan", explanations=explained)
    assert stored["explanations"] == [results]
    assert page.cell("cells").shown == "8 \u00d7 8 \u00d7 4"
    assert page.cell(spacing[0]).shown == spacing[1]
    for content in (METHODS[method], stage or "", "best: true ill"):
        assert content in page.text
    assert {"few-maps", "explained-positive"} <= page.notes
    assert ("occlusion" in page.notes) is (method == "occlusion")


@pytest.mark.parametrize(("multilabel", "note"), [(False, "explained-predicted"), (True, "explained-any")])
def test_class_that_a_map_explains(tmp_path, multilabel, note):
    results = {"method": "gradcam", "stage": "layer2", "cells": [8], "cell_px": [8.0], "mm_per_cell": None}
    rows = make_rows(num_classes=3)
    if multilabel:
        rows = [{**row, "label": np.eye(3, dtype=int)[row["label"]].tolist()} for row in rows]
    explanations = [{"results": results, "pictures": []}]
    _, page = report_of(tmp_path, rows, ["a", "b", "c"], multilabel=multilabel, explanations=explanations)
    assert [name for name in page.notes if name.startswith("explained")] == [note]


def test_model_below_the_shortcut(tmp_path):
    rows = [{**row, "shortcut_prob": {"color": np.eye(2)[row["label"]]}} for row in make_rows()]
    _, page = report_of(tmp_path, rows)
    assert "below-shortcut" in page.notes
    assert "beats-shortcut" not in page.notes
    assert 'class="note warn" data-note="below-shortcut"' in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_gain_over_the_shortcut_that_may_be_chance(tmp_path):
    prob, shortcut = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0.1, 0.2, 0.6, 0.5, 0.8, 0.9]
    rows = [
        {"image": f"{k}.nii", "label": k // 3, "prob": [1 - p, p], "shortcut_prob": {"color": [1 - s, s]}}
        for k, (p, s) in enumerate(zip(prob, shortcut, strict=True))
    ]
    stored, page = report_of(tmp_path, rows)
    gain = stored["differences"]["roc_auc"]
    assert gain["difference"] == pytest.approx(1 / 9)
    assert gain["interval"][0] < 0 < gain["interval"][1]
    assert "no-clear-gain" in page.notes
    assert not {"beats-shortcut", "below-shortcut"} & page.notes


@pytest.mark.parametrize(("key_metric", "shown"), [("roc_auc", 0), ("kappa_quadratic", 1)])
def test_quadratic_kappa_is_for_ordered_classes(tmp_path, key_metric, shown):
    _, page = report_of(tmp_path, make_rows(num_classes=3), ["none", "mild", "severe"], key_metric=key_metric)
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8").count('"kappa_quadratic"') == 2 * shown
    assert len(page.find("kappa_quadratic", section="metrics")) == shown


def test_absent_class_is_null_and_na(tmp_path):
    rows = [row for row in with_shortcut(make_rows(num_classes=3)) if row["label"] != 2]
    stored, page = report_of(tmp_path, rows, ["a", "b", "c"])
    assert stored == strict(tmp_path / "metrics.json")
    assert stored["per_class"]["c"]["roc_auc"] is None
    assert math.isfinite(stored["metrics"]["roc_auc"])
    row = {name: page.cell(name, row="c", section="per-class") for name in ("roc_auc", "recall", "specificity", "f1")}
    assert {name: cell.value for name, cell in row.items()} == {name: stored["per_class"]["c"][name] for name in row}
    assert [name for name, cell in row.items() if cell.shown == "n/a (no positives)"] == ["roc_auc", "recall", "f1"]
    assert row["specificity"].interval == stored["per_class_intervals"]["c"]["specificity"]
    assert page.value("num_images", row="c", section="per-class") == 0

    single, page = report_of(tmp_path, [row for row in rows if row["label"] == 0], ["a", "b", "c"])
    assert single["metrics"]["roc_auc"] is None
    assert page.cell("roc_auc", row="a", section="per-class").shown == "n/a (no negatives)"


def test_threshold_beside_the_half(tmp_path):
    rows = with_shortcut(make_rows())
    stored, page = report_of(tmp_path, rows, threshold=0.3, threshold_by="sensitivity=0.9")
    assert stored == strict(tmp_path / "metrics.json")
    prob, label = _arrays(rows)
    assert stored["threshold"] == page.value("threshold") == 0.3
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label, threshold=0.3))
    assert stored["metrics_at_half"] == pytest.approx(classification_metrics(prob, label, threshold=0.5))
    assert np.array(stored["confusion_matrix"]).sum(0).tolist() == np.bincount(prob[:, 1] >= 0.3).tolist()
    for name, of in (("metrics", "model"), ("metrics_at_half", "half"), ("shortcut", "shortcut")):
        assert page.value("recall", of=of, section="metrics") == stored[name]["recall"]
    assert page.cell("recall", of="model", section="metrics").interval == stored["intervals"]["recall"]
    assert not page.find("brier", of="half")  # does not depend on the threshold
    assert "threshold-chosen" in page.notes
    assert rule_words("sensitivity=0.9") in page.text
    for of, positive in (("model", prob[:, 1] >= 0.3), ("half", prob[:, 1] >= 0.5)):
        counts = {name: page.value(name, of=of, section="threshold") for name in ("detected", "missed", "false_alarms")}
        assert counts == {
            "detected": positive[label == 1].sum(),
            "missed": (~positive[label == 1]).sum(),
            "false_alarms": positive[label == 0].sum(),
        }
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        assert [int(line["predicted"]) for line in csv.DictReader(file)] == (prob[:, 1] >= 0.3).tolist()

    same, page = report_of(tmp_path, rows, threshold=0.5)
    assert same["metrics_at_half"] is None
    assert not page.find("recall", of="half")
    assert {"threshold-by-hand", "same-at-half"} <= page.notes
    assert "threshold-chosen" not in page.notes


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("youden", "the highest sum of sensitivity and specificity (Youden)"),
        ("specificity=0.9", "the highest sensitivity at a specificity of at least 0.9"),
        ("cost=5", "the lowest cost, counting a miss as 5 false alarms"),
        (None, None),
    ],
)
def test_rules_in_words(rule, words):
    assert rule_words(rule) == words


@pytest.mark.parametrize(("temperature", "note"), [(2.5, "overconfident"), (0.9, "underconfident")])
def test_calibration_beside_before(tmp_path, temperature, note):
    stored, page = report_of(tmp_path, make_rows(), temperature=temperature)
    assert page.value("temperature") == temperature
    for name in ("brier", "ece", "log_loss"):
        assert page.value(name, of="before", section="calibration") == stored["calibration"]["before"][name]
        cell = page.cell(name, of="model", section="calibration")
        assert (cell.value, cell.interval) == (stored["metrics"][name], stored["intervals"].get(name))
    assert note in page.notes
    assert "not-calibrated" not in page.notes


@pytest.mark.parametrize(("temperature", "helped"), [(20.0, False), (0.5, True)])
def test_calibration_that_does_not_help(tmp_path, temperature, helped):
    rows = [{**row, "prob": temper([row["prob"]], temperature)[0]} for row in make_rows()]
    stored, page = report_of(tmp_path, rows, temperature=temperature)
    assert (stored["metrics"]["brier"] < stored["calibration"]["before"]["brier"]) is helped
    assert ("calibration-no-help" in page.notes) is not helped
    assert ("at-bound" in page.notes) is not helped


def test_referral(tmp_path):
    rows = [{**row, "spread": 0.1 * (k % 4)} for k, row in enumerate(make_rows())]
    stored, page = report_of(tmp_path, rows, unit="scan")
    for curve in (stored["uncertainty"], stored["uncertainty_by_spread"]):
        for row in curve["referral"]:
            shown = {
                name: page.value(name, of=curve["by"], row=str(row["referred"])) for name in row.keys() - {"referred"}
            }
            assert shown == {name: value for name, value in row.items() if name != "referred"}
        first, tenth = curve["referral"][0], curve["referral"][2]
        assert (f"referral-no-help-{curve['by']}" in page.notes) is (tenth["accuracy"] <= first["accuracy"])
        assert tenth["num_left"] == 36
