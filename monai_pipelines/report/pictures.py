"""Figures of a network's input images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from monai_pipelines.report.figures import plain

_MAX_VOLUMES = 8


def images_figure(images: Sequence[Any], titles: Sequence[str], columns: int = 6) -> Figure:
    """Draw a grid of images; volumes as :func:`slices_figure` draws them.

    Args:
        images: all 2D (C, H, W), drawn in color if C is 3, else the first channel in gray; uint8 or floating point.
            Floats outside [0, 1] are rescaled by the minimum and maximum over all images. Or all volumes (C, X, Y, Z):
            see :func:`slices_figure`.
        titles: one short title per image.
        columns: at most this many.

    Raises:
        ValueError: no images, an unsupported shape, or a wrong number of titles.

    Example:
        >>> len(images_figure([np.zeros((3, 8, 8), np.uint8)] * 7, ["a tile"] * 7).axes)
        7
    """
    if not len(images) or len(images) != len(titles):
        raise ValueError(
            f"images_figure: wanted at least one image and a title for each, got {len(images)} and {len(titles)}"
        )
    if len(images[0].shape) == 4:
        return slices_figure(images, titles)
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.8 * columns, 2.15 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, pixels, title in zip(axes, shown_pixels(images), titles, strict=False):
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(plain(title, 22, lines=3), fontsize=9)
        axis.set_axis_off()
    for axis in axes[len(images) :]:
        axis.remove()
    return figure


def thumbnail(image: Any, side: int = 192) -> tuple[str, bytes]:
    """Shrink a 2D image to at most ``side`` pixels: file type ("png" or "jpeg") and content.

    Small images are stored losslessly as PNG.
    """
    picture = Image.fromarray(shown_pixels([image])[0])
    kind = "png" if max(picture.size) < side // 2 else "jpeg"
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, format=kind, **({"quality": 90} if kind == "jpeg" else {}))
    return kind, buffer.getvalue()


def png_pixels(png: bytes) -> NDArray[np.uint8]:
    """(3, h, w) of a PNG file."""
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).transpose(2, 0, 1)


def in_turn(items: Iterable[Any], kind: Callable[[Any], Any], num: int) -> list[Any]:
    """At most `num` items, taken from their kinds in turn, then put together kind by kind."""
    by_kind: dict[Any, list[Any]] = {}
    for item in items:
        by_kind.setdefault(kind(item), []).append(item)
    turns = [item for turn in zip_longest(*by_kind.values()) for item in turn if item is not None]
    return sorted(turns[:num], key=kind)


def shown_pixels(images: Sequence[Any]) -> list[NDArray[np.uint8]]:
    """Pixels (H, W) or (H, W, 3) that :func:`images_figure` draws."""
    arrays = []
    for image in images:
        if len(image.shape) != 3:
            raise ValueError(f"images_figure: wanted images (C, H, W), got shape {tuple(image.shape)}")
        array = np.asarray(image)
        arrays.append(array.transpose(1, 2, 0) if len(array) == 3 else array[0])
    if all(array.dtype == np.uint8 for array in arrays):
        return arrays
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = 255 / (high - low) if high > low else 0.0
    return [((array - low) * scale).round().astype(np.uint8) for array in arrays]


def slices_figure(
    images: Sequence[Any], titles: Sequence[str], at: Sequence[Sequence[int] | None] | None = None
) -> Figure:
    """Draw an axial, a coronal and a sagittal slice of each volume in radiological convention.

    The patient's right is on the viewer's left, anterior (axial) and head (coronal, sagittal) are up, and the sagittal
    slice faces left. Axial and coronal slices are central, the sagittal one is in the middle of the right half (the
    midline has no lung). First channel, gray from the volume's minimum to its maximum, with a scale bar. The
    orientation is known for MetaTensors only: of other volumes all three slices are central, named by axes, and without
    letters R, A and S and scale bar.

    Args:
        images: up to 8 volumes (C, X, Y, Z): MetaTensors in RAS with their ``pixdim``, or arrays and tensors of
            isotropic voxels.
        titles: one line for each volume.
        at: voxel of each volume through which to cut it instead; None: as above.

    Raises:
        ValueError: no volumes, more than 8, an unsupported shape, or a wrong number of titles.

    Example:
        >>> len(slices_figure([np.zeros((1, 8, 8, 8))], ["a scan"]).axes)
        3
    """
    if not 1 <= len(images) <= _MAX_VOLUMES or len(images) != len(titles):
        raise ValueError(
            f"slices_figure: wanted 1 to {_MAX_VOLUMES} volumes and a title each, got {len(images)} and {len(titles)}"
        )
    columns = 1 if len(images) < 3 else 2
    rows = math.ceil(len(images) / columns)
    x, y, z = _extent_mm(images[0])
    width, scale = 6.4, 6.4 / (2 * x + y)
    above = 0.6 if any(titles) else 0.3
    figure = Figure(figsize=(width * columns, (max(y, z) * scale + above) * rows), layout="constrained")
    figure.set_facecolor("white")
    parts = np.ravel(figure.subfigures(rows, columns, squeeze=False))
    for part, image, title, voxel in zip(parts, images, titles, at or [None] * len(images), strict=False):
        x, y, _ = _extent_mm(image)
        volume = np.asarray(image)[0]
        if title:
            part.suptitle(plain(title, 60), fontsize=12, weight="bold")
        panels = part.subplots(1, 3, width_ratios=[x, x, y])
        for axes, plane in zip(panels, planes(image, volume, voxel or default_voxel(image)), strict=True):
            plane.draw(axes, cmap="gray", vmin=float(volume.min()), vmax=float(volume.max()))
            axes.set_title(plane.name, fontsize=11)
            plane.mark_sides(axes)
            if hasattr(image, "affine"):
                scale_bar(axes, bar_length(min(x, y)))
    return figure


def bar_length(width: float) -> float:
    """Length of a scale bar: 1, 2 or 5 times a power of ten, a tenth to a quarter of a width.

    Example:
        >>> bar_length(300)
        50.0
    """
    longest = width / 4
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))


def scale_bar(axes: Axes, length_mm: float, pixels_per_mm: float = 1.0) -> None:
    """Draw a bar of a length in the lower left corner."""
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    x, y = 0.03 * right, bottom - 0.03 * right
    outline, halo = ([withStroke(linewidth=width, foreground="white")] for width in (5, 3))
    axes.plot([x, x + length_mm * pixels_per_mm], [y, y], color="black", linewidth=3, path_effects=outline)
    axes.text(x, y - 0.012 * right, f"{length_mm:g} mm", fontsize=10, va="bottom", path_effects=halo)


class Plane(NamedTuple):
    """A slice of a volume, ready to draw."""

    name: str
    pixels: NDArray[Any]
    """(height, width), top row first."""
    size_mm: tuple[float, float]
    """Width and height."""
    letters: tuple[str, str] | None
    """The patient's sides at the left and top edge, if known."""

    def draw(self, axes: Axes, **options: Any) -> AxesImage:
        """Draw in mm without axes; ``options`` are those of ``imshow``."""
        axes.set_axis_off()
        extent = (0, self.size_mm[0], self.size_mm[1], 0)
        return axes.imshow(self.pixels, extent=extent, interpolation="nearest", **options)

    def mark_sides(self, axes: Axes) -> None:
        """Write the letters R, A and S."""
        if self.letters is None:
            return
        style: dict[str, Any] = {"color": "white", "fontsize": 11, "weight": "bold", "transform": axes.transAxes}
        outline = [withStroke(linewidth=2, foreground="black")]
        axes.text(0.03, 0.5, self.letters[0], va="center", ha="left", path_effects=outline, **style)
        axes.text(0.5, 0.97, self.letters[1], va="top", ha="center", path_effects=outline, **style)


def planes(image: Any, values: NDArray[Any], at: Sequence[int]) -> list[Plane]:
    """The axial, coronal and sagittal plane through a voxel, oriented as in :func:`slices_figure`.

    Args:
        image: a volume, as :func:`slices_figure` takes it; gives orientation and voxel size.
        values: (X, Y, Z), values to draw: of the image or of an overlay.
        at: index of the voxel.
    """
    x, y, z = _extent_mm(image)
    i, j, k = at
    oriented = hasattr(image, "affine")
    names = ("Axial", "Coronal", "Sagittal") if oriented else ("x-y", "x-z", "y-z")
    letters = (("R", "A"), ("R", "S"), ("A", "S")) if oriented else (None, None, None)
    pixels = (values[::-1, ::-1, k], values[::-1, j, ::-1], values[i, ::-1, ::-1])
    sizes = ((x, y), (x, z), (y, z))
    return [Plane(n, p.T, s, c) for n, p, s, c in zip(names, pixels, sizes, letters, strict=True)]


def default_voxel(image: Any) -> tuple[int, int, int]:
    """Where :func:`slices_figure` cuts a volume (C, X, Y, Z)."""
    i, j, k = (n // 2 for n in image.shape[1:])
    return (3 * image.shape[1] // 4 if hasattr(image, "affine") else i), j, k


def _extent_mm(image: Any) -> tuple[float, float, float]:
    if len(image.shape) != 4:
        raise ValueError(f"slices_figure: wanted a volume (C, X, Y, Z), got shape {tuple(image.shape)}")
    x, y, z = (float(n * mm) for n, mm in zip(image.shape[1:], getattr(image, "pixdim", (1, 1, 1)), strict=True))
    return x, y, z
