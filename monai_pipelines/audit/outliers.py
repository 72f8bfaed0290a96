"""Items that are unlike the others: another size, spacing, brightness or content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.audit.kinds import Kind
from monai_pipelines.audit.readings import Reading

MIN_ITEMS = 10
_REACH = 5.0  # robust standard deviations
_MAD_STD = 1.4826  # standard deviation of normal values over their median absolute deviation
_STD_OCTAVES = 0.25  # smallest standard deviation of sizes and spacings that is assumed
_STD_VALUES = {"HU": 40.0, "gray levels": 8.0}
_STD_CONTENT = 0.05
_Row = tuple[int, str]


def find_outliers(readings: Sequence[Reading], kind: Kind) -> dict[int, list[str]]:
    """Why some of the items are unlike the others, by index.

    A value is an outlier if it is more than 5 robust standard deviations (1.4826 times the median absolute deviation,
    at least a quarter of an octave, 40 HU or 8 gray levels) from the median; a content, if the correlation of its
    coarse picture with the median picture is that much lower than usual.

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
            (known, [readings[index].spacing[k] for index in known], f"{kind.unit} per pixel"),  # type: ignore[index]
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
    pictures = [reading.coarse.ravel() for reading in readings if reading.coarse is not None]
    if len(pictures) < len(readings):
        return
    stack = np.stack(pictures).astype(np.float64)
    usual = np.median(stack, axis=0)
    parts = stack - stack.mean(axis=1, keepdims=True), usual - usual.mean()
    norms = np.linalg.norm(parts[0], axis=1) * np.linalg.norm(parts[1])
    likeness = np.divide(parts[0] @ parts[1], norms, out=np.zeros(len(stack)), where=norms > 0)
    distances, median = _far(likeness, _STD_CONTENT)
    for index in np.flatnonzero(distances < -_REACH):
        yield int(index), f"its picture correlates by {likeness[index]:.2f} with the median, usually {median:.2f}"
