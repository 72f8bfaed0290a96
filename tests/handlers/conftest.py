from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from matplotlib.figure import Figure
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from monai_pipelines import load_chain
from monai_pipelines.handlers import ClassificationMetrics, TrainingHandlers, monitor

BATCH = 4


@dataclass
class Run:
    """A training of a tiny network on data in memory, by MONAI's real engines."""

    trainer: Any
    evaluator: Any
    network: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    handlers: TrainingHandlers

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]


def _scans(num: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.rand(1, 4, 4, 4, generator=generator) + 0.1 * (i % 2), "label": i % 2, "name": f"scan{i}"}
        for i in range(num)
    ]


@pytest.fixture
def scans() -> Callable[[int, int], list[dict[str, Any]]]:
    """scans(num, seed): noise, a little brighter where the label is 1."""
    return _scans


def _play(metrics: Sequence[tuple[float, float]]) -> Callable[[Any], None]:
    """Handler of an evaluator: (ROC AUC, loss) of each epoch as given instead of measured."""

    def overwrite(engine: Any) -> None:
        auc, loss = metrics[engine.state.epoch - 1]
        engine.state.metrics |= {"roc_auc": auc, "loss": loss}

    return overwrite


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of such a small run."""
    for name in ("images_figure", "confusion_figure", "history_figure"):
        monkeypatch.setattr(monitor, name, lambda *args: Figure(figsize=(0.1, 0.1)))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(
        max_epochs: int = 3,
        scheduler: Callable[[torch.optim.Optimizer, int], Any] = lambda o, n: torch.optim.lr_scheduler.StepLR(o, 1000),
        script: Sequence[tuple[float, float]] | None = None,
        val_interval: int = 1,
        seed: int = 0,
        learning_rate: float = 0.05,
        data: list[dict[str, Any]] | None = None,
        val_data: list[dict[str, Any]] | None = None,
        num_logits: int = 2,
        loss: nn.Module | None = None,
        output_dir: Path = tmp_path,
        **options: Any,
    ) -> Run:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, num_logits))
        loss = loss or nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.5]))
        optimizer = torch.optim.Adam(network.parameters(), learning_rate)
        train = DataLoader(Dataset(data or _scans(16, 1)), batch_size=BATCH)
        lr_scheduler = scheduler(optimizer, max_epochs * len(train))
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(val_data or _scans(10, 2)), batch_size=BATCH),
            network=network,
            key_val_metric={"roc_auc": ClassificationMetrics(only="roc_auc")},
            additional_metrics={"all": ClassificationMetrics(loss_function=loss)},
            decollate=False,
        )
        if script:
            evaluator.add_event_handler(Events.EPOCH_COMPLETED, _play(script))
        trainer: Any = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=max_epochs,
            train_data_loader=train,
            network=network,
            optimizer=optimizer,
            loss_function=loss,
            key_train_metric={"roc_auc": ClassificationMetrics(only="roc_auc")},
            additional_metrics={"all": ClassificationMetrics(loss_function=loss)},
            train_handlers=[ValidationHandler(interval=val_interval, validator=evaluator, epoch_level=True)],
            decollate=False,
        )
        handlers = TrainingHandlers(
            output_dir,
            evaluator,
            network,
            optimizer,
            lr_scheduler,
            **{"chain": load_chain("lung_ct"), "classes": ["healthy", "disease"], **options},
        )
        handlers.attach(trainer)
        return Run(trainer, evaluator, network, optimizer, lr_scheduler, handlers)

    return make
