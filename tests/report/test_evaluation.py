from __future__ import annotations

import csv
import io
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_pipelines.metrics import shortcut_baselines
from monai_pipelines.report import embedding, evaluation
from monai_pipelines.report.evaluation import report_evaluation, write_inference


class _Dataset:
    """Images whose brightness follows the label; counts how often each is loaded."""

    def __init__(self, labels, shape, seed, shortcuts=("mean colour", "size")):
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
        every = {"mean colour": image.float().flatten(1).mean(1), "size": torch.tensor([4.0, 1.0])}
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
    return [{"image": item["name"], "prob": own, **{key: item[key] for key in keys}}
            for item, own in zip(dataset.data, prob.tolist(), strict=True)]  # fmt: skip


def _events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
    accumulator.Reload()
    return {tag: len(accumulator.Images(tag)) for tag in accumulator.Tags()["images"]}


def test_two_classes_with_a_threshold(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "NUM_FITTED", 12)
    datasets = _datasets()
    rows = [{**row, "spread": 0.1} for row in _rows(datasets.test, 2)]
    features = np.random.default_rng(0).normal(size=(16, 9))
    (tmp_path / "history.json").write_text('[{"epoch": 1, "train": {"loss": 0.7}, "val": {"roc_auc": 0.6}}]')
    knobs = {"knobs": {"keys": "image", "size": [40, 30]}}
    run = {"command": "python", "source": "/home/a/b/tiles.zip", "chain": knobs, "augmentation": None}
    (tmp_path / "run.json").write_text(json.dumps(run))
    metrics = report_evaluation(tmp_path, "Tiles", rows, datasets, ["healthy", "ill"], threshold=0.4, features=features)

    label, score = [row["label"] for row in rows], [row["prob"][1] for row in rows]
    assert metrics["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(label, score))
    assert metrics["threshold"] == 0.4
    assert list(metrics["shortcuts"]) == ["mean colour", "size", "all of them"]
    assert {name: table["num_scans"] for name, table in metrics["splits"].items()} == (
        {"train": 24, "validation": 8, "test": 16}
    )
    assert metrics["skipped"] == [{"image": "broken.png", "reason": "truncated"}]
    assert metrics["run"]["source"] == "tiles.zip"
    assert metrics["run"]["chain"] == {"size": [40, 30]}

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for wanted in ("What the model sees", "Most confident mistakes", "What looks alike", "Shortcuts"):
        assert wanted in page
    assert "\u00b1\u00a00.10" in page
    assert "/home/a" not in page
    assert {"embedding_raw_pixels.png", "embedding_trained_features.png", "history.png", "classes.png"} <= {
        file.name for file in tmp_path.iterdir()
    }
    assert sum(datasets.train.loads.values()) == 12
    assert sum(datasets.test.loads.values()) <= 16 + 2 + 12 + metrics["num_wrong"]
    assert not datasets.validation.loads

    printed = capsys.readouterr().out
    for wanted in ("network", "mean", "all of", "roc_auc", "balanced_accuracy", f"{metrics['metrics']['roc_auc']:.3f}"):
        assert wanted in printed


def test_baselines_are_those_of_the_same_images(tmp_path):
    datasets = _datasets(labels=(0, 1, 2))
    metrics = report_evaluation(tmp_path, "T", _rows(datasets.test, 3), datasets, ["a", "b", "c"])
    features = [
        {"mean colour": part.images.float().flatten(2).mean(2).numpy(), "size": np.tile([4.0, 1.0], (len(part), 1))}
        for part in (datasets.train, datasets.test)
    ]
    labels = [[item["label"] for item in part.data] for part in (datasets.train, datasets.test)]
    prob = shortcut_baselines(features[0], labels[0], features[1], 3)
    for name, own in metrics["shortcuts"].items():
        assert own["accuracy"] == pytest.approx((prob[name].argmax(1) == labels[1]).mean())


def test_tensorboard_has_pictures_and_points_of_the_last_evaluation_alone(tmp_path):
    datasets = _datasets()
    features = np.random.default_rng(0).normal(size=(16, 9))
    for _ in range(2):
        report_evaluation(tmp_path, "T", _rows(datasets.test, 2), datasets, ["a", "b"], features=features)
    folder = tmp_path / "tensorboard" / "evaluation"
    tags = {"classes", "roc/test", "confusion_matrix/test", "samples/test", "mistakes/test"}
    assert _events(folder) == dict.fromkeys(tags | {"embedding/raw_pixels", "embedding/trained_features"}, 1)
    config = (folder / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 2
    assert "single_image_dim: 30" in config
    for name, width in (("raw_pixels", 16), ("trained_features", 9)):
        (points,) = folder.glob(f"*/{name}")
        assert (points / "metadata.tsv").read_text().split() == ["a", "b"] * 8
        values = [line.split("\t") for line in (points / "tensors.tsv").read_text().splitlines()]
        assert [len(row) for row in values] == [width] * 16
        assert (points / "sprite.png").is_file()


def test_explanations_are_told_and_shown(tmp_path):
    datasets = _datasets()
    heat = np.random.default_rng(0).integers(0, 256, (3, 30, 70)).astype(np.uint8)
    explained = SimpleNamespace(results={"num_slides": 16, "relative_entropy": 0.5}, pictures=[("a map", heat)] * 2)
    options = {"classes": ["a", "b"], "unit": "slide", "explanations": [explained]}
    metrics = report_evaluation(tmp_path, "T", _rows(datasets.test, 2), datasets, **options)
    assert metrics["explanations"] == [explained.results]
    assert "a map" in (tmp_path / "report.html").read_text(encoding="utf-8")
    folder = tmp_path / "tensorboard" / "evaluation"
    assert {"attention/test/0", "attention/test/1"} <= set(_events(folder))
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    (shown,) = accumulator.Images("attention/test/1")
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), heat.transpose(1, 2, 0)
    )


def test_tensorboard_shows_the_pictures_of_the_page(tmp_path):
    datasets = _datasets()
    report_evaluation(tmp_path, "T", _rows(datasets.test, 2), datasets, ["a", "b"])
    accumulator = EventAccumulator(str(tmp_path / "tensorboard" / "evaluation"), size_guidance={"images": 0}).Reload()
    files = {"classes": "classes", "roc/test": "roc", "confusion_matrix/test": "confusion_matrix",
             "embedding/raw_pixels": "embedding_raw_pixels"}  # fmt: skip
    for tag, name in files.items():
        logged = Image.open(io.BytesIO(accumulator.Images(tag)[0].encoded_image_string))
        drawn = Image.open(tmp_path / f"{name}.png").convert("RGB")
        np.testing.assert_array_equal(np.asarray(logged), np.asarray(drawn))


def test_components_are_found_once(tmp_path, monkeypatch):
    fits = []
    find = evaluation.principal_components
    monkeypatch.setattr(embedding, "principal_components", lambda values: fits.append(values) or find(values))
    monkeypatch.setattr(evaluation, "principal_components", embedding.principal_components)
    datasets = _datasets()
    report_evaluation(tmp_path, "T", _rows(datasets.test, 2), datasets, ["a", "b"], features=np.eye(16))
    assert len(fits) == 2, "raw pixels and features"


def test_samples_are_drawn_from_the_classes_in_turn(tmp_path):
    for kind, shape, num in ((_Dataset, (1, 8, 8), 12), (_Volumes, (1, 6, 6, 6), 8)):
        dataset = kind([0] * 30 + [*range(1, 7)] * 2 + [7], shape, 0)
        samples = evaluation._samples(dataset, "abcdefgh", num)
        shown = Counter(caption[0] for caption, _ in samples)
        assert len(samples) == num
        assert set(shown) == set("abcdefgh")
        assert max(shown.values()) == (2 if num == 12 else 1)
        assert sorted(caption[0] for caption, _ in samples) == [caption[0] for caption, _ in samples]


def test_eight_volumes_and_patients_unknown(tmp_path, capsys):
    datasets = _datasets(_Volumes, (1, 6, 6, 6), labels=range(8))
    for part in vars(datasets).values():
        for item in part.data:
            del item["patient"]
    rows = [{"image": i["name"], "prob": np.eye(8)[0].tolist(), "label": i["label"]} for i in datasets.test.data]
    metrics = report_evaluation(tmp_path, "T", rows, datasets, list("abcdefgh"), unit="scan")
    assert metrics["num_patients"] is None
    assert {table["num_patients"] for table in metrics["splits"].values()} == {None}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "16 scans scored, 1 skipped, patients unknown." in page
    assert page.count('<figcaption class="lines">') == 8 + 8  # samples and mistakes
    assert "16 scans, patients unknown" in capsys.readouterr().out


def test_training_images_of_one_class_leave_the_shortcut_out(tmp_path, caplog):
    datasets = _datasets()
    datasets.train = _Dataset([1] * 5, (3, 40, 30), 0)
    metrics = report_evaluation(tmp_path, "T", _rows(datasets.test, 2), datasets, ["a", "b"])
    assert metrics["shortcuts"] == {}
    assert "no shortcut baseline: the training images that could be used are of one class" in caplog.text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No shortcut baseline was computed (all training images that could be used are of one class)" in page


def test_several_labels(tmp_path):
    labels = ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    datasets = _datasets(labels=labels, shape=(1, 28, 28))
    rows = [{**row, "label": [int(own) for own in row["label"]], "spread": 0.1} for row in _rows(datasets.test, 3)]
    metrics = report_evaluation(tmp_path, "T", rows, datasets, ["nodule", "edema", "mass"], multilabel=True)
    assert [own["num_scans"] for own in metrics["classes"].values()] == [8, 8, 4]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nodule, edema" in page
    assert "missed: " in page
    assert "\u00b1" not in page, "the spread is of the likeliest class, not of the wrong one"
    assert "confusion_matrix/test" not in _events(tmp_path / "tensorboard" / "evaluation")


def test_volumes_without_shortcuts(tmp_path):
    datasets = _datasets(_Volumes, (1, 20, 18, 16), shortcuts=())
    metrics = report_evaluation(tmp_path, "T", _rows(datasets.test, 2), datasets, ["a", "b"], unit="scan")
    assert (metrics["shortcuts"], metrics["shortcut"], metrics["shortcut_name"]) == ({}, None, None)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "16 scans of 8 patients" in page
    assert "No shortcut baseline was computed, so it is open" in page
    folder = tmp_path / "tensorboard" / "evaluation"
    assert "sprite" not in (folder / "projector_config.pbtxt").read_text()


def test_one_test_image_and_no_mistake(tmp_path):
    datasets = _datasets()
    datasets.test = _Dataset([1], (3, 8, 8), 7)
    rows = [{"image": "7/0.png", "prob": [0.1, 0.9], "label": 1, "patient": "p"}]
    metrics = report_evaluation(tmp_path, "T", rows, datasets, ["a", "b"], features=np.zeros((1, 4)))
    assert metrics["num_wrong"] == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Most confident mistakes" not in page
    assert "What looks alike" not in page


@pytest.mark.parametrize(
    ("num_rows", "num_features", "told"), [(15, None, "15 rows$"), (16, 15, "16 rows and 15 features$")]
)
def test_rows_that_do_not_match_are_told(tmp_path, num_rows, num_features, told):
    datasets = _datasets()
    features = None if num_features is None else np.zeros((num_features, 3))
    with pytest.raises(ValueError, match=f"wanted a row for each of 16 test images, got {told}"):
        report_evaluation(tmp_path, "T", _rows(datasets.test, 2)[:num_rows], datasets, ["a", "b"], features=features)


def test_inference_lists_what_was_skipped(tmp_path):
    dataset = SimpleNamespace(skipped=[{"image": "/data/b.png", "name": "b.png", "skipped": "no image"}])
    rows = [{"image": "a.png", "prob": [0.6, 0.4]}]
    file = write_inference(tmp_path / "new", rows, dataset, ["healthy", "ill"], threshold=0.3)
    with open(file, newline="", encoding="utf-8") as opened:
        first, second = csv.DictReader(opened)
    assert (first["image"], first["predicted_name"], first["skipped"]) == ("a.png", "ill", "")
    assert (second["image"], second["predicted"], second["skipped"]) == ("b.png", "", "no image")
    several = write_inference(tmp_path, rows, dataset, ["healthy", "ill"], multilabel=True)
    assert "0.6,0.4,1|0,healthy," in several.read_text(encoding="utf-8")
