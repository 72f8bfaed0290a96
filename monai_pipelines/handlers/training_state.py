"""What a training needs to continue, to the last bit, as if it had not been interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Events

from monai_pipelines import processes
from monai_pipelines.chains import Chain
from monai_pipelines.data.loaders import ResumableLoader
from monai_pipelines.handlers.guards import batches_of_step
from monai_pipelines.handlers.random_states import random_states, randomizables, set_random_states

_KNOBS = {
    "lr_scheduler.total_steps": "max_epochs (lr_scheduler.total_steps)",
    "loss.weight": "class_weights (loss.weight)",
    "optimizer.lr": "learning_rate",
    "num_processes": "num_processes (--nproc_per_node)",
}
_MOST_SHOWN = 5


class TrainingState:
    """Optimizer, schedule, position, random states and the metrics of an unfinished epoch of a trainer.

    The order of the data follows from the epoch (`monai_pipelines.data.sampling.EpochBatchSampler`). Within an epoch
    the batches already done are loaded again and skipped.

    Args:
        engine: a `monai_pipelines.engines.ModelSupervisedTrainer` that has not started yet.
        lr_scheduler: of its optimizer.
        within_epochs: whether states may be taken within an epoch.

    Attributes:
        plan: settings that must not change, by name.

    Raises:
        TypeError: ``within_epochs`` with a loader that cannot continue within an epoch.
    """

    def __init__(self, engine: Any, lr_scheduler: Any, within_epochs: bool = False) -> None:
        if within_epochs and not isinstance(engine.data_loader, ResumableLoader):
            raise TypeError(
                "checkpoint_every wants the loader of monai_pipelines.data.make_loader, got "
                f"{type(engine.data_loader).__name__}; set it to null"
            )
        self.engine, self.lr_scheduler = engine, lr_scheduler
        self.transforms = randomizables(engine.prepare_batch, engine.data_loader.dataset)
        self.plan = dict(_plan(engine, lr_scheduler))
        self.at_epoch_start: dict[str, Any] | None = None
        self._unfinished: dict[str, Any] | None = None
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._go_on_within_epoch)
        if within_epochs:
            engine.add_event_handler(Events.EPOCH_STARTED, self._keep_epoch_start)

    def differences(self, plan: Mapping[str, Any]) -> list[str]:
        """How the settings differ from those of a checkpoint; knobs of the bundles by their names."""
        return [
            f"{_KNOBS.get(name, name)}: {plan.get(name)} there, {self.plan.get(name)} here"
            for name in {**plan, **self.plan}
            if plan.get(name) != self.plan.get(name)
        ][:_MOST_SHOWN]

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data and tensors; collective in a distributed training."""
        engine = self.engine
        own: dict[str, Any] = {"random": self._random_states()}
        if engine.state.iteration % engine.state.epoch_length:
            own |= {"at_epoch_start": self.at_epoch_start, "metrics": engine.epoch_metrics.partial()}
        return {
            "plan": self.plan,
            "iteration": engine.state.iteration,
            "optimizer": engine.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if engine.scaler is None else engine.scaler.state_dict(),
            "processes": processes.gathered(own),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; called when the engine has started, before it loads data."""
        engine, own = self.engine, state["processes"][processes.rank()]
        engine.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if engine.scaler is not None:
            engine.scaler.load_state_dict(state["scaler"])
        engine.state.iteration = state["iteration"]
        engine.state.epoch, done = divmod(state["iteration"], engine.state.epoch_length)
        if hasattr(engine.data_loader.batch_sampler, "epoch"):
            engine.data_loader.batch_sampler.epoch = engine.state.epoch
        self._set_random_states(own["at_epoch_start"] if done else own["random"])
        if done:
            engine.data_loader.skip, self._unfinished = done, own

    def at_step(self) -> bool:
        """Whether an optimizer step has just been made, within an epoch."""
        engine = self.engine
        return bool(batches_of_step(engine) and engine.state.iteration % engine.state.epoch_length)

    def _keep_epoch_start(self) -> None:
        self.at_epoch_start = self._random_states()

    def _go_on_within_epoch(self) -> None:
        """After the batches already done were skipped, and the metrics reset."""
        if own := self._unfinished:
            self._set_random_states(own["random"])
            self.engine.epoch_metrics.restore(own["metrics"])
            self._unfinished = None

    def _random_states(self) -> dict[str, Any]:
        return random_states(self.transforms, self.engine.model.device)

    def _set_random_states(self, states: dict[str, Any]) -> None:
        set_random_states(states, self.transforms, self.engine.model.device)


def _plan(engine: Any, lr_scheduler: Any) -> Iterator[tuple[str, Any]]:
    sampler = engine.data_loader.batch_sampler
    for name in ("batch_size", "sampling", "seed", "num_processes"):
        yield name, getattr(sampler, name, None)
    yield "accumulation_steps", engine.accumulation_steps
    yield "augmentation", engine.augmentation.fingerprint() if isinstance(engine.augmentation, Chain) else None
    yield "batches in an epoch", engine.state.epoch_length
    for loss in (engine.loss_function, getattr(engine.loss_function, "loss", None)):  # or of one with a further term
        if isinstance(loss, torch.nn.Module):
            yield "loss", type(loss).__name__
            yield from _plain("loss", vars(loss))
            yield from _plain("loss", {name: buffer.tolist() for name, buffer in loss.named_buffers(recurse=False)})
    yield "optimizer", type(engine.optimizer).__name__
    yield "lr_scheduler", type(lr_scheduler).__name__
    yield from _plain("lr_scheduler", lr_scheduler.state_dict())
    for number, group in enumerate(engine.optimizer.param_groups):
        yield from _plain(f"optimizer{number or ''}", group)


def _plain(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if all(part is None or isinstance(part, bool | int | float | str) for part in parts):
            yield f"{prefix}.{name}", list(value) if isinstance(value, tuple) else value
