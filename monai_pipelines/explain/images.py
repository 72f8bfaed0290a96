"""Where the network looked on some images of an evaluation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from monai_pipelines.data import collate_batches
from monai_pipelines.explain.maps import METHODS, Explanation, explain_class, explained_classes
from monai_pipelines.explain.overlay import cell_mm, overlay_figure, peak
from monai_pipelines.explain.stages import stages
from monai_pipelines.handlers import CollectPredictions
from monai_pipelines.metrics import predicted_classes, uncertainty
from monai_pipelines.report.figures import png_bytes
from monai_pipelines.report.pictures import png_pixels
from monai_pipelines.report.predictions import class_name
from monai_pipelines.report.words import decision_words
from monai_pipelines.runs import Trained

logger = logging.getLogger(__name__)


class ExplainImages:
    """Draw the evidence for a class in the best, the worst and the most uncertain images of an evaluation.

    Explained is the second of two classes, whatever is predicted, and the predicted class of more.

    Best are the images whose true class has the highest probability among those classified rightly, from the classes
    in turn; worst those whose true class has the lowest, wrong ones first; uncertain those of the highest
    `monai_pipelines.metrics.uncertainty`. Of images with any number of labels the likeliest label is explained, and the
    mean log-likelihood of the labels stands for the probability of the true class. Images without a label can only be
    uncertain. No image comes twice. Writes ``explanations/<k>.png``, k from 1, as `overlay_figure` draws it.

    Needs decollated output (MONAI's default) whose ``pred`` holds probabilities (C,), and batches in the order of the
    dataset.

    Args:
        output_dir: folder of the run.
        trained: what is evaluated; its network gives logits.
        dataset: what is evaluated: ``data`` with ``name``, and items with ``image``.
        method, stage: of `monai_pipelines.explain.explain_class`; without a method nothing is done, a network without
            feature maps is explained by occlusion.
        num_cases: of each kind.

    Attributes:
        results: ``method``, ``stage``, ``cells``, ``cell_px`` (pixels from cell to cell), ``mm_per_cell`` (of volumes
            with a known voxel size, mean over the cases; else None) and ``cases``: ``image``, ``why`` (best, worst,
            uncertain), ``class`` (explained), ``prob`` of it and ``predicted``; empty before the end, or without a
            method.
        pictures: (caption, picture (3, h, w) uint8) of each case; the caption ends with the image's name.

    Raises:
        ValueError: another method, or num_cases below 1; later, batches in another order than the dataset.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        trained: Trained,
        dataset: Any,
        method: str | None = "gradcam",
        stage: str | None = None,
        num_cases: int = 2,
    ) -> None:
        if method is not None and method not in METHODS:
            raise ValueError(f"ExplainImages: method must be None or one of {', '.join(METHODS)}, got {method!r}")
        if num_cases < 1:
            raise ValueError(f"ExplainImages: num_cases must be 1 or more, got {num_cases}")
        self.folder = Path(output_dir) / "explanations"
        self.trained, self.model, self.dataset = trained, trained.model, dataset
        self.method, self.stage, self.num_cases = method, stage, num_cases
        self.predictions = CollectPredictions()
        self._reset()

    def attach(self, engine: Engine) -> None:
        self.predictions.attach(engine)
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _reset(self, *_: Engine) -> None:
        self.results: dict[str, Any] = {}
        self.pictures: list[tuple[str, NDArray[np.uint8]]] = []

    def _write(self, engine: Engine) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of another network
        if self.method is not None and self.predictions.rows:
            self._draw(self.method, self.predictions.rows)

    def _draw(self, method: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for row, item in zip(rows, self.dataset.data, strict=False):
            if row["image"] != item["name"]:
                raise ValueError(
                    f"ExplainImages: wanted the images in the dataset's order, got {row['image']} for {item['name']}"
                )
        self.folder.mkdir(parents=True)
        threshold, classes, multilabel = self.trained.decisions.threshold, self.model.classes, self.model.multilabel
        prob = np.array([row["prob"] for row in rows])
        label = [row.get("label") for row in rows]
        predicted = predicted_classes(prob, threshold, multilabel)
        explained = explained_classes(prob, threshold, multilabel)
        cases: list[dict[str, Any]] = []
        mm: list[Any] = []
        for number, (why, index) in enumerate(self._choose(prob, predicted, label), start=1):
            item, k = self.dataset[index], int(explained[index])
            found = self._explain(item, k, method)
            caption = decision_words(prob[index].tolist(), classes, threshold, multilabel)
            if label[index] is not None:
                caption = f"true {class_name(label[index], classes, ' + ', 'none')}, {caption}"
            also_predicted = bool(predicted[index][k] if multilabel else predicted[index] == k)
            png = png_bytes(overlay_figure(item["image"], found, classes[k], also_predicted), dpi=100)
            (self.folder / f"{number}.png").write_bytes(png)
            self.pictures.append((f"{why}: {caption}\n{item['name']}", png_pixels(png)))
            cases.append(
                {
                    "image": item["name"],
                    "why": why,
                    "class": classes[k],
                    "prob": float(prob[index, k]),
                    "predicted": class_name(predicted[index], classes, " + ", "none"),
                }
            )
            mm.append(cell_mm(item["image"], found))
        self.results = {
            "method": found.method,
            "stage": found.stage,
            "cells": list(found.cells),
            "cell_px": list(found.cell_px),
            "mm_per_cell": None if mm[0] is None else np.mean(mm, axis=0).round(1).tolist(),
            "cases": cases,
        }
        logger.info("explanations: %d, in %s", len(cases), self.folder)

    def evidence_peak(self, item: dict[str, Any], class_index: int) -> tuple[int, ...] | None:
        """Voxel with the most evidence for a class; None without any, or without a method."""
        if self.method is None:
            return None
        return peak(item["image"], self._explain(item, class_index, self.method).map)

    def _choose(
        self, prob: NDArray[np.float64], predicted: NDArray[Any], labels: list[Any]
    ) -> Iterator[tuple[str, int]]:
        """Why and which; the best first."""
        multilabel = self.model.multilabel
        doubt = uncertainty(prob, self.trained.decisions.threshold, multilabel)
        orders = {"uncertain": np.argsort(-doubt, kind="stable")}
        if None not in labels:
            label = np.array(labels)
            if multilabel:
                truth = np.log(np.where(label == 1, prob, 1 - prob).clip(1e-12)).mean(1)
                right, kind = (predicted == label).all(1), np.zeros(len(prob), int)
            else:
                truth, right, kind = prob[np.arange(len(prob)), label], predicted == label, label
            sure = np.argsort(-truth, kind="stable")
            sure = sure[right[sure]]
            turns = {k: count() for k in set(kind.tolist())}
            turn = np.array([next(turns[k]) for k in kind[sure].tolist()], int)
            best = sure[np.argsort(turn, kind="stable")]
            orders = {"best": best, "worst": np.lexsort((truth, right)), **orders}
        taken: set[int] = set()
        for why, order in orders.items():
            chosen = [int(index) for index in order if index not in taken][: self.num_cases]
            taken.update(chosen)
            yield from ((why, index) for index in chosen)

    def _explain(self, item: dict[str, Any], class_index: int, method: str) -> Explanation:
        network, collate = self.model.network, getattr(self.dataset, "collate", collate_batches)
        image, _ = self.model.prepare(collate([item]), next(network.parameters()).device)
        if method != "occlusion" and not stages(network, image):
            if not self.pictures:
                logger.warning("%s has no feature maps: explained by occlusion", type(network).__name__)
            method = "occlusion"
        return explain_class(network, image, class_index, method, self.stage, self.model.multilabel)
