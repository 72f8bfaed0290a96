"""Metrics of an epoch, of every form of head."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, roc_auc_score
from torch import nn
from torch.utils.data import DistributedSampler

from monai_pipelines.handlers import ClassificationMetrics
from monai_pipelines.losses import CrossEntropyLoss
from monai_pipelines.metrics import classification_metrics
from monai_pipelines.probabilities import probabilities
from tests.new_process import CONTEXT

MakeRun = Callable[..., Any]


def _epoch(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> tuple[Any, dict[str, float]]:
    """Predictions and metrics of an epoch that gave out these logits in batches of 4."""
    engine: Any = Engine(lambda engine, batch: {"pred": batch[0], "label": batch[1]})
    metrics = ClassificationMetrics(**options)
    metrics.attach(engine, "all")
    engine.run(list(zip(logits.split(4), labels.split(4), strict=True)))
    return metrics.predictions, engine.state.metrics


@pytest.mark.usefixtures("blank_figures")
def test_metrics_are_scikit_learns_of_the_epochs_logits(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(max_epochs=2)
    logits: dict[str, list[torch.Tensor]] = {"train": [], "val": []}
    labels: dict[str, list[torch.Tensor]] = {"train": [], "val": []}
    for part, engine in (("train", run.trainer), ("val", run.evaluator)):

        def collect(engine: Any, part: str = part) -> None:
            logits[part].append(engine.state.output["pred"].detach())
            labels[part].append(engine.state.output["label"])

        engine.add_event_handler(Events.ITERATION_COMPLETED, collect)
    run.trainer.run()

    for part, (num, batches) in {"train": (16, 4), "val": (10, 3)}.items():
        for epoch, record in enumerate(json.loads((tmp_path / "history.json").read_text())):
            some = slice(epoch * batches, (epoch + 1) * batches)
            z, y = torch.cat(logits[part][some]).double().numpy(), torch.cat(labels[part][some]).numpy()
            assert len(y) == num
            prob = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            wanted = {
                "roc_auc": roc_auc_score(y, prob[:, 1]),
                "average_precision": average_precision_score(y, prob[:, 1]),
                "accuracy": accuracy_score(y, prob.argmax(1)),
                "f1": f1_score(y, prob.argmax(1)),
                "loss": log_loss(y, prob, sample_weight=np.array([0.5, 1.5])[y]),
            }
            found = record[part]
            assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
            assert set(found) == {*classification_metrics(prob, y), "loss"}


def test_key_metric_of_the_engine(make_run: MakeRun) -> None:
    run = make_run(max_epochs=1)
    run.evaluator.run(1)
    assert run.evaluator.state.best_metric == run.evaluator.state.metrics["roc_auc"]
    logits, label = run.evaluator.epoch_metrics.predictions
    assert logits.shape == (10, 2)
    assert label.tolist() == [0, 1] * 5


def test_loss_function_with_its_own_default_weights_is_used_as_given() -> None:
    metric = ClassificationMetrics(loss_function=nn.functional.cross_entropy)
    metric.update((torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])))
    assert metric.compute()["loss"] == pytest.approx(math.log(2))


def test_one_logit_is_two_classes() -> None:
    """Batches of 4, 4 and 1."""
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(9, 1, generator=generator), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    loss = CrossEntropyLoss([0.5, 1.5])
    predictions, one = _epoch(z, labels, loss_function=loss)
    _, two = _epoch(torch.cat([torch.zeros_like(z), z], 1), labels, loss_function=loss)
    assert one == pytest.approx(two)
    p = 1 / (1 + np.exp(-z[:, 0].double().numpy()))
    weight = np.array([0.5, 1.5])[labels]
    assert one["roc_auc"] == pytest.approx(roc_auc_score(labels, p))
    assert one["accuracy"] == pytest.approx(accuracy_score(labels, p > 0.5))
    assert one["loss"] == pytest.approx(log_loss(labels, p, sample_weight=weight))
    logits, label = predictions
    assert torch.equal(logits, z)
    assert torch.equal(label, labels)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_several_labels_are_macro_averages(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(14, num_classes, generator=generator)
    labels = (torch.rand(14, num_classes, generator=generator) < 0.4).float()
    predictions, found = _epoch(z, labels, loss_function=CrossEntropyLoss())
    p, y = 1 / (1 + np.exp(-z.double().numpy())), labels.numpy()
    wanted = {
        "roc_auc": roc_auc_score(y, p, average="macro"),
        "average_precision": average_precision_score(y, p, average="macro"),
        "accuracy": ((p > 0.5) == y).mean(),
        "f1": f1_score(y, p > 0.5, average="macro", zero_division=0),
        "loss": -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    logits, label = predictions
    assert torch.equal(logits, z)
    assert torch.equal(label, labels)


def test_hand_worked_values_of_three_classes() -> None:
    """Predicted 0, 2, 2, 1 for 0, 1, 2, 1: recalls 1, 1/2 and 1."""
    z = torch.tensor([[2.0, 0, 0], [0, 1, 2], [0, 0, 2], [0, 2, 1]])
    _, found = _epoch(z, torch.tensor([0, 1, 2, 1]))
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx(5 / 6)
    assert found["precision"] == pytest.approx((1 + 1 + 1 / 2) / 3)


def _evaluate(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    metrics = []
    for logits, labels in torch.load(folder / "data.pt"):
        items = [
            {"image": z, "label": y, "name": f"scan{i}"} for i, (z, y) in enumerate(zip(logits, labels, strict=True))
        ]
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(items), batch_size=2, sampler=DistributedSampler(items)),
            network=nn.Identity(),
            key_val_metric={"roc_auc": (counted := ClassificationMetrics(CrossEntropyLoss()))},
            decollate=False,
        )
        evaluator.run()
        kept = counted.predictions[0]
        metrics.append({**evaluator.state.metrics, "rows": len(kept), "best": evaluator.state.best_metric})
    (folder / f"{rank}.json").write_text(json.dumps(metrics))


def test_two_processes_count_each_image_once(tmp_path: Path) -> None:
    """Of nine images a sampler of two processes gives one twice; every process has the figures of the nine."""
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    each = [(logits, labels), (logits, torch.eye(3)[labels]), (logits[:, :1], labels % 2)]
    torch.save(each, tmp_path / "data.pt")
    running = [CONTEXT.Process(target=_evaluate, args=(tmp_path, rank)) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(200)
    assert [process.exitcode for process in running] == [0, 0]
    for k, (logits, labels) in enumerate(each):
        prob = probabilities(logits, multilabel=labels.ndim == 2)
        wanted = classification_metrics(prob.numpy(), labels.numpy())
        loss = float(CrossEntropyLoss()(logits, labels))
        for rank in range(2):
            found = json.loads((tmp_path / f"{rank}.json").read_text())[k]
            assert found == pytest.approx({**wanted, "loss": loss, "rows": 9, "best": wanted["roc_auc"]})


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_logits_that_are_no_numbers_stop_the_run_with_the_names_of_the_batch(
    make_run: MakeRun, scans: Callable[[int, int], list[dict[str, Any]]], bad: float
) -> None:
    data = scans(10, 2)
    data[5]["image"] = torch.full_like(data[5]["image"], bad)
    run = make_run(val_data=data)
    message = "a logit is nan in epoch 1, iteration 2, with the images scan4, scan5, scan6, scan7; look at these images"
    with pytest.raises(FloatingPointError, match=message):
        run.trainer.run()
    with pytest.raises(FloatingPointError, match=r"with the images \(no names in the data\)"):
        _epoch(torch.tensor([[0.0, bad]]), torch.tensor([1]))


def test_metrics_before_a_batch_are_an_error() -> None:
    with pytest.raises(NotComputableError, match="wanted one batch or more"):
        ClassificationMetrics().compute()
