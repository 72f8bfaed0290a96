"""Pages of unusual evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.metrics import classification_metrics
from monai_pipelines.report.results import class_table
from monai_pipelines.report.saved import picture
from tests.report.pages import CLASSES, make_rows, report_of, strict

pytestmark = pytest.mark.usefixtures("undrawn")


def test_subgroups_have_a_table_and_a_figure_each(tmp_path):
    rows = [{**row, "columns": {"scanner/make": ["", "A"][k % 2], "sex": "F"}} for k, row in enumerate(make_rows())]
    stored, page = report_of(tmp_path, rows, subgroups=["scanner/make", "sex"])
    assert {path.name for path in tmp_path.glob("subgroups*")} == {"subgroups_1.png", "subgroups_2.png"}
    for column, groups in stored["subgroups"].items():
        for name, group in groups.items():
            where = {"row": f"{column}={name}", "section": "subgroups"}
            assert page.value("num_images", of="", **where) == group["num_images"]
            assert page.value("num_images", of="ill", **where) == group["classes"]["ill"]
            for metric in ("roc_auc", "recall", "specificity", "balanced_accuracy", "ece"):
                cell = page.cell(metric, **where)
                assert (cell.value, cell.interval) == (group["metrics"][metric], group["intervals"].get(metric))
    assert "no-subgroups" not in page.notes


@pytest.mark.parametrize(
    ("audit", "patients", "images"),
    [
        ({"patients_in_several_splits": 0}, 0, 0),
        ({"patients_in_several_splits": None}, None, 0),
        ({"patients_in_several_splits": 2}, 2, 0),
        ({"equal_files_in_several_splits": [{"images": ["a.png", "b.png"], "splits": ["train", "test"]}]}, None, 1),
    ],
)
def test_splits_that_overlap_are_shown_at_the_top(tmp_path, audit, patients, images):
    audit = {
        "patients_in_several_splits": None,
        "equal_files_in_several_splits": [],
        "num_skipped": {"train": 3, "scored": 0},
        "checked": "files of 1440 images",
    } | audit
    stored, page = report_of(tmp_path, make_rows(), audit=audit, unit="scan")
    assert stored["audit"] == audit
    assert (page.value("patients_in_several_splits"), page.value("images_in_several_splits")) == (patients, images)
    assert ("splits-overlap" in page.notes) is bool(patients or images)
    assert ("a.png = b.png (train, test)" in page.text) is bool(images)
    assert "files of 1,440 scans." in page.text
    assert "no-audit" not in page.notes


@pytest.mark.parametrize(
    ("threshold", "zeros", "notes"),
    [(0.99, ["precision"], {"none-called"}), (0.01, ["npv"], {"all-called"}), (0.5, [], set())],
)
def test_what_is_divided_by_nothing_is_explained(tmp_path, threshold, zeros, notes):
    rows = [{**row, "prob": np.clip(row["prob"], 0.02, 0.98)} for row in make_rows()]
    stored, page = report_of(tmp_path, rows, threshold=threshold)
    assert [name for name in ("precision", "npv") if stored["metrics"][name] == 0] == zeros
    assert not stored["intervals"].keys() & zeros
    assert {"none-called", "all-called"} & page.notes == notes


def test_members_of_an_ensemble(tmp_path):
    members = [{"file": f"runs/{k}/best.pt", "epoch": k, "temperature": 1.25678, "threshold": None} for k in (3, 4)]
    stored, page = report_of(tmp_path, make_rows(), members=members)
    assert stored["members"] == members
    assert {"ensemble", "not-calibrated"} <= page.notes
    for member in members:
        row = {name: page.value(name, row=member["file"]) for name in ("epoch", "temperature", "threshold")}
        assert {"file": member["file"], **row} == member
    members = [{**member, "threshold": k} for member, k in zip(members, (0.3, 0.6), strict=True)]
    for threshold, note in ((0.45, "threshold-chosen"), (0.4, "threshold-by-hand")):
        _, page = report_of(tmp_path, make_rows(), members=members, threshold=threshold)
        assert [name for name in page.notes if name.startswith("threshold")] == [note]


def test_what_was_evaluated(tmp_path):
    rows = [{**row, "spread": 0.1, "patient": None if k == 3 else row["patient"]} for k, row in enumerate(make_rows())]
    run = {"seed": 7, "settings": {"seed": 7, "max_epochs": 3}}
    options = {"temperature": 2.0, "run": run}
    stored, page = report_of(tmp_path, rows, epoch=5, **options)
    assert stored["run"] == run
    assert page.value("epoch") == 5
    assert {"repeated", "spread-before-temperature", "some-patients-unknown"} <= page.notes
    assert "seed: 7" not in page.text  # of the settings, as it is beside them
    assert "seed 7" in page.text
    _, page = report_of(tmp_path, make_rows(), **options)
    assert not page.notes & {"repeated", "spread-before-temperature", "some-patients-unknown"}


def test_multilabel(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (30, 3))
    rows = [
        {
            "image": f"{k}.png",
            "label": positive.tolist(),
            "prob": rng.random(3),
            "shortcut_prob": {"size": rng.random(3)},
        }
        for k, positive in enumerate(label)
    ]
    names, prob = ["nodule", "edema", "hernia"], [row["prob"] for row in rows]
    stored, page = report_of(tmp_path, rows, names, multilabel=True)
    assert stored == strict(tmp_path / "metrics.json")
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label))
    assert [size["num_images"] for size in stored["classes"].values()] == label.sum(0).tolist()
    assert not (tmp_path / "confusion_matrix.png").exists()
    assert not (tmp_path / "decision_curve.png").exists()
    assert page.value("num_right") == 30 - stored["num_wrong"]
    assert "threshold" not in page.sections
    assert stored["num_patients"] is None
    assert "patients-unknown" in page.notes
    assert "some-patients-unknown" not in page.notes

    options = {"classes": names, "multilabel": True}
    stored, page = report_of(tmp_path, rows, threshold=[0.3, 0.4, 0.5], threshold_by="youden", **options)
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label, threshold=[0.3, 0.4, 0.5]))
    assert "threshold-chosen" in page.notes
    assert page.value("num_images", row="edema", section="per-class") == label[:, 1].sum()
    assert page.value("recall", of="half") == stored["metrics_at_half"]["recall"]
    _, page = report_of(tmp_path, rows, threshold=0.4, **options)
    assert page.value("threshold") == 0.4
    assert "threshold-by-hand" in page.notes


def test_pictures_classes_and_shortcuts(tmp_path):
    rng = np.random.default_rng(2)
    good = [0.3 * rng.dirichlet([1, 1]) + 0.7 * np.eye(2)[row["label"]] for row in make_rows()]
    rows = [
        {
            **row,
            "spread": 0.25 if row["prob"].argmax() == row["label"] else 0.5,
            "shortcut_prob": {"color": rng.dirichlet([1, 1]), "size": prob},
        }
        for row, prob in zip(make_rows(), good, strict=True)
    ]
    train = [{"label": k % 4 == 0, "patient": f"q{k // 8}"} for k in range(40)]
    stored, page = report_of(
        tmp_path,
        rows,
        splits={"train": class_table(train, CLASSES), "test": class_table(rows, CLASSES)},
        samples=[
            picture("sample-0", "healthy\na.png", np.zeros((3, 28, 28), np.uint8)),
            picture("sample-1", "ill\nb.png", np.zeros((1, 300, 200))),
        ],
        mistakes=[picture("mistake-0", "predicted: healthy, 0.98", np.zeros((3, 224, 224), np.uint8))],
        embeddings={"raw_pixels": b"\x89PNG"},
    )
    assert stored["splits"]["train"]["imbalance_factor"] == page.value("imbalance_factor", of="0") == 3
    for split, num_patients in (("train", 5), ("test", 20)):
        table = stored["splits"][split]
        assert table["num_patients"] == page.value("num_patients", of=split) == num_patients
        assert page.value("num_images", of=split, row=None) == table["num_images"] == 40
        for name in CLASSES:
            assert page.value("num_images", of=split, row=name) == table["classes"][name]["num_images"]
    assert stored["shortcut_name"] == "size"
    assert "strongest-size" in page.notes
    assert stored["shortcut"] == stored["shortcuts"]["size"]
    for name, metrics in stored["shortcuts"].items():
        for metric in ("roc_auc", "accuracy", "balanced_accuracy"):
            assert page.value(metric, of=name, section="shortcuts") == metrics[metric]
    assert (
        stored["spread"]
        == {of: page.value("spread", of=of) for of in ("right", "wrong")}
        == {"right": 0.25, "wrong": 0.5}
    )
    assert page.value("num_wrong") == stored["num_wrong"]
    kinds = [link.split(";")[0][len("data:image/") :] for link in page.pictures]
    assert kinds == ["png", "png", "jpeg", *["png"] * 6, "jpeg", "png"]
    assert "predicted: healthy, 0.98" in page.text
    assert {"samples", "mistakes", "embeddings"} <= {*page.sections}


@pytest.mark.parametrize("oriented", [True, False])
def test_only_oriented_volumes_have_a_right_half(tmp_path, oriented):
    volume = torch.zeros(1, 8, 8, 8)
    sample = picture("a", "a", MetaTensor(volume, affine=torch.eye(4)) if oriented else volume)
    _, page = report_of(tmp_path, make_rows(), samples=[sample])
    assert ("anatomical" in page.notes) is oriented


def test_hostile_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&$x$"
    classes = [evil, f"b{evil}"]
    rows = [{**row, "columns": {evil: evil}} for row in make_rows()]
    rows.append({"image": evil, "patient": None, "label": None, "prob": None, "skipped": evil})
    _, page = report_of(
        tmp_path,
        rows,
        classes,
        title=evil,
        run={evil: evil, "command": evil},
        samples=[picture("sample-0", evil, np.zeros((1, 4, 4, 4)))],
        mistakes=[picture("mistake-0", evil, np.zeros((1, 4, 4)))],
        splits={evil: class_table(make_rows(), classes)},
        threshold=0.4,
        threshold_by=evil,
        subgroups=[evil],
        members=[{"file": evil, "epoch": 1, "temperature": None, "threshold": None}],
        audit={
            "patients_in_several_splits": 1,
            "equal_files_in_several_splits": [{"images": [evil, evil], "splits": [evil]}],
            "num_skipped": {evil: 1},
            "checked": evil,
        },
        explanations=[
            {
                "results": {"method": evil, "stage": evil, "cells": [1], "cell_px": [1], "mm_per_cell": None},
                "pictures": [],
            }
        ],
    )
    assert "script" not in page.tags
    assert page.text.count(evil) > 20
    assert page.value("epoch", row=evil) == 1
    assert strict(tmp_path / "metrics.json")["skipped"] == [{"image": evil, "reason": evil}]


def test_nothing_to_score_fails_after_the_reasons_are_written(tmp_path):
    rows = [{"image": "x", "label": 0, "prob": None, "skipped": "empty"}]
    with pytest.raises(ValueError, match=r"images to score, got none of 1.*predictions\.csv"):
        report_of(tmp_path, rows)
    assert "x,0,healthy,,,,,image,empty" in (tmp_path / "predictions.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({"prob": [0.2, 0.3, 0.5]}, CLASSES, "scans/0.nii.gz: wanted 2 probabilities"),
        ({"prob": None}, CLASSES, "or the reason"),
        ({}, ["ill", "ill"], "must differ"),
        ({"shortcut_prob": {"color": [0.5, 0.5]}}, CLASSES, "same baselines for all 40 scored rows, got 1"),
        ({"prob": [math.nan, 0.5]}, CLASSES, "finite"),
    ],
)
def test_bad_rows(tmp_path, change, names, message):
    rows = make_rows()
    rows[0] |= change
    with pytest.raises(ValueError, match=message):
        report_of(tmp_path, rows, names)
