"""MONAI's trainer of a `Model`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from monai_pipelines import processes
from monai_pipelines.chains import Chain
from monai_pipelines.engines.evaluator import compare_metrics
from monai_pipelines.engines.precision import measured_precision
from monai_pipelines.handlers import ClassificationMetrics, MeanLosses
from monai_pipelines.handlers.epoch_metrics import PartialMetric
from monai_pipelines.model import Model
from monai_pipelines.networks.precision import Precision, fast_bf16
from monai_pipelines.networks.recompute import unchanged_buffers

logger = logging.getLogger(__name__)


class ModelSupervisedTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` of a `Model`, with the metrics of the whole epoch.

    Args:
        model: what is trained.
        max_epochs, train_data_loader, optimizer, loss_function, train_handlers: of `SupervisedTrainer`; a loss that is
            a module is moved to the model's device.
        augmentation: random chain, done to each batch on the device before the model's input is finished.
        key_metric: of the metrics, the one that MONAI follows; of a detector it is the loss.
        accumulation_steps: batches per optimizer step, whose gradients are averaged; an incomplete group at the end of
            an epoch also makes a step.
        compile: whether to compile the network with `torch.compile`, for training and validation.

    Attributes:
        epoch_metrics: of the epoch.

    Raises:
        ValueError: batches that are balanced and a loss that has class weights: rare classes would count twice.
    """

    def __init__(
        self,
        model: Model,
        max_epochs: int,
        train_data_loader: Any,
        optimizer: torch.optim.Optimizer,
        loss_function: Any,
        augmentation: Chain | None = None,
        key_metric: str = "roc_auc",
        train_handlers: Sequence[Any] | None = None,
        accumulation_steps: int = 1,
        compile: bool = False,
    ) -> None:
        _check_counted_once(train_data_loader, loss_function)
        if isinstance(loss_function, torch.nn.Module):
            loss_function.to(model.device)
        self.model, self.optimizer, self.augmentation = model, optimizer, augmentation
        prepare = model.prepare
        self.epoch_metrics: PartialMetric = ClassificationMetrics(loss_function)
        if model.detects:  # its losses need the targets; what it finds is not measured in training
            key_metric, self.epoch_metrics = "loss", MeanLosses()
        if model.detects or augmentation is not None:
            prepare = prepare.for_training(augmentation)
        super().__init__(
            device=model.device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=processes.averaging_gradients(model.network),
            optimizer=optimizer,
            loss_function=loss_function,
            prepare_batch=prepare,
            inferer=model.inferer,
            key_train_metric={key_metric: self.epoch_metrics},
            metric_cmp_fn=compare_metrics(key_metric),
            train_handlers=train_handlers,
            decollate=False,
            accumulation_steps=accumulation_steps,
            non_blocking=model.device.type == "cuda",
        )
        if compile:
            model.network.compile()
        undecided = getattr(model.inferer, "precision", None) == "auto"
        if undecided and model.device.type == "cpu" and fast_bf16("cpu", gradients=False):
            # never in a resumed run, which has chosen already
            self.add_event_handler(Events.ITERATION_STARTED(once=1), self._measure_precision)

    def _measure_precision(self) -> None:
        """Choose the inferer's precision on the first batch; weights, buffers and random states are left unchanged."""
        inferer: Any = self.inferer
        network = self.model.network.train()  # not a copy: a loss may refer to the network
        with torch.random.fork_rng([]), unchanged_buffers(network), torch.compiler.set_stance("force_eager"):
            prepare = deepcopy(self.prepare_batch)
            inputs, targets, *more = prepare(self.state.batch, self.model.device)
            args, kwargs = more or ((), {})
            weights = [parameter for parameter in network.parameters() if parameter.requires_grad]

            def step(precision: Precision) -> Sequence[torch.Tensor | None]:
                inferer.precision = precision
                torch.manual_seed(0)  # the same dropout every time
                loss = self.loss_function(inferer(inputs, network, *args, **kwargs), targets).mean()
                return torch.autograd.grad(loss, weights, allow_unused=True)

            chosen = measured_precision(step)
            inferer.precision = processes.from_main(lambda: chosen)

    def run(self) -> None:  # type: ignore[override]
        """Train.

        Raises:
            ValueError: a batch of one image, which batch normalization cannot normalize.
        """
        if (num := processes.num_processes()) > 1:
            loader: Any = self.data_loader
            batch_size, rate = loader.batch_sampler.batch_size, self.optimizer.param_groups[0]["lr"]
            text = "%d processes: batch_size %d in each, %d in all; learning rate %g, which is not scaled"
            logger.info(text, num, batch_size, num * batch_size, rate)
        try:
            super().run()
        except Exception as error:
            worded: Exception = error
            if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
                worded = ValueError(
                    "batch normalization needs more than one value per channel, got a batch of one image: set "
                    "batch_size to 2 or more, so that it leaves no single image over, or train on larger images"
                )
            if (explained := processes.explained(worded)) is error:
                raise
            raise explained from None


def _check_counted_once(loader: Any, loss_function: Any) -> None:
    sampling = getattr(loader.batch_sampler, "sampling", "shuffle")
    loss = getattr(loss_function, "loss", loss_function)  # of a loss with a further term
    if sampling != "shuffle" and isinstance(getattr(loss, "weight", None), torch.Tensor):
        raise ValueError(
            f"sampling: {sampling} together with class_weights in the loss counts rare classes twice: "
            "set --class_weights none, or --sampling shuffle"
        )
