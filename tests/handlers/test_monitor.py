"""TensorBoard and history of a training by MONAI's real engines."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from sklearn.metrics import precision_score, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from monai_pipelines.declared import declared_path
from monai_pipelines.handlers import monitor

MakeRun = Callable[..., Any]
Scans = Callable[[int, int], list[dict[str, Any]]]

SEVERAL = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def _events(folder: Path, name: str) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard" / name), size_guidance={"tensors": 0, "images": 0}).Reload()


def _scalars(folder: Path, name: str) -> dict[str, dict[int, float]]:
    events = _events(folder, name)
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all([step for step, _ in rows] == sorted({step for step, _ in rows}) for rows in found.values())
    return {tag: dict(rows) for tag, rows in found.items()}


def _history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "history.json").read_text())


def _metrics(history: list[dict[str, Any]], part: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for record in history:
        for name, value in record.get(part, {}).items():
            if value is not None:
                found.setdefault(f"metrics/{name}", {})[record["epoch"]] = pytest.approx(value)
    return found


def test_metrics_of_each_epoch_and_step(make_run: MakeRun, scans: Scans, tmp_path: Path, caplog: Any) -> None:
    data = [{**item, "image": MetaTensor(item["image"])} for item in scans(16, 1)]
    run = make_run(max_epochs=3, val_interval=2, data=data, scheduler=lambda o, n: StepLR(o, 1, 0.5), clip_norm=0.01)
    losses: list[float] = []
    norms: list[float] = []
    run.network[1].weight.register_hook(lambda gradient: norms.append(float(gradient.norm())))
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"].detach()))
    )
    with caplog.at_level(logging.INFO, "monai_pipelines"):
        run.trainer.run()

    history = _history(tmp_path)
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert ["val" in record for record in history] == [False, True, True], "the last epoch, too"
    rates = {1: 0.05, 2: 0.025, 3: 0.0125}
    train = _scalars(tmp_path, "train")
    seconds, waiting = (train.pop(f"time/{name}") for name in ("seconds", "waiting_for_data"))
    assert train == {"learning_rate": pytest.approx(rates), **_metrics(history, "train")}
    assert list(seconds) == [1, 2, 3]
    assert all(0 < share < 1 for share in waiting.values())
    assert re.search(r", \d+\.\d s, \d+% of them waiting for data", caplog.text)
    assert _scalars(tmp_path, "validation") == _metrics(history, "val")
    assert {"metrics/loss", "metrics/roc_auc", "metrics/accuracy"} <= set(_metrics(history, "val"))
    steps = _scalars(tmp_path, "steps")
    assert set(steps) == {"steps/loss", "steps/learning_rate", "steps/gradient_norm"}
    assert steps["steps/loss"] == pytest.approx(dict(enumerate(losses, start=1)))
    assert steps["steps/learning_rate"] == pytest.approx({k: rates[(k + 3) // 4] for k in range(1, 13)})
    for step, of_layer in enumerate(norms, start=1):
        assert steps["steps/gradient_norm"][step] > of_layer > 0.01, "of all layers, before it is clipped"
    assert [event.step for event in _events(tmp_path, "train").Images("input/train")] == [1]
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert "epoch 2/3: train loss" in caplog.text
    assert "val roc_auc" in caplog.text


@pytest.mark.usefixtures("blank_figures")
def test_learning_rate_of_an_epoch_is_that_of_its_last_step(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(max_epochs=3, scheduler=lambda o, n: OneCycleLR(o, 0.2, n)).trainer.run()
    steps = _scalars(tmp_path, "steps")["steps/learning_rate"]
    rates = {record["epoch"]: pytest.approx(record["lr"]) for record in _history(tmp_path)}
    assert rates == {epoch: steps[4 * epoch] for epoch in (1, 2, 3)}
    assert _scalars(tmp_path, "train")["learning_rate"] == rates


@pytest.mark.usefixtures("blank_figures")
def test_every_chart_of_the_layout_has_its_metrics(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(max_epochs=2).trainer.run()
    (tensor,) = _events(tmp_path, "train").Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    patterns = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    runs = {name: set(_scalars(tmp_path, name)) for name in ("train", "validation", "steps")}
    shown = {pattern: [name for name, tags in runs.items() if any(re.match(pattern, t) for t in tags)]
             for pattern in patterns}  # fmt: skip
    assert set(map(tuple, shown.values())) == {("train", "validation"), ("train",), ("steps",)}
    assert shown["^metrics/roc_auc$"] == ["train", "validation"]
    for tag in set().union(*runs.values()):
        assert sum(re.match(pattern, tag) is not None for pattern in patterns) == 1, tag


def _pr_curve(event: Any) -> dict[str, np.ndarray]:
    rows = np.array(event.tensor_proto.float_val).reshape(6, -1)
    return dict(zip(("tp", "fp", "tn", "fn", "precision", "recall"), rows, strict=True))


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("num_logits", [1, 2])
def test_pr_curve_and_confusion_matrix_of_each_validation(make_run: MakeRun, tmp_path: Path, num_logits: int) -> None:
    loss = nn.BCEWithLogitsLoss() if num_logits == 1 else None
    run = make_run(4, val_interval=2, num_logits=num_logits, loss=loss and _OneLogit(loss))
    run.trainer.run()
    events = _events(tmp_path, "validation")
    assert [event.step for event in events.Images("confusion_matrix/validation")] == [2, 4]
    assert "pr_curve/healthy" not in events.Tags()["tensors"]
    found = events.Tensors("pr_curve/disease")
    assert [event.step for event in found] == [2, 4]
    logits, label = run.evaluator.epoch_metrics.predictions
    prob = torch.sigmoid(logits[:, 0]) if num_logits == 1 else logits.softmax(1)[:, 1]
    called = prob.numpy() >= 63 / 126
    curve = _pr_curve(found[-1])
    assert curve["recall"][63] == pytest.approx(recall_score(label, called))
    assert curve["precision"][63] == pytest.approx(precision_score(label, called, zero_division=0))


class _OneLogit(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.loss(logits.flatten(), label.float())


def test_drawings_for_several_labels(
    make_run: MakeRun, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[torch.Tensor], list[str]]] = []
    make_figure = monitor.images_figure
    monkeypatch.setattr(monitor, "images_figure", lambda *args: drawn.append(args) or make_figure(*args))
    data = [
        {**item, "image": item["image"][0], "label": torch.tensor(SEVERAL[k % 4])}
        for k, item in enumerate(scans(16, 1))
    ]
    loss = nn.BCEWithLogitsLoss()
    make_run(1, data=data, val_data=data[:10], num_logits=3, loss=loss, classes=["a", "b", "c"]).trainer.run()
    ((images, titles),) = drawn
    assert titles == ["a, c", "none", "b", "c"]
    assert all(torch.equal(image, item["image"]) for image, item in zip(images, data, strict=False))
    tags = _events(tmp_path, "validation").Tags()
    assert tags["images"] == []
    assert set(tags["tensors"]) == {"pr_curve/a", "pr_curve/b", "pr_curve/c"}
    assert _scalars(tmp_path, "validation") == _metrics(_history(tmp_path), "val")


@pytest.mark.usefixtures("blank_figures")
def test_undefined_metrics_are_null_in_the_history_and_absent_in_tensorboard(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(max_epochs=1, script=[(math.nan, 1.0)]).trainer.run()
    assert _history(tmp_path)[0]["val"]["roc_auc"] is None
    assert "NaN" not in (tmp_path / "history.json").read_text()
    tags = _scalars(tmp_path, "validation")
    assert "metrics/loss" in tags
    assert "metrics/roc_auc" not in tags


@pytest.mark.usefixtures("blank_figures")
def test_a_class_without_an_image_has_no_pr_curve(make_run: MakeRun, scans: Scans, tmp_path: Path) -> None:
    make_run(1, val_data=[{**item, "label": 0} for item in scans(8, 2)]).trainer.run()
    assert _events(tmp_path, "validation").Tags()["tensors"] == []


def _break_off(run: Any, iteration: int) -> None:
    def cut(engine: Any) -> None:
        raise KeyboardInterrupt

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), cut)
    with pytest.raises(KeyboardInterrupt):
        run.trainer.run()


@pytest.mark.usefixtures("blank_figures")
def test_what_was_logged_is_on_disk_when_a_run_breaks_off(make_run: MakeRun, tmp_path: Path) -> None:
    _break_off(make_run(), 5)
    assert {1, 2, 3, 4} <= set(_scalars(tmp_path, "steps")["steps/loss"])
    assert len(_history(tmp_path)) == 1


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("resume", [False, True])
def test_no_step_stands_twice_after_a_run_that_broke_off(make_run: MakeRun, tmp_path: Path, resume: bool) -> None:
    broken = make_run()
    _break_off(broken, 10)
    for writer in broken.handlers.monitor.writers.values():
        writer.close()
    make_run(resume=resume).trainer.run()
    assert list(_scalars(tmp_path, "steps")["steps/loss"]) == list(range(1, 13))
    for name, part in (("train", "train"), ("validation", "val")):
        found = _scalars(tmp_path, name)
        for other in ("learning_rate", "time/seconds", "time/waiting_for_data"):
            found.pop(other, None)
        assert found == _metrics(_history(tmp_path), part)
    events = _events(tmp_path, "validation")
    assert [event.step for event in events.Tensors("pr_curve/disease")] == [1, 2, 3]
    assert [event.step for event in events.Images("confusion_matrix/validation")] == [1, 2, 3]
    assert [event.step for event in _events(tmp_path, "train").Images("input/train")] == [1]


@pytest.mark.usefixtures("blank_figures")
def test_settings_and_configs_are_shown_without_paths(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("max_epochs: 1  # passes\n")
    run = {
        "settings": {"max_epochs": 1, "sampling": "a|b", "threshold_by": None},
        "overrides": {"max_epochs": 1, "dataset_dir": "/home/someone/data", "cache_dir": "C:\\cache"},
        "config_files": ["train.yaml"],
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    make_run(1).trainer.run()
    events = _events(tmp_path, "train")
    texts = {
        tag: event.tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
        for event in events.Tensors(tag)
    }
    assert set(texts) == {"settings/text_summary", "config/train.yaml/text_summary"}
    assert texts["settings/text_summary"].splitlines() == [
        "| setting | value | from |",
        "|---|---|---|",
        "| max_epochs | 1 | command line |",
        "| sampling | a&#124;b |  |",
        "| threshold_by | None |  |",
    ]
    assert texts["config/train.yaml/text_summary"] == "```\nmax_epochs: 1  # passes\n\n```"


@pytest.mark.filterwarnings("ignore")  # MLflow's own
@pytest.mark.usefixtures("blank_figures")
def test_tracking_by_mlflow(make_run: MakeRun, tmp_path: Path) -> None:
    """As ``--tracking mlflow.yaml`` adds it: the loss of each step, metrics of training and validation apart."""
    mlflow = pytest.importorskip("mlflow")
    run = make_run(2)
    settings = ConfigParser.load_config_file(declared_path("bundles") / "mlflow.yaml")
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"network": "Linear"}, "overrides": {}}))
    tracking = ConfigParser({**settings["configs"], "output_dir": str(tmp_path)})
    tracking.get_parsed_content("validator").attach(run.evaluator)
    tracking.get_parsed_content("trainer").attach(run.trainer)
    run.trainer.run()
    client = mlflow.MlflowClient(tracking.get_parsed_content("tracking_uri"))
    (tracked,) = client.search_runs(client.get_experiment_by_name("monai_pipelines").experiment_id)

    def values(name: str) -> dict[int, float]:
        return {metric.step: metric.value for metric in client.get_metric_history(tracked.info.run_id, name)}

    history = _history(tmp_path)
    assert values("train_roc_auc") == pytest.approx({r["epoch"]: r["train"]["roc_auc"] for r in history})
    assert values("roc_auc") == pytest.approx({r["epoch"]: r["val"]["roc_auc"] for r in history})
    assert values("train_loss") == pytest.approx(_scalars(tmp_path, "steps")["steps/loss"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["network"] == "Linear"


@pytest.mark.usefixtures("blank_figures")
def test_time_spent_waiting_for_batches(make_run: MakeRun, tmp_path: Path) -> None:
    """Each of the four batches of an epoch comes after 50 ms."""
    run = make_run(max_epochs=2)
    run.trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda: time.sleep(0.05))
    run.trainer.run()
    train = _scalars(tmp_path, "train")
    for epoch, seconds in train["time/seconds"].items():
        assert 0.2 <= seconds * train["time/waiting_for_data"][epoch] <= seconds
