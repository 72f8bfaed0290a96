"""An evaluation in TensorBoard: pictures, and points for the projector."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

__all__ = ["log_evaluation"]


def log_evaluation(
    folder: str | PathLike[str],
    pictures: Mapping[str, Figure | Path | NDArray[np.uint8]],
    points: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    thumbnails: NDArray[Any] | None = None,
) -> None:
    """Write pictures (tab Images) and embeddings (tab Projector).

    Args:
        folder: for this evaluation alone; what an earlier one left there is removed.
        pictures: tag -> figure, image file, or image (3, h, w) uint8.
        points: tag -> (N, D), a point for each image.
        names: N names of classes, shown at the points.
        thumbnails: (N, 1 or 3, side, side) in [0, 1], shown as the points.
    """
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
                writer.add_image(tag, np.asarray(Image.open(picture).convert("RGB")), dataformats="HWC")
        for tag, values in points.items():
            writer.add_embedding(values, [name.replace("\t", " ") for name in names], sprites, tag=tag)
