"""A map of what speaks for a class, laid over the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from monai_pipelines.explain.attention import scale_bar
from monai_pipelines.report.figures import plain
from monai_pipelines.report.pictures import planes, shown_pixels, usual_voxel
from monai_pipelines.report.words import METHODS

if TYPE_CHECKING:  # it needs torch
    from monai_pipelines.explain import Explanation

__all__ = ["cell_mm", "overlay_figure", "resolution"]

_COLORMAP = "plasma"
_OPACITY = 0.8  # where the map is 1


def overlay_figure(
    image: Any, explanation: Explanation, class_name: str = "the class", predicted: bool = True, title: str = ""
) -> Figure:
    """The image, and the image with the map over it, with a colour bar and what the map cannot tell.

    Of a volume three planes through the map's maximum are drawn as :func:`monai_pipelines.report.slices_figure` draws
    them (the same three where the map is empty), with a bar in mm. Background, the volume's lowest value, is not cut:
    masked air has nothing to show. A line runs where the map is at half of its maximum.

    Args:
        image: (C, H, W) or (C, X, Y, Z), as :func:`monai_pipelines.report.images_figure` takes it; the first channel
            of a volume is drawn.
        explanation: of this image, of the same size.
        class_name: what is explained.
        predicted: whether it is also what is predicted; else what speaks for it is called little.
        title: one line.

    Returns:
        The figure.

    Raises:
        ValueError: image and map differ in size.

    Example:
        >>> from monai_pipelines.explain import Explanation
        >>> found = Explanation(np.eye(8, dtype=np.float32), "gradcam", "layer2", (4, 4), (2, 2), 0.9)
        >>> [axes.get_title() for axes in overlay_figure(np.zeros((3, 8, 8), np.uint8), found, "disease").axes[:2]]
        ['Image', 'What speaks for disease']
    """
    if tuple(image.shape[1:]) != explanation.map.shape:
        raise ValueError(
            f"overlay_figure: wanted an image of the map's size {explanation.map.shape}, got {tuple(image.shape[1:])}"
        )
    at = _peak(image, explanation.map)
    if at is not None:
        told = f"What{'' if predicted else ' little'} speaks for {class_name}"
    else:
        told = f"Nothing{' inside' if explanation.map.any() else ''} speaks for {class_name}"
    heading, volume = plain(told, 44), len(image.shape) == 4
    if volume:
        figure = _volume(image, explanation.map, at or usual_voxel(image), heading)
    else:
        figure = _image(image, explanation.map, heading)
    if title:
        figure.suptitle(plain(title, 90), fontsize=12, weight="bold")
    below = [plain(resolution(image, explanation), 100)]
    if explanation.map.any():
        white = "Planes through the map's maximum (background left out), white" if volume and at else "White"
        below.append(f"{white} line: half of the map's maximum")
    figure.supxlabel("\n".join(below), fontsize=10)
    return figure


def resolution(image: Any, explanation: Explanation) -> str:
    """One sentence: by what the map was made, and how finely it tells places apart."""
    at = f" at {explanation.stage}" if explanation.stage else ""
    mm = cell_mm(image, explanation)
    unit, steps = ("pixels", [*explanation.cell_px]) if mm is None else ("mm", mm)
    if explanation.window_px:
        sides = np.multiply(explanation.window_px, steps) / explanation.cell_px
        how = f"windows of {_by(sides)} {unit}, moved by {_by(steps)}"
    else:
        how = f"{_by(explanation.cells)} cells, {_by(steps)} {unit} apart"
    return f"{METHODS[explanation.method]}{at}: {how}; it tells nothing finer"


def cell_mm(image: Any, explanation: Explanation) -> list[float] | None:
    """Distance of the map's cells in mm on each axis; None where the image is no volume that tells where it lies."""
    if len(image.shape) != 4 or not hasattr(image, "pixdim"):
        return None
    return [float(mm * px) for mm, px in zip(image.pixdim, explanation.cell_px, strict=True)]


def _by(sides: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in sides)


def _peak(image: Any, map_: NDArray[np.float32]) -> tuple[int, ...] | None:
    """Where the map is highest, in a volume of what is no background; None where nothing speaks for the class."""
    values = map_
    if map_.ndim == 3:
        volume = np.asarray(image)[0]
        values = np.where(volume > volume.min(), map_, 0)
    if not values.any():
        return None
    highest = np.argwhere(values == values.max())
    middle = np.linalg.norm(highest - highest.mean(axis=0), axis=1).argmin()
    return tuple(highest[middle].tolist())


def _image(image: Any, map_: NDArray[np.float32], told: str) -> Figure:
    (pixels,) = shown_pixels([image])
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(8.8, 0.9 + 3.9 * float(np.clip(height / width, 0.4, 1.6))), layout="constrained")
    figure.set_facecolor("white")
    plain_axes, overlaid = figure.subplots(1, 2)
    plain_axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    grey = pixels.mean(axis=2) if pixels.ndim == 3 else pixels
    overlaid.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    drawn = _lay_over(overlaid, map_, (-0.5, width - 0.5, height - 0.5, -0.5))
    plain_axes.set_title("Image", fontsize=11)
    overlaid.set_title(told, fontsize=11)
    for axes in (plain_axes, overlaid):
        axes.set_axis_off()
    _colour_bar(figure, drawn, overlaid)
    return figure


def _volume(image: Any, map_: NDArray[np.float32], at: Sequence[int], told: str) -> Figure:
    volume = np.asarray(image)[0]
    shown, maps = planes(image, volume, at), planes(image, map_, at)
    (x, y), (_, z) = shown[0].size_mm, shown[1].size_mm
    figure = Figure(figsize=(9.4, 1.4 + 2 * 8.4 * max(y, z) / (2 * x + y)), layout="constrained")
    figure.set_facecolor("white")
    rows = figure.subplots(2, 3, width_ratios=[x, x, y])
    for row, overlaid in zip(rows, (False, True), strict=True):
        for axes, plane, own in zip(row, shown, maps, strict=True):
            plane.draw(axes, cmap="gray", vmin=float(volume.min()), vmax=float(volume.max()))
            plane.mark_sides(axes)
            if overlaid:
                width, height = plane.size_mm
                drawn = _lay_over(axes, own.pixels, (0, width, height, 0))
            else:
                axes.set_title(plane.name, fontsize=11)
            if hasattr(image, "affine"):
                scale_bar(axes, 1)
    rows[1, 1].set_title(told, fontsize=11)
    _colour_bar(figure, drawn, rows[1])
    return figure


def _lay_over(axes: Axes, map_: NDArray[np.float32], extent: tuple[float, float, float, float]) -> AxesImage:
    """The map in colours, transparent where it is low, and the line of its half."""
    drawn = axes.imshow(map_, cmap=_COLORMAP, vmin=0, vmax=1, alpha=_OPACITY * map_, extent=extent)
    if map_.max() > 0.5:
        axes.contour(map_, [0.5], colors="white", linewidths=1, extent=extent, origin="upper")
    return drawn


def _colour_bar(figure: Figure, drawn: AxesImage, axes: Any) -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, aspect=18, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["0", "half", "most"])
    bar.ax.tick_params(labelsize=10)
