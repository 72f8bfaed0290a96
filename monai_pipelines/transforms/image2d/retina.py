"""Cropping of fundus photographs to the retina's disc."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import avg_pool2d, pad

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms.image2d.resize import moved
from monai_pipelines.transforms.inverse import FixedSpatial, FixedSpatiald

WORKING_PIXELS = 400  # approximate size of the image in which the disc is searched
DARK = 0.04  # a photograph that is nowhere brighter is empty
RIM = 0.1  # brightness at the rim, as a fraction of that of bright areas
SMALL = 0.05  # of the image: smaller bright regions are not the retina
STRAIGHT = 0.3  # of the image's size: longer straight edges along a row or column are not the rim
OFF_RIM = 0.01  # of the image's size: largest distance of a point on the circle
ROUND = 0.7  # least fraction of the rim on the circle
NUM_CIRCLES = 300  # candidates, each through three points of the rim


class CropRetina(FixedSpatial):
    """Crop a fundus photograph to the square around its disc, so that all discs have one position and size.

    A circle is fitted to the rim of the largest bright region; notches, straight edges and glare are outliers. Beyond
    the photograph the square is padded with black. If no circle with its center in the photograph fits (a disc squeezed
    to an ellipse), the square encloses the region. A photograph without dark border, already cropped within its disc,
    is returned unchanged.

    Args:
        margin: around the disc, as a fraction of its diameter. Negative values cut into it: -0.15 keeps the square
            within the disc, without the rim that reveals how a photograph was framed.

    Returns:
        `MetaTensor` (C, S, S) of the input's dtype with the disc in the middle, S = (1 + 2 margin) diameters; the
        affine follows.

    Raises:
        ValueError: a margin outside -0.4..1, or an input that is not (C, H, W).
        ScanError: no disc: the image is dark or uniform, or has no large bright region.

    Example:
        >>> rows, columns = torch.meshgrid(torch.arange(100), torch.arange(160), indexing="ij")
        >>> photo = ((rows - 50) ** 2 + (columns - 70) ** 2 < 40**2).float()[None]
        >>> CropRetina(margin=0)(photo).shape
        torch.Size([1, 80, 80])

    Reference: random sample consensus (Fischler and Bolles, 1981), then least squares.
    """

    def __init__(self, margin: float = 0.02) -> None:
        if not -0.4 <= margin <= 1:
            raise ValueError(f"CropRetina: margin must lie in -0.4..1 (of the diameter), got {margin}")
        self.margin = margin

    def __call__(self, img: NdarrayOrTensor) -> MetaTensor:
        image: Any = convert_to_tensor(img, track_meta=True)
        if image.ndim != 3 or image.numel() == 0:
            raise ValueError(f"CropRetina: wanted an image (C, H, W), got shape {tuple(image.shape)}")
        circle = find_disc(image.as_tensor())
        if circle is None:
            return self._traced(moved(image.as_tensor(), image, (0, 0)), image)
        row, column, radius = circle
        side = max(1, round(2 * radius * (1 + 2 * self.margin)))
        top, left = round(row - (side - 1) / 2), round(column - (side - 1) / 2)
        height, width = image.shape[1:]
        borders = (-left, left + side - width, -top, top + side - height)
        return self._traced(moved(pad(image.as_tensor(), borders), image, (top, left)), image)


class CropRetinad(FixedSpatiald):
    """`CropRetina` for dictionaries."""

    def __init__(self, keys: KeysCollection, margin: float = 0.02, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, CropRetina(margin), allow_missing_keys)


def find_disc(image: torch.Tensor) -> tuple[float, float, float] | None:
    """Row and column of the disc's center and its radius, pixels; None without a dark border.

    Args:
        image: (C, H, W), uint8 or [0, 1].

    Raises:
        ScanError: no disc.
    """
    bright = image.amax(0, keepdim=True).float().cpu() / (255 if image.dtype == torch.uint8 else 1)
    factor = max(1, min(max(bright.shape[1:]) // WORKING_PIXELS, *bright.shape[1:]))
    reduced = avg_pool2d(bright, factor)[0].numpy() if factor > 1 else bright[0].numpy()
    low, high = np.quantile(reduced, (0.01, 0.9))
    if high < DARK:
        raise ScanError("fundus photograph", f"no disc: 90% of the image is darker than {DARK:.0%} of white")
    regions, count = ndimage.label(reduced > low + RIM * (high - low))
    if not count:
        raise ScanError("fundus photograph", "no disc: the image is uniform or contains NaN")
    region = regions == 1 + np.argmax(np.bincount(regions.ravel(), minlength=count + 1)[1:])
    if region.mean() < SMALL:
        raise ScanError("fundus photograph", f"no disc: the largest bright region is {region.mean():.1%} of the image")
    rim = _rim(region)
    if len(rim) < 0.05 * sum(region.shape):
        return None
    row, column, radius = (factor * v for v in _circle(rim, region.shape) or _box(region))
    return row + (factor - 1) / 2, column + (factor - 1) / 2, radius


def _rim(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ends of the region in each row and column (N, 2), without the straight edges of a frame or mask."""
    points = []
    for turned in (region, region.T):
        lines = np.flatnonzero(turned.any(axis=1))
        first = turned[lines].argmax(axis=1) - 0.5
        last = turned.shape[1] - 0.5 - turned[lines, ::-1].argmax(axis=1)
        for ends in (first, last):
            position = (ends + 0.5).astype(int)
            in_line = np.convolve(np.bincount(position), np.ones(5), "same")[position]  # ends within two pixels
            on_rim = (in_line <= STRAIGHT * max(region.shape)) & (ends > 1) & (ends < turned.shape[1] - 2)
            pairs = np.stack([lines[on_rim], ends[on_rim]], axis=1)
            points.append(pairs if turned is region else pairs[:, ::-1])
    return np.concatenate(points)


def _circle(rim: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[float, float, float] | None:
    """The circle through most of the rim; None if it covers too little of it, or its center is outside the image."""
    size = max(shape)
    triples = np.random.default_rng(0).integers(len(rim), size=(NUM_CIRCLES, 3))
    equations = np.concatenate([2 * rim, np.ones((len(rim), 1))], axis=1)[triples]
    solvable = np.abs(np.linalg.det(equations)) > 1e-6 * size**2
    if not solvable.any():
        return None
    solved = np.linalg.solve(equations[solvable], (rim**2).sum(axis=1)[triples[solvable]][..., None])[..., 0]
    radii = np.sqrt(solved[:, 2] + (solved[:, :2] ** 2).sum(axis=1))
    away = np.abs(np.linalg.norm(rim[:, None] - solved[:, :2], axis=2) - radii)
    near = (away < OFF_RIM * size) & (radii > 0.15 * size) & (radii < 0.75 * size)
    on_it = rim[near[:, near.sum(axis=0).argmax()]]
    if len(on_it) < ROUND * len(rim):
        return None
    row, column, offset = np.linalg.lstsq(
        np.concatenate([2 * on_it, np.ones((len(on_it), 1))], axis=1), (on_it**2).sum(axis=1)
    )[0]
    if not (0 <= row <= shape[0] - 1 and 0 <= column <= shape[1] - 1):
        return None
    return row, column, float(np.sqrt(offset + row**2 + column**2))


def _box(region: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Center and half the longer side of the box around a region."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    return (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2, side / 2
