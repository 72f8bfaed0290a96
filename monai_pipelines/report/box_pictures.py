"""Pictures of lesions and detections: boxes in images and in three planes of scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor
from numpy.typing import ArrayLike, NDArray

from monai_pipelines.detection.boxes import Found, Target
from monai_pipelines.report.figures import BOX_COLORS, plain
from monai_pipelines.report.pictures import bar_length, default_voxel, planes, shown_pixels

LINES: dict[str, Any] = {"lesion": "-", "ignored": ":", "detection": (0, (4, 2))}
VIEW_MM = 60.0  # side of the neighborhood of a finding in a scan
BAR_MM = 10.0
_AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))  # of the axial, coronal and sagittal plane: across, down, normal
_OUTLINE = [withStroke(linewidth=1.6, foreground="black")]
_SIZE = 7.5  # of text
_GRAY_OUTSIDE = colormaps["gray"].with_extremes(bad="#707070")
_MAX_VOLUMES = 8


class Box(NamedTuple):
    """A box to draw."""

    kind: str
    """lesion, ignored or detection"""
    edges: NDArray[Any]
    """(2 d,), all minima before all maxima, in the tensor"""
    text: str = ""
    """beside it, such as the score"""
    strong: bool = False
    """a thicker line: the finding that is shown"""


def boxes_figure(
    images: Sequence[Any],
    targets: Sequence[Target],
    titles: Sequence[str],
    found: Sequence[Found] | None = None,
    box_affines: Sequence[Any] | None = None,
    columns: int = 4,
) -> Figure:
    """Draw images with their boxes: a grid of images, or three planes of each volume through its first box.

    Lesions have solid lines, findings to be ignored dotted ones, detections dashed ones.

    Args:
        images: all (C, H, W), or up to 8 volumes (C, X, Y, Z) in RAS; a batch (B, C, ...) is one, too.
        targets: what each image has, in coordinates of the tensor. A volume without a box is cut as
            `monai_pipelines.report.pictures.slices_figure` does.
        titles: a short one for each image.
        found: detections in each image; None: not drawn.
        box_affines: (4, 4) for each volume, from its box coordinates to RAS mm; None: isotropic voxels of unknown
            orientation.
        columns: of images, at most.

    Raises:
        ValueError: no images, too many volumes, or targets or titles that are not as many.

    Example:
        >>> target = Target(torch.tensor([[1.0, 1, 4, 4]]), torch.zeros(1), torch.tensor([False]))
        >>> len(boxes_figure(torch.zeros(2, 1, 8, 8), [target] * 2, ["a", "b"]).axes)
        2
    """
    num = len(images)
    if not num or not num == len(targets) == len(titles) or (found is not None and len(found) != num):
        raise ValueError(
            f"boxes_figure: wanted at least one image, a target and a title for each, got {num}, {len(targets)} and "
            f"{len(titles)}"
        )
    boxes = [
        boxes_of(np.asarray(target.boxes.cpu()), target.ignore.tolist(), None if found is None else found[k])
        for k, target in enumerate(targets)
    ]
    pixels = [np.asarray(torch.as_tensor(image).detach().cpu()) for image in images]
    if pixels[0].ndim == 4:
        affines = [None] * num if box_affines is None else box_affines
        return _volumes_figure(pixels, boxes, titles, affines)
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, image, drawn, title in zip(axes, pixels, boxes, titles, strict=False):
        draw_image(axis, image, drawn)
        _write_scores(axis)
        axis.set_title(plain(title, 32), fontsize=9)
    for axis in axes[num:]:
        axis.remove()
    return figure


def boxes_of(boxes: NDArray[Any], ignore: Sequence[bool], found: Found | None = None) -> list[Box]:
    """Lesions, then detections with their scores, to draw."""
    drawn = [Box("ignored" if skip else "lesion", edges) for edges, skip in zip(boxes, ignore, strict=True)]
    if found is not None:
        parts = np.asarray(found.boxes.detach().cpu()), found.scores.tolist()
        drawn += [Box("detection", edges, f"{score:.2f}") for edges, score in zip(*parts, strict=True)]
    return drawn


def image_finding_figure(image: Any, boxes: Sequence[Box], at: NDArray[Any], px: float = 1.0) -> Figure:
    """A finding in an image: all of the image, and the neighborhood of the finding.

    Args:
        image: (C, H, W).
        boxes: to draw, in the tensor.
        at: (4,), the finding's box.
        px: pixels of the stored image in one of the tensor, for the scale bar.
    """
    height, width = image.shape[1:]
    figure = Figure(figsize=(4.6, 4.6 / (1 + width / height)), layout="constrained")
    whole, part = figure.subplots(1, 2, width_ratios=[width / height, 1])
    draw_image(whole, image, boxes)
    side = min(max(2 * float((at[2:] - at[:2]).max()), 0.3 * min(height, width)), height, width)
    center = (at[:2] + at[2:]) / 2
    top, left = np.clip(center - side / 2, 0, [height - side, width - side])
    whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="white", linewidth=0.5))
    draw_image(part, image, boxes)
    part.set(xlim=(left, left + side), ylim=(top + side, top))
    _write_scores(part)
    length = bar_length(side * px)
    _scale_bar(part, length / px, f"{length:g} px")
    return figure


def scan_finding_figure(
    image: Any, boxes: Sequence[Box], at: NDArray[Any], spacing_mm: ArrayLike, view_mm: float = VIEW_MM
) -> Figure:
    """A finding in a scan: an axial, a coronal and a sagittal plane through its center, and a bar of 10 mm.

    Planes are oriented as in `monai_pipelines.report.pictures.slices_figure`, cropped to the finding's neighborhood;
    beyond the scan they are gray.

    Args:
        image: (C, X, Y, Z), RAS.
        boxes: to draw, in the tensor.
        at: (6,), the finding's box.
        spacing_mm: of the voxels.
        view_mm: side of the neighborhood; it is larger around a large finding.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    center, extent = (at[:3] + at[3:]) / 2, ((at[3:] - at[:3]) * spacing).max()
    half = max(view_mm, 1.6 * float(extent)) / 2
    low = np.floor(center - half / spacing).astype(int)
    values, offset = _padded(np.asarray(image[0], dtype=np.float32), low, np.ceil(center + half / spacing).astype(int))
    voxel = np.clip(np.floor(center).astype(int), 0, np.array(image.shape[1:]) - 1)
    figure = Figure(figsize=(4.6, 1.75), layout="constrained")
    window = _window(np.asarray(image[0]))
    panels = figure.subplots(1, 3)
    at_voxel = np.clip(voxel - offset, 0, np.array(values.shape) - 1)
    _draw_planes(panels, values, boxes, spacing, at_voxel, offset, window, oriented=True)
    for axes, (across, down, _) in zip(panels, _AXES, strict=True):
        middle = (offset + values.shape - center) * spacing
        axes.set(xlim=(middle[across] - half, middle[across] + half), ylim=(middle[down] + half, middle[down] - half))
    _write_scores(panels[0])
    _scale_bar(panels[0], BAR_MM, f"{BAR_MM:g} mm")
    return figure


def draw_image(axes: Axes, image: Any, boxes: Sequence[Box]) -> None:
    """An image (C, H, W) with boxes."""
    height, width = image.shape[1:]
    options: Any = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    axes.imshow(shown_pixels([image])[0], extent=(0, width, height, 0), **options)
    axes.set_axis_off()
    for box in boxes:
        top, left, bottom, right = box.edges.tolist()
        _rectangle(axes, box, left, top, right, bottom)


def _volumes_figure(
    images: Sequence[NDArray[Any]], boxes: Sequence[Sequence[Box]], titles: Sequence[str], affines: Sequence[Any]
) -> Figure:
    if len(images) > _MAX_VOLUMES:
        raise ValueError(f"boxes_figure: wanted 1 to {_MAX_VOLUMES} volumes, got {len(images)}")
    columns = 1 if len(images) < 3 else 2
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(6.4 * columns, 2.8 * rows), layout="constrained")
    parts = np.ravel(figure.subfigures(rows, columns, squeeze=False))
    for part, image, drawn, title, affine in zip(parts, images, boxes, titles, affines, strict=False):
        if title:
            part.suptitle(plain(title, 60), fontsize=11)
        spacing = np.ones(3) if affine is None else spacing_of(affine)
        at = np.array(default_voxel(image))
        if drawn:
            edges = drawn[0].edges
            at = np.clip(np.floor((edges[:3] + edges[3:]) / 2).astype(int), 0, np.array(image.shape[1:]) - 1)
        x, y, _ = np.array(image.shape[1:]) * spacing
        panels = part.subplots(1, 3, width_ratios=[x, x, y])
        _draw_planes(
            panels, image[0], drawn, spacing, at, np.zeros(3, int), _window(image[0]), oriented=affine is not None
        )
        _write_scores(panels[0])
    return figure


def spacing_of(affine: Any) -> NDArray[np.float64]:
    """Spacing of voxels in mm, from a (d + 1, d + 1) affine."""
    matrix = np.asarray(torch.as_tensor(affine).cpu(), dtype=np.float64)
    spacing: NDArray[np.float64] = np.linalg.norm(matrix[:-1, :-1], axis=0)
    return spacing


def _draw_planes(
    panels: Any,
    values: NDArray[Any],
    boxes: Sequence[Box],
    spacing: NDArray[Any],
    at: NDArray[Any],
    offset: NDArray[Any],
    window: tuple[float, float],
    oriented: bool,
) -> None:
    """Three planes through voxel ``at`` of ``values``, whose first voxel is voxel ``offset`` of the tensor.

    In each plane, both axes of the tensor run against the picture's: right to left and bottom to top.
    """
    image: Any = values[None]
    if oriented:
        image = MetaTensor(values[None], affine=torch.diag(torch.tensor([*spacing, 1.0])))
    scale = spacing if oriented else np.ones(3)
    drawn = planes(image, values, at.tolist())
    for axes, plane, (across, down, normal) in zip(panels, drawn, _AXES, strict=True):
        plane.draw(axes, cmap=_GRAY_OUTSIDE, vmin=window[0], vmax=window[1])
        axes.set_title(plane.name, fontsize=8)
        for box in boxes:
            low, high = box.edges[:3] - offset, box.edges[3:] - offset
            if low[normal] < at[normal] + 1 and high[normal] > at[normal]:
                left, top = ((values.shape[a] - high[a]) * scale[a] for a in (across, down))
                right, bottom = ((values.shape[a] - low[a]) * scale[a] for a in (across, down))
                _rectangle(axes, box, left, top, right, bottom)
        plane.mark_sides(axes)


def _padded(values: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Voxels from ``low`` to below ``high``, NaN beyond the volume; and ``low``."""
    part = np.full(high - low, np.nan, dtype=values.dtype)
    first = np.maximum(low, 0)
    last = np.maximum(np.minimum(high, values.shape), first)
    inside, source = (tuple(slice(a, b) for a, b in zip(first - s, last - s, strict=True)) for s in (low, 0 * low))
    part[inside] = values[source]
    return part, low


def _window(values: NDArray[Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _rectangle(axes: Axes, box: Box, left: float, top: float, right: float, bottom: float) -> None:
    linewidth = 1.4 if box.strong else 0.8
    patch = Rectangle((left, top), right - left, bottom - top, fill=False, linewidth=linewidth, gid=box.kind)
    patch.set(edgecolor=BOX_COLORS[box.kind], linestyle=LINES[box.kind], label=box.text)
    patch.set_path_effects([withStroke(linewidth=linewidth + 0.8, foreground="black", alpha=0.6)])
    axes.add_patch(patch)


def _write_scores(axes: Axes) -> None:
    """Write the texts of boxes below them, those of boxes beyond the edge of the picture at the edge."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    back = {"facecolor": "black", "alpha": 0.65, "linewidth": 0, "pad": 0.8}
    for patch in axes.patches:
        text = str(patch.get_label())
        if not text or not isinstance(patch, Rectangle):
            continue
        x0, y0 = patch.get_xy()
        x1, y1 = x0 + patch.get_width(), y0 + patch.get_height()
        if x1 < left or x0 > right or y1 < top or y0 > bottom:
            continue
        first, last = max(x0, left), min(x1, right)
        x = (first + last) / 2
        third = 3 * (x - left) / (right - left)
        side, x = ("left", first) if third < 1 else ("right", last) if third > 2 else ("center", x)
        style: Any = {"color": BOX_COLORS[str(patch.get_gid())], "fontsize": _SIZE, "bbox": back, "gid": "score"}
        label = axes.text(x, min(y1, bottom - 0.09 * (bottom - top)), text, ha=side, va="top", clip_on=True, **style)
        label.set_in_layout(False)


def _scale_bar(axes: Axes, length: float, text: str) -> None:
    """A bar at the lower left; data units."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = left + 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    outline = [withStroke(linewidth=3, foreground="black")]
    axes.plot([x, x + length], [y, y], color="white", linewidth=1.8, solid_capstyle="butt", path_effects=outline)
    place = y + 0.02 * (top - bottom)
    axes.text(x, place, text, color="white", fontsize=_SIZE, va="bottom", path_effects=_OUTLINE)
