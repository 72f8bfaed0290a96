"""The page of runs of many kinds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.metrics import classification_metrics
from monai_pipelines.report import read_history, write_report
from monai_pipelines.report.results import class_table
from monai_pipelines.report.saved import save_picture
from tests.report.pages import CLASSES, HISTORY, make_rows, page_of, strict

pytestmark = pytest.mark.usefixtures("undrawn")


def test_subgroups_have_a_table_and_a_figure_each(tmp_path):
    rows = [{**row, "columns": {"scanner/make": ["", "A"][k % 2], "sex": "F"}} for k, row in enumerate(make_rows())]
    stored = write_report(tmp_path, title="T", rows=rows, class_names=CLASSES, subgroups=["scanner/make", "sex"])
    assert {path.name for path in tmp_path.glob("subgroups*")} == {"subgroups_1.png", "subgroups_2.png"}
    text = page_of(tmp_path).text
    own = stored["subgroups"]["scanner/make"][""]
    ends = "{:.3f}\u2013{:.3f}".format(*own["intervals"]["roc_auc"])
    wanted = f"not given 20 20 patients {own['classes']['ill']} {own['metrics']['roc_auc']:.3f} {ends}"
    assert wanted in text
    assert "No subgroups were looked at" not in text


@pytest.mark.parametrize(
    ("audit", "wanted", "clean"),
    [
        ({"patients_in_several_splits": 0}, "No patient stands in more than one split.", True),
        ({"patients_in_several_splits": None}, "Patients are unknown, so nobody can tell", True),
        ({"patients_in_several_splits": 2}, "2 patients stand in more than one split.", False),
        (
            {"equal_files_in_several_splits": [{"images": ["a.png", "b.png"], "splits": ["train", "test"]}]},
            "1 scan stands in more than one split: a.png = b.png (train, test).",
            False,
        ),
    ],
)
def test_splits_that_are_not_clean_are_told_at_the_top(tmp_path, audit, wanted, clean):
    audit = {
        "patients_in_several_splits": None,
        "equal_files_in_several_splits": [],
        "num_skipped": {"train": 3, "scored": 0},
        "checked": "files of 40 images",
    } | audit
    stored = write_report(tmp_path, title="T", rows=make_rows(), class_names=CLASSES, audit=audit, unit="scan")
    assert stored["audit"] == audit
    text = page_of(tmp_path).text
    assert wanted in text
    assert ("The splits are not clean" in text) is not clean
    assert "Compared: files of 40 scans." in text
    assert "It was not checked" not in text


def test_members_of_an_ensemble_are_told(tmp_path):
    members = [{"file": f"runs/{k}/best.pt", "epoch": k, "temperature": 1.25678, "threshold": None} for k in (3, 4)]
    options = {"title": "T", "rows": make_rows(), "class_names": CLASSES}
    stored = write_report(tmp_path, **options, members=members)
    assert stored["members"] == members
    text = page_of(tmp_path).text
    assert "Each answer is the mean of 2 networks." in text
    assert "runs/4/best.pt 4 1.26 not given" in text
    assert "The mean of the networks' probabilities was not calibrated as a whole." in text
    assert "Every number is from one ensemble of 2 networks and one set" in text
    members = [{**member, "threshold": k} for member, k in zip(members, (0.3, 0.6), strict=True)]
    for threshold, told in ((0.45, "had no say. It is the mean of the networks' thresholds."), (0.4, "given by hand.")):
        write_report(tmp_path, **options, members=members, threshold=threshold)
        assert f"{threshold} was {'chosen' if threshold == 0.45 else 'given'}" in page_of(tmp_path).text
        assert told in page_of(tmp_path).text


def test_what_was_evaluated_is_told_and_nothing_twice(tmp_path):
    rows = [{**row, "spread": 0.1, "patient": None if k == 3 else row["patient"]} for k, row in enumerate(make_rows())]
    run = {"seed": 7, "settings": {"seed": 7, "max_epochs": 3}}
    options = {"title": "T", "class_names": CLASSES, "temperature": 2.0, "run": run}
    assert write_report(tmp_path, **options, rows=rows, epoch=5)["run"] == run
    text = page_of(tmp_path).text
    for wanted in (
        "The weights are those of epoch 5. Each answer is a mean over several views or dropout passes.",
        "It is that of the probabilities before the temperature.",
        "An image whose patient is not known counts as a patient of its own.",
    ):
        assert wanted in text
    assert text.count("seed: 7") == 0
    assert "seed 7" in text
    write_report(tmp_path, **options, rows=make_rows())
    assert "whose patient is not known" not in page_of(tmp_path).text


def test_several_labels_each(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (30, 3))
    rows = [
        {"image": f"{k}.png", "label": own.tolist(), "prob": rng.random(3), "shortcut_prob": {"size": rng.random(3)}}
        for k, own in enumerate(label)
    ]
    names, prob = ["nodule", "edema", "hernia"], [row["prob"] for row in rows]
    options = {"title": "T", "rows": rows, "class_names": names, "multilabel": True}
    stored = write_report(tmp_path, **options)
    assert stored == strict(tmp_path / "metrics.json")
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label))
    assert [size["num_scans"] for size in stored["classes"].values()] == label.sum(0).tolist()
    assert not (tmp_path / "confusion_matrix.png").exists()
    assert not (tmp_path / "decision_curve.png").exists()
    text = page_of(tmp_path).text
    assert "Any number of the 3 classes may apply to an image" in text
    assert f"All labels are right for {30 - stored['num_wrong']} of 30 images" in text
    assert "share of all labels, one for each class and image, that are right" in text
    assert "positive class" not in text
    assert stored["num_patients"] is None
    assert "30 images scored, patients unknown." in text
    assert "where several images are of one patient, the intervals are too narrow" in text
    assert "whose patient" not in text
    assert "table" not in text

    stored = write_report(tmp_path, **options, threshold=[0.3, 0.4, 0.5], threshold_by="youden")
    assert stored["metrics"] == pytest.approx(classification_metrics(prob, label, threshold=[0.3, 0.4, 0.5]))
    text = page_of(tmp_path).text
    assert "Each class has its own: see Per class . They were chosen on the validation images" in text
    assert f"edema from 0.4 on {label[:, 1].sum()}" in text
    assert "Figure Model at the thresholds Model at 0.5" in text
    write_report(tmp_path, **options, threshold=0.4)
    assert "0.4 was given by hand." in page_of(tmp_path).text


def test_pictures_classes_and_shortcuts_stand_in_the_page(tmp_path):
    rows = [
        {**row, "spread": 0.25 if row["prob"].argmax() == row["label"] else 0.5, "shortcut_prob": cheap}
        for row, cheap in zip(make_rows(), _cheap(), strict=True)
    ]
    train = [{"label": k % 4 == 0, "patient": f"q{k // 8}"} for k in range(40)]
    (tmp_path / "embedding_raw_pixels.png").write_bytes(b"\x89PNG")
    stored = write_report(
        tmp_path,
        title="T",
        rows=rows,
        class_names=CLASSES,
        splits={"train": class_table(train, CLASSES), "test": class_table(rows, CLASSES)},
        samples=[
            save_picture(tmp_path, "sample-0", "healthy\na.png", np.zeros((3, 28, 28), np.uint8)),
            save_picture(tmp_path, "sample-1", "ill\nb.png", np.zeros((1, 300, 200))),
        ],
        mistakes=[
            save_picture(tmp_path, "mistake-0", "predicted: healthy, 0.98", np.zeros((3, 224, 224), np.uint8)),
        ],
        embeddings=["raw_pixels"],
    )
    assert stored["splits"]["train"]["imbalance_factor"] == 3
    assert (stored["splits"]["train"]["num_patients"], stored["splits"]["test"]["num_patients"]) == (5, 20)
    assert stored["shortcut_name"] == "size"
    assert stored["shortcut"] == stored["shortcuts"]["size"]
    assert stored["spread"] == {"right": 0.25, "wrong": 0.5}
    page = page_of(tmp_path)
    kinds = [link.split(";")[0][len("data:image/") :] for link in page.pictures]
    assert kinds == ["png", "png", "jpeg", *["png"] * 6, "jpeg", "png"]
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


@pytest.mark.parametrize("known", [True, False])
def test_only_volumes_that_lie_in_a_patient_have_a_right_half(tmp_path, known):
    volume = torch.zeros(1, 8, 8, 8)
    sample = save_picture(tmp_path, "a", "a", MetaTensor(volume, affine=torch.eye(4)) if known else volume)
    write_report(tmp_path, title="T", rows=make_rows(), class_names=CLASSES, samples=[sample])
    text = page_of(tmp_path).text
    assert ("right half. R: patient's right" in text) is known
    assert ("Three slices of each, through the middle." in text) is not known


def _cheap():
    rng = np.random.default_rng(2)
    good = [0.3 * rng.dirichlet([1, 1]) + 0.7 * np.eye(2)[row["label"]] for row in make_rows()]
    return [{"colour": rng.dirichlet([1, 1]), "size": own} for own in good]


def test_hostile_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&$x$"
    rows = [{**row, "columns": {evil: evil}} for row in make_rows()]
    rows.append({"image": evil, "patient": None, "label": None, "prob": None, "skipped": evil})
    write_report(
        tmp_path,
        title=evil,
        rows=rows,
        class_names=[evil, f"b{evil}"],
        run={evil: evil, "command": evil},
        samples=[save_picture(tmp_path, "sample-0", evil, np.zeros((1, 4, 4, 4)))],
        mistakes=[save_picture(tmp_path, "mistake-0", evil, np.zeros((1, 4, 4)))],
        splits={evil: class_table(make_rows(), [evil, f"b{evil}"])},
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
    page = page_of(tmp_path)
    assert "script" not in page.tags
    assert page.text.count(evil) > 20
    assert strict(tmp_path / "metrics.json")["skipped"] == [{"image": evil, "reason": evil}]


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
    rows = make_rows()
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
