"""An evaluation in TensorBoard: pictures, curves, hyper-parameters beside metrics, and points for the projector."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.report.pictures import png_pixels

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def log_evaluation(
    folder: str | PathLike[str],
    pictures: Mapping[str, Figure | bytes | NDArray[np.uint8]],
    points: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    thumbnails: NDArray[Any] | None = None,
    *,
    prob: ArrayLike | None = None,
    label: ArrayLike | None = None,
    classes: Sequence[str] = (),
    metrics: Mapping[str, float | None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write pictures (tab Images), embeddings (Projector), PR curves, and settings beside metrics (HParams).

    ``metrics/<name>`` and ``pr_curve/<class>`` share charts with those of the training's runs beside this folder
    (`monai_pipelines.handlers.monitor.Monitor`).

    Args:
        folder: for this evaluation alone; what an earlier one left there is removed.
        pictures: tag -> figure, content of a PNG file, or image (3, h, w) uint8.
        points: tag -> (N, D), a point for each image.
        names: N names of classes, shown at the points.
        thumbnails: (N, 1 or 3, side, side) in [0, 1], shown as the points.
        prob: (M, C) probabilities of all test images, for the PR curves; None: none.
        label: (M,) classes, or (M, C) of 0 and 1, of the same images.
        classes: the C names.
        metrics: name -> value on the test set; what is None or not finite is left out.
        settings: hyper-parameter -> number, text, truth value or None, as ``run.json`` has them.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    sprites = None
    if thumbnails is not None:
        sprites = torch.as_tensor(np.broadcast_to(thumbnails, (len(thumbnails), 3, *thumbnails.shape[2:])).copy())
    with SummaryWriter(str(folder)) as writer:
        for tag, picture in pictures.items():
            if isinstance(picture, Figure):
                writer.add_figure(tag, picture)
            elif isinstance(picture, np.ndarray):
                writer.add_image(tag, picture)
            else:
                writer.add_image(tag, png_pixels(picture))
        for tag, values in points.items():
            writer.add_embedding(values, [name.replace("\t", " ") for name in names], sprites, tag=tag)
        if prob is not None and label is not None:
            add_pr_curves(writer, label, prob, classes)
        scalars = {f"metrics/{n}": v for n, v in (metrics or {}).items() if v is not None and math.isfinite(v)}
        hparams = {name: str(v).lower() if isinstance(v, bool) else v for name, v in (settings or {}).items()}
        if scalars:
            writer.add_hparams(hparams, scalars, run_name=".")  # into this very folder, so that all tabs show one run


def add_pr_curves(
    writer: SummaryWriter, label: ArrayLike, prob: ArrayLike, classes: Sequence[str], step: int = 0
) -> None:
    """Add a precision-recall curve ``pr_curve/<class>``: of the second of two classes, else of each against the rest.

    A class without an image, or without an image of the rest, has none; nor has one whose probabilities are not finite.

    Args:
        writer: of TensorBoard.
        label: (N,) classes, or (N, C) of 0 and 1 for several labels each.
        prob: (N, C) probabilities.
        classes: the C names.
        step: such as the epoch.
    """
    truth, scores = np.asarray(label), np.asarray(prob, dtype=np.float64)
    positives = truth == 1 if truth.ndim == 2 else truth[:, None] == np.arange(len(classes))
    first = 1 if truth.ndim == 1 and len(classes) == 2 else 0
    for name, positive, score in list(zip(classes, positives.T, scores.T, strict=True))[first:]:
        if positive.any() and not positive.all() and np.isfinite(score).all():
            writer.add_pr_curve(f"pr_curve/{name}", positive, score, step)
