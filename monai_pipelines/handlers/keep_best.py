"""Last and best checkpoint, early stopping and resuming, with one state that is saved."""

from __future__ import annotations

import logging
import math
from os import PathLike
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_pipelines import processes
from monai_pipelines.errors import DamagedCheckpointError
from monai_pipelines.handlers.training_state import TrainingState
from monai_pipelines.model import Model
from monai_pipelines.networks.precision import used_precision
from monai_pipelines.report.words import LOWER_IS_BETTER
from monai_pipelines.runs.checkpoint import load_weights, read_checkpoint, save_checkpoint, use_precision
from monai_pipelines.runs.trained import split_differences
from monai_pipelines.versions import library_versions

logger = logging.getLogger(__name__)


class Checkpoints:
    """Keep ``last.pt`` and ``best.pt``, stop early, resume.

    The best epoch has the highest validation metric (the lowest of loss, Brier score, ECE or log loss) and, among
    equals, the lowest loss. NaN comes last, so any number replaces it.

    Both files are a model card in plain data: ``model`` (weights), ``network`` (its ``name`` and ``num_parameters``),
    ``classes``, ``chain`` (description), ``fingerprint``, ``epoch``, ``key_metric``, ``split``, ``precision``,
    ``versions``; of the epoch's validation ``metrics`` (untempered, threshold 1/2), ``num_validation`` (images),
    ``temperature``, ``threshold`` and ``threshold_by``, None where there was none. ``last.pt`` also holds what
    ``resume`` needs: `TrainingState`, best metrics, validations without a better one, history; ``previous.pt`` is the
    one before.

    Args:
        output_dir: folder of the run.
        validator: the validation engine, with the model that is saved and the key metric: "loss", or one of
            `monai_pipelines.metrics.classification_metrics` or of `monai_pipelines.metrics.detection_metrics`; an epoch
            counts when it has run in it.
        lr_scheduler: of the trainer's optimizer.
        history: list of epochs, shared with the handler that fills it.
        patience: validations without a better one before training stops; None never stops.
        split: `monai_pipelines.data.Cohort.split_card`; stored with the weights.
        threshold_by: how the probability from which the second of two classes is predicted, or each of several labels,
            is chosen on the tempered validation data (see `monai_pipelines.metrics.choose_threshold`); of a detector
            "false_positives=1", how the score is chosen from which boxes of a class are shown (see
            `monai_pipelines.metrics.choose_operating_threshold`); None: not.
        calibrate: fit a temperature to the validation data (`monai_pipelines.metrics.fit_temperature`).
        checkpoint_every: batches from one ``last.pt`` to the next within an epoch, rounded up to optimizer steps; None:
            after each epoch only.
        resume: when the engine starts, continue from ``last.pt``, or from ``previous.pt`` if that is damaged. On the
            same machine, weights, history and metrics are bit-identical to those of an uninterrupted run.

    Raises:
        ValueError: an argument that cannot be used; when a resumed engine starts, a checkpoint of another split or with
            other settings.
        DamagedCheckpointError: when a resumed engine starts, and no checkpoint can be read.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        validator: Any,
        lr_scheduler: Any,
        history: list[dict[str, Any]],
        patience: int | None = 15,
        split: dict[str, Any] | None = None,
        threshold_by: str | None = None,
        calibrate: bool = True,
        checkpoint_every: int | None = None,
        resume: bool = False,
    ) -> None:
        model: Model = validator.model
        key_metric = validator.key_metric
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ValueError(f"patience must be 1 or more, or null, got {patience!r}")
        if checkpoint_every is not None and (not isinstance(checkpoint_every, int) or checkpoint_every < 1):
            raise ValueError(f"checkpoint_every must be 1 or more, or null, got {checkpoint_every!r}")
        metrics = validator.epoch_metrics.names(model)
        if key_metric not in metrics:
            raise ValueError(f"key_metric must be one of {', '.join(metrics)}, got {key_metric!r}")
        if threshold_by is not None:
            validator.epoch_metrics.check_rule(threshold_by, model)
        self.output_dir, self.model = Path(output_dir), model
        self.validator, self.lr_scheduler, self.history = validator, lr_scheduler, history
        self.key_metric, self.patience, self.split = key_metric, patience, split
        self.threshold_by, self.calibrate = threshold_by, calibrate
        self.checkpoint_every, self.resume = checkpoint_every, resume
        self.best: dict[str, Any] = {"metric": math.nan, "loss": math.nan, "epoch": 0}
        self.num_without_better = 0

    def attach(self, engine: Engine) -> None:
        if processes.is_main():
            self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.checkpoint_every is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.end)

    def start(self, engine: Any) -> None:
        """Begin, or continue from a checkpoint; before other handlers of the start read the engine's state."""
        self.training = TrainingState(engine, self.lr_scheduler, self.checkpoint_every is not None)
        if self.resume:
            self._go_on(engine)
        self.saved = engine.state.iteration

    def _go_on(self, engine: Any) -> None:
        found = processes.from_main(self._find)
        if found is None:
            return
        file, checkpoint = found
        self._check(file, checkpoint)
        load_weights(self.model.network, checkpoint["model"], file)
        use_precision(self.model, checkpoint["precision"])
        self.training.load_state_dict(checkpoint)
        self.best, self.num_without_better = checkpoint["best"], checkpoint["num_without_better"]
        self.history[:] = checkpoint["history"]
        state = engine.state
        if state.epoch >= state.max_epochs or self._is_patience_over():
            logger.info("already trained, %d epochs; raise max_epochs or patience to continue", state.epoch)
            state.max_epochs = state.epoch
        else:
            done = state.epoch, state.iteration, self.key_metric, self.best["metric"]
            logger.info("resumed after epoch %d, iteration %d, best %s %.4f", *done)

    def _find(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read."""
        last, previous = self.output_dir / "last.pt", self.output_dir / "previous.pt"
        found = [file for file in (last, previous) if file.is_file()]
        if not found:
            logger.warning("%s: nothing to resume, training starts from the beginning", last)
            return None
        try:
            return found[0], read_checkpoint(found[0], self.model)
        except DamagedCheckpointError as error:
            if len(found) == 1:
                raise
            logger.warning("%s; continuing from %s, the one before", error, previous.name)
            checkpoint = read_checkpoint(previous, self.model)
            last.unlink()  # otherwise it would become previous.pt
            return previous, checkpoint

    def _check(self, file: Path, checkpoint: dict[str, Any]) -> None:
        if "plan" not in checkpoint:
            raise ValueError(f"{file}: written by an earlier version, without all that a resume needs; train again")
        if checkpoint["split"] != self.split:
            other = split_differences(checkpoint["split"] or {}, self.split or {})
            raise ValueError(f"{file}: trained on another split ({other}); use the same, or a new output_dir")
        if differences := self.training.differences(checkpoint["plan"]):
            raise ValueError(
                f"{file}: trained with other settings; use the same, or a new output_dir: {'; '.join(differences)}"
            )

    def within_epoch(self, engine: Any) -> None:
        """Write ``last.pt`` if it is due."""
        due = self.saved + (self.checkpoint_every or math.inf)
        if engine.state.iteration >= due and self.training.at_step():
            self._save_last(self._card(engine.state.epoch - 1))

    def __call__(self, engine: Any) -> None:
        epoch = engine.state.epoch
        card = self._card(epoch)
        if self.validator.state.epoch == epoch:
            metrics = {name: float(value) for name, value in self.validator.state.metrics.items()}
            decisions = self.validator.epoch_metrics.decisions
            card |= {"metrics": metrics, **decisions(self.threshold_by, self.calibrate)}
            metric, loss = metrics[self.key_metric], metrics.get("loss", math.nan)
            if not self.best["epoch"] or self._rank(metric, loss) > self._rank(self.best["metric"], self.best["loss"]):
                self.best = {"metric": metric, "loss": loss, "epoch": epoch}
                self.num_without_better = 0
                if processes.is_main():
                    save_checkpoint(card, self.output_dir / "best.pt")
            else:
                self.num_without_better += 1
        self._save_last(card)
        if self._is_patience_over():
            logger.info("no better %s in %d validations: stopped after epoch %d", self.key_metric, self.patience, epoch)
            engine.terminate()

    def _card(self, epoch: int) -> dict[str, Any]:
        """What any checkpoint holds, before the metrics."""
        network, chain = self.model.network, self.model.chain
        return {
            "model": network.state_dict(),
            "network": {
                "name": type(network).__name__,
                "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
            },
            "classes": list(self.model.classes),
            "chain": chain.describe(),
            "fingerprint": chain.fingerprint(),
            "epoch": epoch,
            "key_metric": self.key_metric,
            "split": self.split,
            "precision": used_precision(getattr(self.model.inferer, "precision", "fp32"), self.model.device.type),
            "versions": library_versions(),
            "temperature": None,
            "threshold": None,
            "threshold_by": None,
        }

    def _save_last(self, card: dict[str, Any]) -> None:
        """Write ``last.pt``, and keep the one before."""
        state = {
            **self.training.state_dict(),
            "best": self.best,
            "num_without_better": self.num_without_better,
            "history": self.history,
        }
        if processes.is_main():
            save_checkpoint({**card, **state}, self.output_dir / "last.pt", self.output_dir / "previous.pt")
        self.saved = state["iteration"]

    def end(self, engine: Any) -> None:
        if self.best["epoch"]:
            best = self.best["epoch"], self.key_metric, self.best["metric"], self.output_dir / "best.pt"
            logger.info("best epoch %d, %s %.4f: %s", *best)

    def _rank(self, metric: float, loss: float) -> tuple[float, float]:
        """Higher is better; NaN comes last."""
        score = -metric if self.key_metric in LOWER_IS_BETTER else metric
        return -math.inf if math.isnan(score) else score, -math.inf if math.isnan(loss) else -loss

    def _is_patience_over(self) -> bool:
        return self.patience is not None and self.num_without_better >= self.patience
