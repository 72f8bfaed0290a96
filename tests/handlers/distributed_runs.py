"""Trainings that processes of a test do together; see `tests.new_process.run_together`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn import functional

from monai_pipelines import load_chain, processes
from monai_pipelines.data import ArrayDataset, PrepareImages, make_loader
from monai_pipelines.engines import Model, ModelSupervisedEvaluator, ModelSupervisedTrainer
from monai_pipelines.handlers import ClassificationMetrics, TrainingHandlers
from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.losses import CrossEntropyLoss

NUM_TRAIN, NUM_VALIDATION, BATCH, EPOCHS = 43, 11, 8, 4
STEPS = NUM_TRAIN // BATCH * EPOCHS


class Cut(Exception):
    """The power goes in all processes at once."""


class Unordered(nn.Module):
    """Batch statistics, dropout, and layers that fill several buckets of gradients and are listed in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.second, self.first = nn.Linear(500, 2), nn.Linear(700, 500), nn.Linear(192, 700)
        self.norm = nn.BatchNorm1d(500)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.second(self.first(images.flatten(1)).tanh()))
        return self.last(functional.dropout(features, 0.3, self.training))


def network(random: bool) -> nn.Module:
    return Unordered() if random else nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 2))


def _arrays(num: int, seed: int) -> ArrayDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (num, 3, 8, 8), generator=generator).byte()
    return ArrayDataset(pixels, [int(k % 3 == 0) for k in range(num)], [f"{seed}-{k}" for k in range(num)])


def train(
    folder: Path,
    sampling: str = "shuffle",
    random: bool = False,
    cut: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Losses of all steps, weights after the first one and the last, metrics of the validations."""
    torch.manual_seed(1000 * processes.rank())
    chain, classes = load_chain("image2d"), ("healthy", "disease")
    prepare = PrepareImages(finish=chain.since("normalize"))
    model = Model(network(random), chain, classes, torch.device("cpu"), AutocastInferer("fp32"), prepare)
    optimizer = torch.optim.SGD(model.network.parameters(), 0.002)
    loss = CrossEntropyLoss(None if sampling != "shuffle" else [0.5, 1.5])
    loader = make_loader(_arrays(NUM_TRAIN, 1), BATCH // processes.num_processes(), sampling, seed=3)
    evaluator = ModelSupervisedEvaluator(model, _arrays(NUM_VALIDATION, 2), 3, loss)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    handlers = TrainingHandlers(evaluator, folder, schedule, **options)
    augmentation = None
    if random:
        augmentation = load_chain("augment_image2d", flip_prob=[0.5, 0.5])
        augmentation.set_random_state(processes.rank())
    trainer = ModelSupervisedTrainer(
        *(model, EPOCHS, loader, optimizer, loss, augmentation),
        train_handlers=[handlers],
    )
    done: dict[str, Any] = {"losses": [], "first": None, "metrics": []}

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine: Engine) -> None:
        losses = processes.gathered(float(engine.state.output["loss"].detach()))
        done["losses"].append(sum(losses) / len(losses))
        if engine.state.iteration == 1:
            done["first"] = {name: value.clone() for name, value in model.network.state_dict().items()}
        if engine.state.iteration == cut:
            raise Cut

    evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: done["metrics"].append({k: float(v) for k, v in engine.state.metrics.items()})
    )
    trainer.run()
    return {**done, "last": model.network.state_dict(), "num_validation": len(evaluator.epoch_metrics.predictions[1])}


def train_and_save(folder: Path, file: Path, **options: Any) -> None:
    """`train`, and save what it gives for the test."""
    done = train(folder, **options)
    if processes.is_main():
        torch.save(done, file)


def fail(folder: Path, how: str) -> None:
    """A training of which process 1 fails in the middle of an epoch."""
    processes_of_test = processes.rank()

    def break_down(engine: Engine) -> None:
        if processes_of_test == 0 or engine.state.iteration != 7:
            return
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stuck":
            time.sleep(1000)
        if how == "NaN":
            engine.state.output["loss"] = torch.tensor(torch.nan)

    attach = TrainingHandlers.attach

    def attach_both(self: Any, engine: Any) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, break_down)
        attach(self, engine)

    TrainingHandlers.attach = attach_both  # type: ignore[method-assign]  # of this process, which ends here
    train(folder)


def measure() -> None:
    """A metric whose value depends on the process, as on machines that round differently."""
    metric = ClassificationMetrics(lambda logits, label: torch.tensor(float(processes.rank())))
    metric.update((torch.tensor([[0.0, 1.0]]), torch.tensor([1])))
    print(metric.compute()["loss"])
