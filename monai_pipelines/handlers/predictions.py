"""Predictions of an evaluator, a row for each scan."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events


class CollectPredictions:
    """Collect ``{"image", "patient", "label", "prob"}`` of every scan, as the report takes them.

    Needs decollated output (MONAI's default) whose ``pred`` holds probabilities (C,).

    Attributes:
        rows: one for each scan, in order.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _reset(self, engine: Engine) -> None:
        self.rows = []

    def __call__(self, engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            row = {"image": item["name"], "prob": output["pred"].float().cpu().tolist()}
            if "label" in item:
                row |= {"label": int(item["label"]), "patient": item["patient"]}
            self.rows.append(row)
