"""Items that are unlike the others: another size, spacing, brightness or content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.audit.kinds import Kind
from monai_pipelines.audit.likeness import MIRRORED, orientations
from monai_pipelines.audit.readings import Reading

MIN_ITEMS = 10
_REACH = 5.0  # robust standard deviations
_MAD_STD = 1.4826  # standard deviation of normal values over their median absolute deviation
_STD_OCTAVES = 0.25  # smallest standard deviation of sizes and spacings that is assumed
_STD_VALUES = {"HU": 40.0, "gray levels": 8.0}
_STD_CONTENT = 0.2
_SHARED = 0.5  # usual correlation with the median picture from which on position means anatomy
_UNLIKE = 0.2
_MARGIN = 0.2
_Row = tuple[int, str]


def find_outliers(readings: Sequence[Reading], kind: Kind) -> dict[int, list[str]]:
    """Why some of the items are unlike the others, by index.

    A value is an outlier if it is more than 5 robust standard deviations (1.4826 times the median absolute deviation,
    at least a quarter of an octave, 40 HU or 8 gray levels) from the median; a content, if the correlation of its
    coarse picture with the median picture is that much lower than usual (Fisher's z, at least 0.2), or below
    0.2 although usually above 0.5, or if another orientation fits better by 0.2; left and right are not distinguished.

    Args:
        readings: of all items; fewer than 10 have no outliers.
        kind: of the items.

    Reference: Leys et al., Detecting outliers: do not use standard deviation around the mean, use absolute deviation
    around the median, Journal of Experimental Social Psychology, 2013.
    """
    if len(readings) < MIN_ITEMS:
        return {}
    why: defaultdict[int, list[str]] = defaultdict(list)
    for index, text in (*_sizes(readings, kind), *_means(readings, kind), *_contents(readings)):
        why[index].append(text)
    return dict(sorted(why.items()))


def _far(values: NDArray[np.float64], least_std: float) -> tuple[NDArray[np.float64], float]:
    """Distances from the median in standard deviations, and the median."""
    median = float(np.median(values))
    std = max(_MAD_STD * float(np.median(np.abs(values - median))), least_std)
    return (values - median) / std, median


def _sizes(readings: Sequence[Reading], kind: Kind) -> Iterator[_Row]:
    known = [index for index, reading in enumerate(readings) if reading.spacing]
    unit = "voxels" if len(kind.axes) == 3 else "pixels"
    for k, axis in enumerate(kind.axes):
        for indices, values, what in (
            (range(len(readings)), [float(reading.size[k]) for reading in readings], unit),
            (known, [readings[index].spacing[k] for index in known], f"{kind.unit} per {unit[:-1]}"),  # type: ignore[index]
        ):
            if len(values) < MIN_ITEMS:
                continue
            distances, median = _far(np.log2(values), _STD_OCTAVES)
            for place in np.flatnonzero(np.abs(distances) > _REACH):
                yield indices[place], f"{axis}: {values[place]:.4g} {what}, usually {2**median:.4g}"


def _means(readings: Sequence[Reading], kind: Kind) -> Iterator[_Row]:
    values = np.array([reading.mean for reading in readings])
    distances, median = _far(values, _STD_VALUES[kind.values])
    for index in np.flatnonzero(np.abs(distances) > _REACH):
        yield int(index), f"mean of {values[index]:.4g} {kind.values}, usually {median:.4g}"


def _contents(readings: Sequence[Reading]) -> Iterator[_Row]:
    pictures = [reading.coarse for reading in readings if reading.coarse is not None]
    if len(pictures) < len(readings):
        return
    stack = np.stack(pictures)
    usual = np.median(stack, axis=0)
    likeness = [np.arctanh(_correlation(turned, usual)) for turned in orientations(stack)]
    mirrored = MIRRORED[usual.ndim]
    upright = np.maximum(likeness[0], likeness[mirrored])
    turned = np.max([found for k, found in enumerate(likeness) if k not in (0, mirrored)], axis=0)
    distances, median = _far(upright, _STD_CONTENT)
    shared = np.tanh(median) > _SHARED
    for index in np.flatnonzero((distances < -_REACH) | (shared & (np.tanh(upright) < _UNLIKE))):
        found, usually = np.tanh([upright[index], median])
        yield int(index), f"correlation of {found:.2f} with the median picture, usually {usually:.2f}"
    for index in np.flatnonzero(shared & (turned - upright > _MARGIN)):
        yield int(index), "turned or upside down: another orientation fits the others better"


def _correlation(stack: NDArray[Any], picture: NDArray[Any]) -> NDArray[np.float64]:
    """Of each picture with one, (N,) from -0.999 to 0.999."""
    flat, one = stack.reshape(len(stack), -1).astype(np.float32), picture.ravel().astype(np.float32)
    flat, one = flat - flat.mean(axis=1, keepdims=True), one - one.mean()
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(one)
    found = np.divide(flat @ one, norms, out=np.zeros(len(flat)), where=norms > 0)
    return np.clip(found, -0.999, 0.999)
