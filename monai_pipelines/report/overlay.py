"""A map of what speaks for a class, laid over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from monai_pipelines.report.attention import scale_bar
from monai_pipelines.report.figures import plain
from monai_pipelines.report.images import planes, shown_pixels, usual_voxel
from monai_pipelines.report.words import METHODS

if TYPE_CHECKING:  # it needs torch
    from monai_pipelines.explain import Explanation

__all__ = ["cell_mm", "overlay_figure", "resolution"]

_COLORMAP = "plasma"
_OPACITY = 0.8  # where the map is 1


def overlay_figure(image: Any, explanation: Explanation, title: str = "") -> Figure:
    """The image, and the image with the map over it, with a colour bar and what the map cannot tell.

    Of a volume three planes through the map's maximum are drawn as :func:`monai_pipelines.report.slices_figure` draws
    them (the same three where the map is empty), with a bar in mm. A line runs where the map is at half of its maximum.

    Args:
        image: (C, H, W) or (C, X, Y, Z), as :func:`monai_pipelines.report.images_figure` takes it; the first channel
            of a volume is drawn.
        explanation: of this image, of the same size.
        title: one line.

    Returns:
        The figure.

    Raises:
        ValueError: image and map differ in size.

    Example:
        >>> from monai_pipelines.explain import Explanation
        >>> found = Explanation(np.eye(8, dtype=np.float32), "gradcam", "layer2", (4, 4), (2, 2), 0.9)
        >>> [axes.get_title() for axes in overlay_figure(np.zeros((3, 8, 8), np.uint8), found).axes[:2]]
        ['Image', 'What speaks for the class']
    """
    if tuple(image.shape[1:]) != explanation.map.shape:
        raise ValueError(
            f"overlay_figure: wanted an image of the map's size {explanation.map.shape}, got {tuple(image.shape[1:])}"
        )
    figure = _volume(image, explanation) if len(image.shape) == 4 else _image(image, explanation)
    if title:
        figure.suptitle(plain(title, 90), fontsize=12, weight="bold")
    figure.supxlabel(plain(resolution(image, explanation), 100), fontsize=10)
    return figure


def resolution(image: Any, explanation: Explanation) -> str:
    """One sentence: by what the map was made, and how finely it tells places apart."""
    at = f" at {explanation.stage}" if explanation.stage else ""
    mm = cell_mm(image, explanation)
    unit, steps = ("pixels", [*explanation.cell_px]) if mm is None else ("mm", mm)
    cells, apart = (" x ".join(f"{value:.3g}" for value in own) for own in (explanation.cells, steps))
    return f"{METHODS[explanation.method]}{at}: {cells} cells, {apart} {unit} apart; it tells nothing finer"


def cell_mm(image: Any, explanation: Explanation) -> list[float] | None:
    """Distance of the map's cells in mm on each axis; None where the image is no volume that tells where it lies."""
    if len(image.shape) != 4 or not hasattr(image, "pixdim"):
        return None
    return [float(mm * px) for mm, px in zip(image.pixdim, explanation.cell_px, strict=True)]


def _image(image: Any, explanation: Explanation) -> Figure:
    (pixels,) = shown_pixels([image])
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(8.8, 0.9 + 3.9 * float(np.clip(height / width, 0.4, 1.6))), layout="constrained")
    figure.set_facecolor("white")
    plain_axes, overlaid = figure.subplots(1, 2)
    plain_axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    grey = pixels.mean(axis=2) if pixels.ndim == 3 else pixels
    overlaid.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    drawn = _lay_over(overlaid, explanation.map, (-0.5, width - 0.5, height - 0.5, -0.5))
    plain_axes.set_title("Image", fontsize=11)
    overlaid.set_title(_told(explanation), fontsize=11)
    for axes in (plain_axes, overlaid):
        axes.set_axis_off()
    _colour_bar(figure, drawn, overlaid)
    return figure


def _volume(image: Any, explanation: Explanation) -> Figure:
    volume = np.asarray(image)[0]
    at = explanation.peak if explanation.map.any() else usual_voxel(image)
    shown, maps = planes(image, volume, at), planes(image, explanation.map, at)
    (x, y), (_, z) = shown[0].size_mm, shown[1].size_mm
    figure = Figure(figsize=(9.4, 1.4 + 2 * 8.4 * max(y, z) / (2 * x + y)), layout="constrained")
    figure.set_facecolor("white")
    rows = figure.subplots(2, 3, width_ratios=[x, x, y])
    for row, overlaid in zip(rows, (False, True), strict=True):
        for axes, plane, map_ in zip(row, shown, maps, strict=True):
            plane.draw(axes, cmap="gray", vmin=float(volume.min()), vmax=float(volume.max()))
            plane.mark_sides(axes)
            if overlaid:
                width, height = plane.size_mm
                drawn = _lay_over(axes, map_.pixels, (0, width, height, 0))
            else:
                axes.set_title(plane.name, fontsize=11)
            if hasattr(image, "affine"):
                scale_bar(axes, 1)
    rows[1, 1].set_title(_told(explanation), fontsize=11)
    _colour_bar(figure, drawn, rows[1])
    return figure


def _lay_over(axes: Axes, map_: NDArray[np.float32], extent: tuple[float, float, float, float]) -> AxesImage:
    """The map in colours, transparent where it is low, and the line of its half."""
    drawn = axes.imshow(map_, cmap=_COLORMAP, vmin=0, vmax=1, alpha=_OPACITY * map_, extent=extent)
    if map_.max() > 0.5:
        axes.contour(map_, [0.5], colors="white", linewidths=1, extent=extent, origin="upper")
    return drawn


def _told(explanation: Explanation) -> str:
    return "What speaks for the class" if explanation.map.any() else "Nothing speaks for the class"


def _colour_bar(figure: Figure, drawn: AxesImage, axes: Any) -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, aspect=18, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["0", "half", "most"])
    bar.ax.tick_params(labelsize=10)
