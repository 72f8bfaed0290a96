from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_pipelines.engines import predict
from monai_pipelines.metrics import shortcut_baselines
from monai_pipelines.report import embedding, evaluation, rebuild_report
from monai_pipelines.report.evaluation import report_evaluation
from monai_pipelines.runs.trained import Decisions, Member
from tests.report.pages import page_of


class _Dataset:
    """Images whose brightness follows the label; counts how often each is loaded."""

    def __init__(self, labels, shape, seed, shortcuts=("mean color", "size")):
        self.data = [{"name": f"{seed}/{k}.png", "label": label, "patient": f"{seed}-{k // 2}"}
                     for k, label in enumerate(labels)]  # fmt: skip
        rng = np.random.default_rng(seed)
        bright = np.array([np.mean(label) for label in labels])
        noise = rng.integers(0, 200, (len(labels), *shape))
        self.images = torch.from_numpy((noise + 20 * bright.reshape(-1, *[1] * len(shape))).astype(np.uint8))
        self.shortcuts, self.skipped, self.loads = shortcuts, [], Counter()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.loads[index] += 1
        image = self.images[index]
        every = {"mean color": image.float().flatten(1).mean(1), "size": torch.tensor([4.0, 1.0])}
        item = {**self.data[index], "image": self.as_image(image)}
        return {**item, "shortcut": {name: every[name] for name in self.shortcuts}} if self.shortcuts else item

    @staticmethod
    def as_image(image):
        return image


class _Volumes(_Dataset):
    @staticmethod
    def as_image(image):
        return MetaTensor(image / 255, affine=torch.eye(4))


def _datasets(kind=_Dataset, shape=(3, 40, 30), labels=(0, 1), **options):
    parts = {"train": 24, "validation": 8, "test": 16}
    splits = {s: kind([labels[k % len(labels)] for k in range(n)], shape, seed, **options)
              for seed, (s, n) in enumerate(parts.items())}  # fmt: skip
    splits["validation"].skipped = [{"image": "x", "name": "broken.png", "label": labels[0], "skipped": "truncated"}]
    return SimpleNamespace(**splits)


def _rows(dataset, num_classes):
    prob = np.random.default_rng(5).dirichlet([1] * num_classes, len(dataset))
    keys = ("label", "patient")
    return [{"image": item["name"], "prob": prob_, **{key: item[key] for key in keys}}
            for item, prob_ in zip(dataset.data, prob.tolist(), strict=True)]  # fmt: skip


def _trained(classes, multilabel=False, **decisions):
    """As `monai_pipelines.runs.Trained`, without a checkpoint."""
    nothing = dict.fromkeys(("epoch", "split", "temperature", "threshold", "threshold_by"))
    return SimpleNamespace(
        model=SimpleNamespace(classes=classes, multilabel=multilabel, detects=False),
        run_folder=Path,
        decisions=Decisions(**{**nothing, **decisions}),
    )


def _report(folder, rows, datasets, classes, multilabel=False, **options):
    features = options.pop("features", np.zeros((len(datasets.test), 1)))
    return report_evaluation(folder, "T", _trained(classes, multilabel), rows, datasets, features, **options)


def _events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
    accumulator.Reload()
    return {tag: len(accumulator.Images(tag)) for tag in accumulator.Tags()["images"]}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluation with all there is, into the folder of a run that was evaluated before."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "history.json").write_text('[{"epoch": 1, "train": {"loss": 0.7}, "val": {"roc_auc": 0.6}}]')
    knobs = {"knobs": {"keys": "image", "size": [40, 30]}}
    run = {"command": "python", "source": "/home/a/b/tiles.zip", "chain": knobs, "augmentation": None}
    (folder / "run.json").write_text(json.dumps(run))
    for old in ("pictures/mistake-99.png", "tensorboard/evaluation/00000/old/tensors.tsv"):
        (folder / old).parent.mkdir(parents=True)
        (folder / old).write_text("of an earlier evaluation")
    datasets = _datasets()
    datasets.test.data[0]["patient"] = datasets.train.data[0]["patient"]
    for k, item in enumerate(datasets.test.data[1:], 1):
        item["site"] = "ab"[k % 2]
    rows = [{**row, "spread": 0.1} for row in _rows(datasets.test, 2)]
    heat = np.random.default_rng(0).integers(0, 256, (3, 30, 70)).astype(np.uint8)
    slides = {"num_slides": 16, "relative_entropy": 0.5}
    images = {"method": "gradcam", "stage": "layer2", "cells": [5, 4], "mm_per_cell": None, "cases": []}
    explanations = [
        SimpleNamespace(results=slides, pictures=[("a heatmap", heat)] * 2),
        SimpleNamespace(results=images, pictures=[("a map", heat)]),
    ]
    members = tuple(Member(f"{k}/best.pt", epoch=3, temperature=2.0, threshold=0.4) for k in (0, 1))
    decisions = {"threshold": 0.4, "threshold_by": "youden", "temperature": 2.0, "epoch": 3, "members": members}
    fits = []
    find = embedding.principal_components
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "NUM_FITTED", 12)
        patch.setattr(embedding, "principal_components", lambda values: fits.append(values) or find(values))
        patch.setattr(evaluation, "principal_components", embedding.principal_components)
        metrics = report_evaluation(
            *(folder, "Tiles", _trained(["healthy", "ill"], **decisions), rows, datasets),
            features=np.random.default_rng(0).normal(size=(16, 9)),
            explanations=explanations,
            subgroups=["site"],
        )
    return SimpleNamespace(**locals())


def test_two_classes_with_a_threshold(evaluated):
    metrics, rows, datasets = evaluated.metrics, evaluated.rows, evaluated.datasets
    label, score = [row["label"] for row in rows], [row["prob"][1] for row in rows]
    assert metrics["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(label, score))
    assert metrics["threshold"] == 0.4
    assert list(metrics["shortcuts"]) == ["mean color", "size", "all of them"]
    assert {name: table["num_images"] for name, table in metrics["splits"].items()} == (
        {"train": 24, "validation": 8, "test": 16}
    )
    assert metrics["skipped"] == [{"image": "broken.png", "reason": "truncated"}]
    assert metrics["run"]["source"] == "tiles.zip"
    assert metrics["run"]["chain"] == {"size": [40, 30]}

    page = page_of(evaluated.folder)
    assert {"samples", "mistakes", "embeddings", "shortcuts"} <= {*page.sections}
    assert "\u00b1 0.10" in page.text
    assert "/home/a" not in page.text
    assert {"embedding_raw_pixels.png", "embedding_trained_features.png", "history.png", "classes.png"} <= {
        file.name for file in evaluated.folder.iterdir()
    }
    assert sum(datasets.train.loads.values()) == 12
    assert sum(datasets.test.loads.values()) <= 16 + 2 + 12 + metrics["num_wrong"]
    assert not datasets.validation.loads
    assert len(evaluated.fits) == 2, "components of raw pixels and of features, each found once"


def test_everything_about_the_checkpoint_is_reported(evaluated):
    metrics = evaluated.metrics
    assert (metrics["threshold_by"], metrics["calibration"]["temperature"]) == ("youden", 2.0)
    assert metrics["calibration"]["before"]["ece"] is not None
    assert metrics["members"] == [member._asdict() for member in evaluated.members]
    assert {site: group["num_images"] for site, group in metrics["subgroups"]["site"].items()} == {
        "": 1,
        "a": 7,
        "b": 8,
    }
    assert metrics["audit"]["patients_in_several_splits"] == 1
    assert metrics["audit"]["num_skipped"] == {"train": 0, "validation": 1, "test": 0}
    with open(evaluated.folder / "predictions.csv", newline="", encoding="utf-8") as opened:
        assert [line["site"] for line in csv.DictReader(opened)] == ["", "b", *["a", "b"] * 7, ""]


def test_metrics_are_printed_with_their_intervals(evaluated, capsys):
    metrics = evaluated.metrics
    evaluation._print_beside(metrics | {"metrics_at_half": dict.fromkeys(metrics["metrics"])}, "image")
    printed = capsys.readouterr().out
    roc_auc, ends = metrics["metrics"]["roc_auc"], "{:.3f} to {:.3f}".format(*metrics["intervals"]["roc_auc"])
    for wanted in ("network", "at 0.5", "n/a", "shortcut", "balanced_accuracy", f"{roc_auc:.3f}", ends):
        assert wanted in printed
    assert "at the threshold 0.4" in printed
    assert "16 images, 9 patients" in printed


def test_the_page_is_written_again_without_the_data(evaluated, tmp_path):
    folder, metrics = shutil.copytree(evaluated.folder, tmp_path / "run"), evaluated.metrics
    pictures = {file.stem for file in (folder / "pictures").iterdir()}
    assert pictures == (
        {f"sample-{k}" for k in range(12)}
        | {f"mistake-{k}" for k in range(metrics["num_wrong"])}
        | {"looked-0-0", "looked-0-1", "looked-1-0"}
    )
    names = "report.html", "metrics.json", "predictions.csv", "roc.png"
    for name in names:
        (folder / name).unlink()
    assert rebuild_report(folder) == metrics
    for name in names:
        assert (folder / name).read_bytes() == (evaluated.folder / name).read_bytes()


def test_tensorboard_has_pictures_and_points_of_the_last_evaluation_alone(evaluated):
    folder = evaluated.folder / "tensorboard" / "evaluation"
    tags = {"classes", "roc/test", "confusion_matrix/test", "samples/test", "mistakes/test", "gradcam/1_a_map"}
    tags |= {"attention/1_a_heatmap", "attention/2_a_heatmap", "embedding/raw_pixels", "embedding/trained_features"}
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()
    assert {tag: len(found.Images(tag)) for tag in found.Tags()["images"]} == dict.fromkeys(tags, 1)
    assert "pr_curve/ill" in found.Tags()["tensors"]
    (tag,) = [name for name in found.Tags()["scalars"] if "ece" in name]
    assert found.Scalars(tag)[0].value == pytest.approx(evaluated.metrics["metrics"]["ece"])
    config = (folder / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 2
    assert "single_image_dim: 30" in config
    assert not [*folder.rglob("old")]
    for name, width in (("raw_pixels", 16), ("trained_features", 9)):
        (points,) = folder.glob(f"*/{name}")
        assert (points / "metadata.tsv").read_text().split() == ["healthy", "ill"] * 8
        values = [line.split("\t") for line in (points / "tensors.tsv").read_text().splitlines()]
        assert [len(row) for row in values] == [width] * 16
        assert (points / "sprite.png").is_file()


def test_tensorboard_shows_the_pictures_of_the_page(evaluated):
    folder = evaluated.folder
    accumulator = EventAccumulator(str(folder / "tensorboard" / "evaluation"), size_guidance={"images": 0}).Reload()
    files = {"classes": "classes", "roc/test": "roc", "confusion_matrix/test": "confusion_matrix",
             "embedding/raw_pixels": "embedding_raw_pixels"}  # fmt: skip
    drawn = {tag: np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for tag, name in files.items()}
    drawn["attention/2_a_heatmap"] = drawn["gradcam/1_a_map"] = evaluated.heat.transpose(1, 2, 0)
    for tag, wanted in drawn.items():
        logged = Image.open(io.BytesIO(accumulator.Images(tag)[0].encoded_image_string))
        np.testing.assert_array_equal(np.asarray(logged), wanted)


def test_explanations_are_reported_and_shown(evaluated):
    assert evaluated.metrics["explanations"] == [evaluated.slides, evaluated.images]
    page = (evaluated.folder / "report.html").read_text(encoding="utf-8")
    assert "a heatmap" in page
    assert "a map" in page


def test_baselines_are_those_of_the_same_images(tmp_path):
    datasets = _datasets(labels=(0, 1, 2))
    metrics = _report(tmp_path, _rows(datasets.test, 3), datasets, ["a", "b", "c"])
    features = [
        {"mean color": part.images.float().flatten(2).mean(2).numpy(), "size": np.tile([4.0, 1.0], (len(part), 1))}
        for part in (datasets.train, datasets.test)
    ]
    labels = [[item["label"] for item in part.data] for part in (datasets.train, datasets.test)]
    prob = shortcut_baselines(features[0], labels[0], features[1], 3)
    for name, values in metrics["shortcuts"].items():
        assert values["accuracy"] == pytest.approx((prob[name].argmax(1) == labels[1]).mean())


def test_samples_are_drawn_from_the_classes_in_turn(tmp_path):
    for kind, shape, num in ((_Dataset, (1, 8, 8), 12), (_Volumes, (1, 6, 6, 6), 8)):
        dataset = kind([0] * 30 + [*range(1, 7)] * 2 + [7], shape, 0)
        samples = evaluation._samples(dataset, "abcdefgh", num)
        shown = Counter(caption[0] for caption, _ in samples)
        assert len(samples) == num
        assert set(shown) == set("abcdefgh")
        assert max(shown.values()) == (2 if num == 12 else 1)
        assert sorted(caption[0] for caption, _ in samples) == [caption[0] for caption, _ in samples]


def test_volumes_of_unknown_patients_without_shortcuts(tmp_path, capsys):
    datasets = _datasets(_Volumes, (1, 6, 6, 6), labels=range(8), shortcuts=())
    for part in vars(datasets).values():
        for item in part.data:
            del item["patient"]
    rows = [{"image": i["name"], "prob": np.eye(8)[0].tolist(), "label": i["label"]} for i in datasets.test.data]
    metrics = _report(tmp_path, rows, datasets, list("abcdefgh"), unit="scan")
    assert metrics["num_patients"] is None
    assert {table["num_patients"] for table in metrics["splits"].values()} == {None}
    assert (metrics["shortcuts"], metrics["shortcut"], metrics["shortcut_name"]) == ({}, None, None)
    assert len([*(tmp_path / "pictures").glob("sample-*.png")]) == 8
    assert len([*(tmp_path / "pictures").glob("mistake-*.png")]) == 8
    page = page_of(tmp_path)
    assert {"patients-unknown", "no-shortcut"} <= page.notes
    assert "one-class" not in page.notes
    assert "16 scans, patients unknown" in capsys.readouterr().out
    folder = tmp_path / "tensorboard" / "evaluation"
    assert "sprite" not in (folder / "projector_config.pbtxt").read_text()


def test_training_images_of_one_class_leave_the_shortcut_out(tmp_path, caplog):
    datasets = _datasets()
    datasets.train = _Dataset([1] * 5, (3, 40, 30), 0)
    with caplog.at_level(logging.INFO, "monai_pipelines"):
        metrics = _report(tmp_path, _rows(datasets.test, 2), datasets, ["a", "b"])
    assert caplog.messages[-1] == f"report: {tmp_path / 'report.html'}"
    assert metrics["shortcuts"] == {}
    assert "no shortcut baseline: the training images that could be used are of one class" in caplog.text
    assert {"no-shortcut", "one-class"} <= page_of(tmp_path).notes


def test_several_labels(tmp_path):
    labels = ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    datasets = _datasets(labels=labels, shape=(1, 28, 28))
    rows = [{**row, "label": [int(value) for value in row["label"]], "spread": 0.1} for row in _rows(datasets.test, 3)]
    metrics = _report(tmp_path, rows, datasets, ["nodule", "edema", "mass"], multilabel=True)
    assert [table["num_images"] for table in metrics["classes"].values()] == [8, 8, 4]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nodule, edema" in page
    assert "missed: " in page
    assert "\u00b1" not in page, "the spread is of the likeliest class, not of the wrong one"
    assert "confusion_matrix/test" not in _events(tmp_path / "tensorboard" / "evaluation")


def test_one_test_image_and_no_mistake(tmp_path):
    datasets = _datasets()
    datasets.test = _Dataset([1], (3, 8, 8), 7)
    rows = [{"image": "7/0.png", "prob": [0.1, 0.9], "label": 1, "patient": "p"}]
    metrics = _report(tmp_path, rows, datasets, ["a", "b"], features=np.zeros((1, 4)))
    assert metrics["num_wrong"] == 0
    assert not {"mistakes", "embeddings"} & {*page_of(tmp_path).sections}


@pytest.mark.parametrize(
    ("num_rows", "num_features", "message"),
    [(15, 16, "15 rows and 16 features$"), (16, 15, "16 rows and 15 features$")],
)
def test_rows_that_do_not_match_are_an_error(tmp_path, num_rows, num_features, message):
    datasets = _datasets()
    features = np.zeros((num_features, 3))
    with pytest.raises(ValueError, match=f"wanted a row and features for each of 16 test images, got {message}"):
        _report(tmp_path, _rows(datasets.test, 2)[:num_rows], datasets, ["a", "b"], features=features)


def test_unknown_subgroups_are_an_error_before_anything_is_read(tmp_path):
    datasets = _datasets()
    with pytest.raises(KeyError, match="subgroups: no column site; there are label, name, patient"):
        _report(tmp_path, _rows(datasets.test, 2), datasets, ["a", "b"], subgroups=["site"])
    assert not datasets.test.loads


def test_subgroups_as_text_are_refused(tmp_path):
    datasets = _datasets()
    with pytest.raises(TypeError, match="subgroups: wanted a list of columns, got 'sex'"):
        _report(tmp_path, _rows(datasets.test, 2), datasets, ["a", "b"], subgroups="sex")


def test_inference_lists_what_was_skipped(tmp_path, caplog):
    dataset = SimpleNamespace(skipped=[{"image": "/data/b.png", "name": "b.png", "skipped": "no image"}])
    rows = [{"image": "a.png", "prob": [0.6, 0.4]}]
    parts = {"run": lambda: None, "predictions": SimpleNamespace(rows=rows), "dataset": dataset}
    trained = _trained(["healthy", "ill"], threshold=0.3)
    with caplog.at_level(logging.INFO, "monai_pipelines"):
        predict(SimpleNamespace(**parts, trained=trained), tmp_path / "new")
    assert caplog.messages == [
        "a.png: ill 0.40, at or above the threshold 0.30: ill",
        "b.png: skipped",
        "1 predicted at the threshold 0.3, 1 skipped",
        f"wrote {tmp_path / 'new'}: predictions.csv",
    ]
    with open(tmp_path / "new" / "predictions.csv", newline="", encoding="utf-8") as opened:
        first, second = csv.DictReader(opened)
    assert (first["image"], first["predicted_name"], first["skipped"]) == ("a.png", "ill", "")
    assert (second["image"], second["predicted"], second["skipped"]) == ("b.png", "", "no image")
    trained = _trained(["healthy", "ill"], multilabel=True)
    predict(SimpleNamespace(**parts, trained=trained), tmp_path)
    assert "0.6,0.4,1|0,healthy," in (tmp_path / "predictions.csv").read_text(encoding="utf-8")
