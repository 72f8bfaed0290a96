"""Metrics of a detector inside MONAI's engines, and the boxes that it finds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError

from monai_pipelines import processes
from monai_pipelines.detection import Found, Target
from monai_pipelines.handlers.collect import CollectRows
from monai_pipelines.handlers.epoch_metrics import EpochMetrics, PartialMetric
from monai_pipelines.metrics import Detections, Lesions, choose_operating_threshold, detection_metrics
from monai_pipelines.metrics.detection import MAIN_METRICS
from monai_pipelines.model import Model
from monai_pipelines.report.box_pictures import boxes_figure
from monai_pipelines.transforms.boxes import BOX_AFFINE, boxes_to_original

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NUM_SHOWN = 4
SHOWN_SCORE = 0.2
_RULE = re.compile(r"false_positives=(\d+(?:\.\d+)?)")


class MeanLosses(PartialMetric):
    """Mean over the epoch of each of a detector's losses, and ``loss``, their sum as it is trained."""

    accumulators = ("_sums", "_num")

    def reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._num = 0

    def update(self, output: Mapping[str, torch.Tensor]) -> None:
        self._num += 1
        for name, loss in output.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(loss.detach())

    def iteration_completed(self, engine: Any) -> None:
        self.update({"loss": engine.state.output["loss"], **engine.state.output["pred"]})

    def compute(self) -> dict[str, float]:
        if not self._num:
            raise NotComputableError("MeanLosses: wanted one batch or more, got none")
        parts = processes.gathered((self._sums, self._num))
        num = sum(part for _, part in parts)
        return {name: sum(sums[name] for sums, _ in parts) / num for name in self._sums}

    def completed(self, engine: Engine, name: str) -> None:
        engine.state.metrics.update(self.compute())


class DetectionMetrics(EpochMetrics):
    """Metrics of all boxes found in an epoch, in the coordinates of the source, where lesions that were cut off count.

    Attached under any name it reports the sensitivities at the rates of false positives, CPM, AP, AP50, AP75 and the
    image ROC AUC of `monai_pipelines.metrics.detection_metrics`; what is undefined, as in a data set without a lesion,
    is NaN.

    Args:
        num_classes: of lesions.

    Attributes:
        found, lesions: of each image, as the metrics take them.
    """

    def __init__(self, num_classes: int = 1) -> None:
        self.num_classes = num_classes
        super().__init__()

    def reset(self) -> None:
        self.found: list[Detections] = []
        self.lesions: list[Lesions] = []
        self._groups: list[Any] = []
        self._shown: list[tuple[torch.Tensor, Target, Found, Any]] = []

    def update(self, output: Any) -> None:
        """Nothing: an engine's batch has what is needed."""

    def iteration_completed(self, engine: Any) -> None:
        batch, output = engine.state.batch, engine.state.output
        self.found += in_source(output["pred"], batch)
        self.lesions += batch["lesions"]
        self._groups += [patient or name for patient, name in zip(batch["patient"], batch["name"], strict=True)]
        rows = zip(output["image"], output["label"], output["pred"], batch[BOX_AFFINE], strict=True)
        for image, target, found, affine in rows:
            if len(self._shown) < NUM_SHOWN and len(target.boxes):
                self._shown.append((image.float().cpu(), _on_cpu(target), _on_cpu(found), affine))

    def compute(self) -> dict[str, float]:
        if not self.found:
            raise NotComputableError("DetectionMetrics: wanted one batch or more, got none")
        parts = processes.gathered((self.found, self.lesions, self._groups))
        self.found, self.lesions = ([one for part in parts for one in part[k]] for k in (0, 1))  # type: ignore[assignment]
        every = (self.found, self.lesions, [group for part in parts for group in part[2]])
        measured = partial(detection_metrics, *every, num_classes=self.num_classes, num_resamples=0)
        values = processes.from_main(measured)["metrics"]
        return {name: math.nan if values[name] is None else values[name] for name in MAIN_METRICS}

    def completed(self, engine: Engine, name: str) -> None:
        engine.state.metrics.update(self.compute())

    def names(self, model: Model) -> list[str]:
        return list(MAIN_METRICS)

    def check_rule(self, threshold_by: str, model: Model) -> None:
        _rate(threshold_by)

    def decisions(self, threshold_by: str | None, calibrate: bool) -> dict[str, Any]:
        """The operating threshold: a score for each class, None for one of which nothing is found."""
        threshold = None
        if threshold_by is not None:
            rate = _rate(threshold_by)
            threshold = choose_operating_threshold(self.found, self.lesions, rate, num_classes=self.num_classes)
        return {
            "num_validation": len(self.found),
            "temperature": None,
            "threshold": threshold,
            "threshold_by": threshold_by,
        }

    def draw(self, writer: SummaryWriter, model: Model, epoch: int) -> None:
        """Some images with lesions: what is to be found, and what is found."""
        if self._shown:
            images, targets, found, affines = zip(*self._shown, strict=True)
            likely = [_above(boxes, SHOWN_SCORE) for boxes in found]
            figure = boxes_figure(images, targets, [""] * len(images), likely, affines if images[0].ndim == 4 else None)
            writer.add_figure("boxes/validation", figure, epoch)


class CollectDetections(CollectRows):
    """Collect ``{"image", "patient", "lesions", "found", "verdict"}`` of every image, as the report takes them.

    Boxes are in the coordinates of the source; without lesions in the data there are neither these nor patients.
    """

    def __call__(self, engine: Any) -> None:
        batch = engine.state.batch
        for k, found in enumerate(in_source(engine.state.output["pred"], batch)):
            row = {"image": batch["name"][k], "found": found}
            row |= {key: batch[key][k] for key in ("patient", "lesions") if "lesions" in batch}
            if "verdict" in batch and batch["verdict"][k] != "ok":
                row["verdict"] = batch["verdict"][k]
            self.rows.append(row)


def in_source(found: Sequence[Found], batch: Mapping[str, Any]) -> list[Detections]:
    """What was found in the images of a batch, as boxes in their sources."""
    return [
        Detections(
            boxes_to_original(one.boxes.float().cpu(), affine).numpy().astype(float),
            one.scores.float().cpu().numpy(),
            one.labels.cpu().numpy(),
        )
        for one, affine in zip(found, batch[BOX_AFFINE], strict=True)
    ]


def _rate(rule: str) -> float:
    found = _RULE.fullmatch(rule.strip())
    if found is None:
        raise ValueError(f"threshold_by: wanted false_positives=RATE (for each image and class), got {rule!r}")
    return float(found[1])


def _above(found: Found, score: float) -> Found:
    return Found(*(part[found.scores >= score] for part in found))


def _on_cpu(boxes: Any) -> Any:
    return type(boxes)(*(part.detach().cpu() for part in boxes))
