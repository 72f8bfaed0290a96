"""Where the network looked on some images of an evaluation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from PIL import Image

from monai_pipelines.data import collate_batches
from monai_pipelines.explain.maps import METHODS, Explanation, explain_class, explained_classes
from monai_pipelines.explain.overlay import cell_mm, overlay_figure
from monai_pipelines.explain.stages import stages
from monai_pipelines.metrics import predicted_classes, uncertainty

logger = logging.getLogger(__name__)


class ExplainImages:
    """Draw what spoke for a class in the best, the worst and the most uncertain images of an evaluation.

    Explained is the second of two classes, whatever is predicted, and the predicted class of more.

    Best are the images whose true class has the highest probability among those classified rightly, from the classes
    in turn; worst those whose true class has the lowest, wrong ones first; uncertain those of the highest
    `monai_pipelines.metrics.uncertainty`. Of images with any number of labels the likeliest label is explained, and the
    mean log-likelihood of the labels stands for the probability of the true class. Images without a label can only be
    uncertain. No image comes twice. Writes ``explanations/<k>.png``, k from 1, as
    `monai_pipelines.report.overlay_figure` draws it.

    Needs decollated output (MONAI's default) whose ``pred`` holds probabilities (C,), and batches in the order of the
    dataset.

    Args:
        output_dir: folder of the run.
        network: what is evaluated; gives logits.
        dataset: what is evaluated: ``data`` with ``name``, and items with ``image``.
        prepare: from a batch to the network's input, such as `monai_pipelines.data.PrepareImages`.
        classes: class names by index.
        threshold: probability from which the second of two classes is predicted; of several labels, of each.
        method, stage: of `monai_pipelines.explain.explain_class`; without a method nothing is done, a network without
            feature maps is explained by occlusion.
        multilabel: any number of classes at once, instead of exactly one.
        num_cases: of each kind.

    Attributes:
        results: ``method``, ``stage``, ``cells``, ``cell_px`` (pixels from cell to cell), ``mm_per_cell`` (of volumes
            that tell it, mean over the cases; else None) and ``cases``: ``image``, ``why`` (best, worst, uncertain),
            ``class`` (explained), ``prob`` of it and ``predicted``; empty before the end, or without a method.
        pictures: (caption, picture (3, h, w) uint8) of each case; the caption ends with the image's name.

    Raises:
        ValueError: another method, or num_cases below 1; later, batches in another order than the dataset.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        network: torch.nn.Module,
        dataset: Any,
        prepare: Callable[..., Any],
        classes: Sequence[str],
        threshold: float | Sequence[float] | None = None,
        method: str | None = "gradcam",
        stage: str | None = None,
        multilabel: bool = False,
        num_cases: int = 2,
    ) -> None:
        if method is not None and method not in METHODS:
            raise ValueError(f"ExplainImages: method must be None or one of {', '.join(METHODS)}, got {method!r}")
        if num_cases < 1:
            raise ValueError(f"ExplainImages: num_cases must be 1 or more, got {num_cases}")
        self.folder = Path(output_dir) / "explanations"
        self.network, self.dataset, self.prepare, self.classes = network, dataset, prepare, list(classes)
        self.threshold, self.method, self.stage = threshold, method, stage
        self.multilabel, self.num_cases = multilabel, num_cases
        self._reset()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _reset(self, *_: Engine) -> None:
        self.results: dict[str, Any] = {}
        self.pictures: list[tuple[str, NDArray[np.uint8]]] = []
        self._prob: list[list[float]] = []
        self._label: list[Any] = []

    def __call__(self, engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            name = self.dataset.data[len(self._prob)]["name"]
            if item["name"] != name:
                raise ValueError(
                    f"ExplainImages: wanted the images in the dataset's order, got {item['name']} for {name}"
                )
            self._prob.append(output["pred"].cpu().tolist())
            self._label.append(torch.as_tensor(item["label"]).int().tolist() if "label" in item else None)

    def _write(self, engine: Engine) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of another network
        if self.method is not None and self._prob:
            self._draw(self.method)

    def _draw(self, method: str) -> None:
        self.folder.mkdir(parents=True)
        prob = np.array(self._prob)
        predicted = predicted_classes(prob, self.threshold, self.multilabel)
        explained = explained_classes(prob, self.threshold, self.multilabel)
        cases: list[dict[str, Any]] = []
        mm: list[Any] = []
        for number, (why, index) in enumerate(self._choose(prob, predicted), start=1):
            item = self.dataset[index]
            found = self._explain(item, int(explained[index]), method)
            own = {"image": item["name"], "why": why, "class": self.classes[explained[index]]}
            own["prob"] = float(prob[index, explained[index]])
            called = self._named(predicted[index])
            own["predicted"] = " + ".join(called) or "none"
            caption = f"{why}: {self._told(self._label[index], prob[index], predicted[index])}\n{item['name']}"
            file = self.folder / f"{number}.png"
            overlay_figure(item["image"], found, own["class"], own["class"] in called).savefig(file, dpi=100)
            self.pictures.append((caption, np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)))
            cases.append(own)
            mm.append(cell_mm(item["image"], found))
        self.results = {
            "method": found.method,
            "stage": found.stage,
            "cells": list(found.cells),
            "cell_px": list(found.cell_px),
            "mm_per_cell": None if mm[0] is None else np.mean(mm, axis=0).round(1).tolist(),
            "cases": cases,
        }
        logger.info("%d explanations: %s", len(cases), self.folder)

    def _choose(self, prob: NDArray[np.float64], predicted: NDArray[Any]) -> Iterator[tuple[str, int]]:
        """Why and which; the best first."""
        orders = {"uncertain": np.argsort(-uncertainty(prob, self.threshold, self.multilabel), kind="stable")}
        if None not in self._label:
            label = np.array(self._label)
            if self.multilabel:
                truth = np.log(np.where(label == 1, prob, 1 - prob).clip(1e-12)).mean(1)
                right, kind = (predicted == label).all(1), np.zeros(len(prob), int)
            else:
                truth, right, kind = prob[np.arange(len(prob)), label], predicted == label, label
            sure = np.argsort(-truth, kind="stable")
            sure = sure[right[sure]]
            turns = {own: count() for own in set(kind.tolist())}
            turn = np.array([next(turns[own]) for own in kind[sure].tolist()], int)
            best = sure[np.argsort(turn, kind="stable")]
            orders = {"best": best, "worst": np.lexsort((truth, right)), **orders}
        taken: set[int] = set()
        for why, order in orders.items():
            own = [int(index) for index in order if index not in taken][: self.num_cases]
            taken.update(own)
            yield from ((why, index) for index in own)

    def _explain(self, item: dict[str, Any], class_index: int, method: str) -> Explanation:
        collate = getattr(self.dataset, "collate", collate_batches)
        device = next(self.network.parameters()).device
        image, _ = self.prepare(collate([item]), device)
        if method != "occlusion" and not stages(self.network, image):
            if not self.pictures:
                logger.warning("%s has no feature maps: explained by occlusion", type(self.network).__name__)
            method = "occlusion"
        return explain_class(self.network, image, class_index, method, self.stage, self.multilabel)

    def _told(self, label: Any, prob: NDArray[np.float64], predicted: Any) -> str:
        truth = "" if label is None else f"true {' + '.join(self._named(label)) or 'none'}, "
        index = prob.argmax() if self.multilabel else predicted
        return f"{truth}{'likeliest' if self.multilabel else 'predicted'} {self.classes[index]}, {prob[index]:.2f}"

    def _named(self, label: Any) -> list[str]:
        """The class, or the labels that are there."""
        if not self.multilabel:
            return [self.classes[label]]
        return [name for name, there in zip(self.classes, label, strict=True) if there]
