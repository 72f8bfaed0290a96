"""A map of the evidence for a class, drawn over the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from monai_pipelines.explain.maps import Explanation
from monai_pipelines.report.figures import plain
from monai_pipelines.report.pictures import bar_length, default_voxel, planes, scale_bar, shown_pixels
from monai_pipelines.report.words import METHODS

_COLORMAP = "plasma"
_OPACITY = 0.8  # where the map is 1


def overlay_figure(
    image: Any, explanation: Explanation, class_name: str = "the class", predicted: bool = True, title: str = ""
) -> Figure:
    """The image with and without the map over it, with a color bar and the resolution of the map.

    Of a volume, three planes through the map's maximum are drawn as by
    `monai_pipelines.report.pictures.slices_figure` (its default planes if the map is empty), with a scale bar in mm.
    The maximum is sought outside the background (the volume's minimum), as masked air shows nothing. A line marks half
    of the map's maximum.

    Args:
        image: (C, H, W) or (C, X, Y, Z), as `monai_pipelines.report.pictures.images_figure` takes it; of a volume the
            first channel is drawn.
        explanation: of this image, of the same size.
        class_name: the explained class.
        predicted: whether this class is also predicted; if not, the heading says so.
        title: one line.

    Raises:
        ValueError: image and map differ in size.

    Example:
        >>> from monai_pipelines.explain import Explanation
        >>> explanation = Explanation(np.eye(8, dtype=np.float32), "gradcam", "layer2", (4, 4), (2, 2), 0.9)
        >>> figure = overlay_figure(np.zeros((3, 8, 8), np.uint8), explanation, "disease")
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['Image', 'Evidence for disease']
    """
    if tuple(image.shape[1:]) != explanation.map.shape:
        raise ValueError(
            f"overlay_figure: wanted an image of the map's size {explanation.map.shape}, got {tuple(image.shape[1:])}"
        )
    at, volume = peak(image, explanation.map), len(image.shape) == 4
    if at is not None:
        text = f"Evidence for {class_name}{'' if predicted else ' (not predicted)'}"
    else:
        text = f"No evidence{' inside' if explanation.map.any() else ''} for {class_name}"
    heading = plain(text, 44)
    if volume:
        figure = _volume(image, explanation.map, at or default_voxel(image), heading)
    else:
        figure = _image(image, explanation.map, heading)
    if title:
        figure.suptitle(plain(title, 90), fontsize=12, weight="bold")
    below = [plain(resolution(image, explanation), 100)]
    if explanation.map.any():
        planes_at = "Planes through the map's maximum (background excluded), white" if volume and at else "White"
        below.append(f"{planes_at} line: half of the map's maximum")
    figure.supxlabel("\n".join(below), fontsize=10)
    return figure


def resolution(image: Any, explanation: Explanation) -> str:
    """One line: method and spatial resolution of the map."""
    at = f" at {explanation.stage}" if explanation.stage else ""
    mm = cell_mm(image, explanation)
    unit, steps = ("pixels", [*explanation.cell_px]) if mm is None else ("mm", mm)
    if explanation.window_px:
        sides = np.multiply(explanation.window_px, steps) / explanation.cell_px
        how = f"windows of {_by(sides)} {unit}, moved by {_by(steps)}"
    else:
        how = f"{_by(explanation.cells)} cells, {_by(steps)} {unit} apart"
    return f"{METHODS[explanation.method]}{at}: {how}; it resolves nothing finer"


def cell_mm(image: Any, explanation: Explanation) -> list[float] | None:
    """Distance of the map's cells in mm along each axis; None unless the image is a volume with voxel sizes."""
    if len(image.shape) != 4 or not hasattr(image, "pixdim"):
        return None
    return [float(mm * px) for mm, px in zip(image.pixdim, explanation.cell_px, strict=True)]


def _by(sides: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in sides)


def peak(image: Any, map_: NDArray[np.float32]) -> tuple[int, ...] | None:
    """Index of the maximum of an image's map, in a volume outside the background; None if the map is 0 there."""
    values = map_
    if map_.ndim == 3:
        volume = np.asarray(image)[0]
        values = np.where(volume > volume.min(), map_, 0)
    if not values.any():
        return None
    highest = np.argwhere(values == values.max())
    middle = np.linalg.norm(highest - highest.mean(axis=0), axis=1).argmin()
    return tuple(highest[middle].tolist())


def _image(image: Any, map_: NDArray[np.float32], heading: str) -> Figure:
    (pixels,) = shown_pixels([image])
    height, width = pixels.shape[:2]
    above = 0.5 + 0.4 * len(heading.splitlines())
    figure = Figure(figsize=(8.8, above + 3.9 * float(np.clip(height / width, 0.4, 1.6))), layout="constrained")
    figure.set_facecolor("white")
    plain_axes, overlaid = figure.subplots(1, 2)
    plain_axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    gray = pixels.mean(axis=2) if pixels.ndim == 3 else pixels
    overlaid.imshow(gray, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    drawn = _lay_over(overlaid, map_, (-0.5, width - 0.5, height - 0.5, -0.5))
    plain_axes.set_title("Image", fontsize=11)
    overlaid.set_title(heading, fontsize=11)
    for axes in (plain_axes, overlaid):
        axes.set_axis_off()
    _color_bar(figure, drawn, overlaid)
    return figure


def _volume(image: Any, map_: NDArray[np.float32], at: Sequence[int], heading: str) -> Figure:
    volume = np.asarray(image)[0]
    shown, maps = planes(image, volume, at), planes(image, map_, at)
    (x, y), (_, z) = shown[0].size_mm, shown[1].size_mm
    figure = Figure(figsize=(9.4, 1.4 + 2 * 8.4 * max(y, z) / (2 * x + y)), layout="constrained")
    figure.set_facecolor("white")
    rows = figure.subplots(2, 3, width_ratios=[x, x, y])
    for row, overlaid in zip(rows, (False, True), strict=True):
        for axes, plane, plane_map in zip(row, shown, maps, strict=True):
            plane.draw(axes, cmap="gray", vmin=float(volume.min()), vmax=float(volume.max()))
            plane.mark_sides(axes)
            if overlaid:
                width, height = plane.size_mm
                drawn = _lay_over(axes, plane_map.pixels, (0, width, height, 0))
            else:
                axes.set_title(plane.name, fontsize=11)
            if hasattr(image, "affine"):
                scale_bar(axes, bar_length(min(x, y)))
    rows[1, 1].set_title(heading, fontsize=11)
    _color_bar(figure, drawn, rows[1])
    return figure


def _lay_over(axes: Axes, map_: NDArray[np.float32], extent: tuple[float, float, float, float]) -> AxesImage:
    """Draw the map in color, transparent where it is low, and a line at half of its maximum."""
    drawn = axes.imshow(map_, cmap=_COLORMAP, vmin=0, vmax=1, alpha=_OPACITY * map_, extent=extent)
    if map_.max() > 0.5:
        axes.contour(map_, [0.5], colors="white", linewidths=1, extent=extent, origin="upper")
    return drawn


def _color_bar(figure: Figure, drawn: AxesImage, axes: Any) -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, aspect=18, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["0", "half", "most"])
    bar.ax.tick_params(labelsize=10)
