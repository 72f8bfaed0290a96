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
from monai.inferers import SimpleInferer
from torch import nn

from monai_pipelines import Chain, load_chain
from monai_pipelines.data import PrepareImages
from monai_pipelines.engines import Model, ModelSupervisedEvaluator, ModelSupervisedTrainer
from monai_pipelines.handlers import TrainingHandlers, epoch_metrics, monitor

BATCH = 4


@dataclass
class Run:
    """A training of a tiny network on data in memory, by the real engines."""

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
    """Handler of an evaluator: (ROC AUC, loss) of each epoch as scripted instead of measured."""

    def overwrite(engine: Any) -> None:
        auc, loss = metrics[engine.state.epoch - 1]
        engine.state.metrics |= {"roc_auc": auc, "loss": loss}

    return overwrite


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of such a small run."""
    for module, name in ((monitor, "images_figure"), (epoch_metrics, "confusion_figure"), (monitor, "history_figure")):
        monkeypatch.setattr(module, name, lambda *args: Figure(figsize=(0.1, 0.1)))


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
        chain: Chain | None = None,
        classes: Sequence[str] = ("healthy", "disease"),
        multilabel: bool = False,
        key_metric: str = "roc_auc",
        inferer: Any = None,
        network: Callable[[], nn.Module] | None = None,
        loader: Any = None,
        trainer_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Run:
        torch.manual_seed(seed)
        chain = chain or load_chain("lung_ct")
        layers = nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, num_logits)
        made = nn.Sequential(*layers) if network is None else network()
        loss = loss or nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.5]))
        optimizer = torch.optim.Adam(made.parameters(), learning_rate)
        train = loader or DataLoader(Dataset(data or _scans(16, 1)), batch_size=BATCH)
        lr_scheduler = scheduler(optimizer, max_epochs * len(train))
        model = Model(
            made,
            chain,
            classes,
            torch.device("cpu"),
            inferer or SimpleInferer(),
            PrepareImages(),
            multilabel=multilabel,
        )
        evaluator: Any = ModelSupervisedEvaluator(model, Dataset(val_data or _scans(10, 2)), BATCH, loss, key_metric)
        if script:
            evaluator.add_event_handler(Events.EPOCH_COMPLETED, _play(script))
        handlers = TrainingHandlers(evaluator, output_dir, lr_scheduler, interval=val_interval, **options)
        trainer = ModelSupervisedTrainer(
            model,
            max_epochs,
            train,
            optimizer,
            loss,
            key_metric=key_metric,
            train_handlers=[handlers],
            **trainer_options or {},
        )
        return Run(trainer, evaluator, made, optimizer, lr_scheduler, handlers)

    return make
