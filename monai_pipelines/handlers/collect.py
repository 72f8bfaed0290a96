"""Predictions and features of every image of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_pipelines.networks import WindowClassifier, last_linear


class CollectRows:
    """Base of the handlers that collect a row for each image of an evaluation.

    Attributes:
        rows: one for each image, in order.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _reset(self, engine: Engine) -> None:
        self.rows = []

    def __call__(self, engine: Any) -> None:
        """Add the rows of a batch."""
        raise NotImplementedError


class CollectPredictions(CollectRows):
    """Collect ``{"image", "patient", "label", "prob"}`` of every image, as the report takes them.

    Needs decollated output (MONAI's default) whose ``pred`` holds probabilities (C,).

    Args:
        inferer: one with an attribute ``spread`` (`TestTimeInferer`, `DropoutInferer`, `EnsembleInferer`) adds it to
            each row. So does ``verdict`` of an image that was chosen or repaired (`LoadCT`).
    """

    def __init__(self, inferer: Any = None) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, engine: Any) -> None:
        spread = getattr(self.inferer, "spread", None)
        for index, (item, output) in enumerate(zip(engine.state.batch, engine.state.output, strict=True)):
            row = {"image": item["name"], "prob": output["pred"].cpu().tolist()}
            if "label" in item:
                row |= {"label": torch.as_tensor(item["label"]).int().tolist(), "patient": item.get("patient")}
            if item.get("verdict", "ok") != "ok":
                row["verdict"] = item["verdict"]
            if spread is not None:
                row["spread"] = float(spread[index])
            self.rows.append(row)


class CollectFeatures:
    """Collect what the network's last linear layer gets: the features it classifies by.

    Args:
        network: with a `torch.nn.Linear`; of several forward passes over a batch the last counts, which is that over
            the images as they are (see `monai_pipelines.inferers`).
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._network, self._layer = network, last_linear(network)
        self._batches: list[torch.Tensor] = []
        self._last = torch.empty(0)

    @property
    def features(self) -> np.ndarray:
        """(N, F) float32, in order."""
        return torch.cat(self._batches).numpy()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._batch)
        engine.add_event_handler(Events.COMPLETED, lambda: self._hook.remove())

    def _start(self, engine: Engine) -> None:
        self._batches = []
        self._hook = self._layer.register_forward_pre_hook(self._keep)

    def _batch(self, engine: Engine) -> None:
        last = self._network.features if isinstance(self._network, WindowClassifier) else self._last
        self._batches.append(last.float().cpu())

    def _keep(self, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._last = inputs[0].detach()
