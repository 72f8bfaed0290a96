"""An evaluation as TensorBoard reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import precision_score, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from monai_pipelines.report.tensorboard import add_pr_curves, log_evaluation


def _read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0}).Reload()


def _settings(events: EventAccumulator) -> dict[str, Any]:
    (content,) = (
        content
        for tag, content in events.PluginTagToContent("hparams").items()
        if tag == "_hparams_/session_start_info"
    )
    started = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in started.items()}


def test_what_an_earlier_evaluation_left_is_removed(tmp_path):
    for name in ("first", "second"):
        log_evaluation(tmp_path / "evaluation", {name: np.zeros((3, 4, 4), np.uint8)}, {}, [])
    assert _read(tmp_path / "evaluation").Tags()["images"] == ["second"]


def test_pictures_are_figures_files_or_pixels(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "picture.png")
    pictures = {"figure": Figure((1, 1), dpi=50), "file": (tmp_path / "picture.png").read_bytes(), "pixels": pixels}
    log_evaluation(tmp_path / "evaluation", pictures, {}, [])
    events = _read(tmp_path / "evaluation")
    sizes = {tag: (events.Images(tag)[0].width, events.Images(tag)[0].height) for tag in pictures}
    assert sizes == {"figure": (50, 50), "file": (4, 4), "pixels": (4, 4)}
    assert events.Images("file")[0].encoded_image_string == events.Images("pixels")[0].encoded_image_string


def test_projector_has_points_names_and_thumbnails(tmp_path):
    points = {"raw_pixels": np.eye(5), "trained_features": np.ones((5, 3))}
    names = ["healthy", "ill\tvery", "ill", "ill", "healthy"]
    log_evaluation(tmp_path, {}, points, names, np.zeros((5, 1, 8, 8)))
    config = (tmp_path / "projector_config.pbtxt").read_text()
    for tag, values in points.items():
        folder = tmp_path / "00000" / tag
        assert np.array_equal(np.loadtxt(folder / "tensors.tsv"), values)
        assert (folder / "metadata.tsv").read_text().split("\n")[1] == "ill very"
        with Image.open(folder / "sprite.png") as sprite:
            assert sprite.size == (24, 24), "three by three of 8 px"
        assert f'tensor_name: "{tag}:00000"' in config


def test_settings_stand_beside_the_figures_of_the_test(tmp_path):
    metrics = {"roc_auc": 0.9, "mcc": None, "ece": math.nan}
    settings = {"max_epochs": 5, "learning_rate": 0.001, "sampling": "balanced", "resume": False, "patience": None}
    log_evaluation(tmp_path, {}, {}, [], metrics=metrics, settings=settings)
    events = _read(tmp_path)
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        "metrics/roc_auc": pytest.approx(0.9)
    }
    assert _settings(events) == {"max_epochs": 5, "learning_rate": 0.001, "sampling": "balanced", "resume": "false"}
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [], "one run for all tabs"
    names = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in names.metric_infos] == ["metrics/roc_auc"]


def test_run_without_settings_shows_its_figures(tmp_path):
    log_evaluation(tmp_path, {}, {}, [], metrics={"roc_auc": 0.9})
    assert _read(tmp_path).Tags()["scalars"] == ["metrics/roc_auc"]


def _curves(folder: Path) -> dict[str, np.ndarray]:
    events = _read(folder)
    return {
        tag: np.array(events.Tensors(tag)[0].tensor_proto.float_val).reshape(6, -1) for tag in events.Tags()["tensors"]
    }


@pytest.mark.parametrize("multilabel", [False, True])
def test_pr_curves_are_scikit_learns(tmp_path, multilabel):
    rng = np.random.default_rng(0)
    classes, prob = ["a", "b", "c"], rng.dirichlet(np.ones(3), 60)
    positive = rng.random((60, 3)) < 0.4 if multilabel else np.eye(3, dtype=bool)[rng.integers(0, 3, 60)]
    label = positive.astype(int) if multilabel else positive.argmax(1)
    log_evaluation(tmp_path, {}, {}, [], prob=prob, label=label, classes=classes)
    curves = _curves(tmp_path)
    assert set(curves) == {"pr_curve/a", "pr_curve/b", "pr_curve/c"}
    for k, name in enumerate(classes):
        *_, precision, recall = curves[f"pr_curve/{name}"]
        for step in (20, 50, 80):
            called = prob[:, k] >= step / 126
            assert recall[step] == pytest.approx(recall_score(positive[:, k], called))
            assert precision[step] == pytest.approx(precision_score(positive[:, k], called, zero_division=0))


@pytest.mark.parametrize(
    ("label", "prob", "wanted"),
    [
        ([0, 1], [[0.9, 0.1], [0.2, 0.8]], {"pr_curve/b"}),
        ([0, 0], [[0.9, 0.1], [0.2, 0.8]], set()),
        ([0, 1], [[0.9, 0.1], [0.2, math.nan]], set()),
        ([[1, 0], [1, 1]], [[0.9, 0.1], [0.2, 0.8]], {"pr_curve/b"}),
        ([[1, 0], [0, 1]], [[0.9, 0.1], [0.2, 0.8]], {"pr_curve/a", "pr_curve/b"}),
    ],
)
def test_which_classes_have_a_pr_curve(tmp_path, label, prob, wanted):
    with SummaryWriter(str(tmp_path)) as writer:
        add_pr_curves(writer, label, prob, ["a", "b"])
    assert set(_curves(tmp_path)) == wanted


def test_nothing_of_this_machine_is_told(tmp_path):
    log_evaluation(tmp_path, {}, {"points": np.eye(5)}, ["a"] * 5, metrics={"roc_auc": 1.0}, settings={"seed": 0})
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()
    assert json.dumps(_settings(_read(tmp_path))) == '{"seed": 0.0}'
