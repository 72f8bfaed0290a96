"""Last and best checkpoint, early stopping and resuming, with one state that is saved."""

from __future__ import annotations

import logging
import math
from os import PathLike
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

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
    ``resume`` needs: optimizer, scheduler, best metrics, epochs without a better one, history.

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
    ) -> None:
        model: Model = validator.model
        key_metric = validator.key_metric
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ValueError(f"patience must be 1 or more, or null, got {patience!r}")
        metrics = validator.epoch_metrics.names(model)
        if key_metric not in metrics:
            raise ValueError(f"key_metric must be one of {', '.join(metrics)}, got {key_metric!r}")
        if threshold_by is not None:
            validator.epoch_metrics.check_rule(threshold_by, model)
        self.output_dir, self.model = Path(output_dir), model
        self.validator, self.lr_scheduler, self.history = validator, lr_scheduler, history
        self.key_metric, self.patience, self.split = key_metric, patience, split
        self.threshold_by, self.calibrate = threshold_by, calibrate
        self.best: dict[str, Any] = {"metric": math.nan, "loss": math.nan, "epoch": 0}
        self.num_without_better = 0

    def attach(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.end)

    def resume(self, engine: Any) -> None:
        """Go on from ``last.pt``.

        Raises:
            FileNotFoundError: nothing to go on from.
            ValueError: the run has already done its epochs, or had another split.
        """
        file = self.output_dir / "last.pt"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: nothing to resume; start without --resume, or name the run's output_dir")
        checkpoint = read_checkpoint(file, self.model)
        if checkpoint["split"] != self.split:
            differences = split_differences(checkpoint["split"] or {}, self.split or {})
            raise ValueError(f"{file}: trained on another split ({differences}); use the same, or a new output_dir")
        if checkpoint["epoch"] >= engine.state.max_epochs:
            done = f"{checkpoint['epoch']} of {engine.state.max_epochs} epochs"
            raise ValueError(f"{file}: already trained {done}; raise max_epochs to go on")
        load_weights(self.model.network, checkpoint["model"], file)
        use_precision(self.model, checkpoint["precision"])
        engine.optimizer.load_state_dict(checkpoint["optimizer"])
        self.best, self.num_without_better = checkpoint["best"], checkpoint["num_without_better"]
        self.history[:] = checkpoint["history"]
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["epoch"] * engine.state.epoch_length
        state = checkpoint["lr_scheduler"]
        if "total_steps" in state:  # of a one-cycle schedule: another length or batch size moves its place in the cycle
            cycle = {"last_epoch": engine.state.iteration, "_step_count": engine.state.iteration + 1}
            state = {k: v for k, v in state.items() if k not in ("total_steps", "_schedule_phases")} | cycle
        self.lr_scheduler.load_state_dict(state)
        _skip_epochs(engine.data_loader, checkpoint["epoch"])
        logger.info("resumed after epoch %d, best %s %.4f", engine.state.epoch, self.key_metric, self.best["metric"])

    def __call__(self, engine: Any) -> None:
        epoch, network, chain = engine.state.epoch, self.model.network, self.model.chain
        card = {
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
        if self.validator.state.epoch == epoch:
            metrics = {name: float(value) for name, value in self.validator.state.metrics.items()}
            card |= {"metrics": metrics, **self.validator.epoch_metrics.decisions(self.threshold_by, self.calibrate)}
            metric, loss = metrics[self.key_metric], metrics.get("loss", math.nan)
            if not self.best["epoch"] or self._rank(metric, loss) > self._rank(self.best["metric"], self.best["loss"]):
                self.best = {"metric": metric, "loss": loss, "epoch": epoch}
                self.num_without_better = 0
                save_checkpoint(card, self.output_dir / "best.pt")
            else:
                self.num_without_better += 1
        state = {
            "optimizer": engine.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "best": self.best,
            "num_without_better": self.num_without_better,
            "history": self.history,
        }
        save_checkpoint({**card, **state}, self.output_dir / "last.pt")
        if self.patience is not None and self.num_without_better >= self.patience:
            logger.info("no better %s in %d validations: stopped after epoch %d", self.key_metric, self.patience, epoch)
            engine.terminate()

    def end(self, engine: Any) -> None:
        if self.best["epoch"]:
            best = self.best["epoch"], self.key_metric, self.best["metric"], self.output_dir / "best.pt"
            logger.info("best epoch %d, %s %.4f: %s", *best)

    def _rank(self, metric: float, loss: float) -> tuple[float, float]:
        """Higher is better; NaN comes last."""
        score = -metric if self.key_metric in LOWER_IS_BETTER else metric
        return -math.inf if math.isnan(score) else score, -math.inf if math.isnan(loss) else -loss


def _skip_epochs(loader: Any, num_epochs: int) -> None:
    """Have the loader go on with other orders than those of its first epochs."""
    if hasattr(loader.batch_sampler, "epoch"):
        loader.batch_sampler.epoch = num_epochs
    generator = getattr(loader.sampler, "generator", None)
    if generator is not None:
        generator.manual_seed(generator.initial_seed() + num_epochs)
