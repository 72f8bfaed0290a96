"""Equal and similar images: small pictures of their detail, compared in all orientations."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_DETAIL = 1.5  # Gaussian std in voxels of the small picture: coarser structures are removed
_FAINT = 2.0  # gray levels of contrast that are damped by half
_BLOCK = 1024
MIRRORED = {2: 1, 3: 4}  # by dimensions

Array = NDArray[np.float32]


def digest(values: NDArray[Any]) -> bytes:
    """SHA-256 of an array with its shape and type."""
    found = hashlib.sha256(repr((values.shape, values.dtype.str)).encode())
    found.update(np.ascontiguousarray(values).data)
    return found.digest()


def detail(small: Array) -> NDArray[np.float16]:
    """Detail of a small picture in gray levels 0 to 255, of norm 1 (0: no detail).

    Coarse shading is removed and local contrast normalized, so that pictures are not similar because of brightness or
    anatomy.
    """
    fine = small - gaussian_filter(small, _DETAIL)
    fine = fine / (np.sqrt(gaussian_filter(fine**2, _DETAIL)) + _FAINT)
    norm = float(np.linalg.norm(fine))
    return (fine / norm if norm > 0.1 else np.zeros_like(fine)).astype(np.float16)


def equal_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Indices of each content, in order of their first; single ones too."""
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, one in enumerate(digests):
        same[one].append(index)
    return list(same.values())


def similar_groups(details: Sequence[NDArray[Any]], similarity: float) -> list[tuple[list[int], float]]:
    """Indices that are linked by a similarity of at least this, with the lowest that links two of them.

    Args:
        details: of `detail`, all 2D or all 3D; compared in the eight orientations of a square, or the eight reflections
            of a cube.
        similarity: correlation, 0 to 1.
    """
    pairs = list(_similar(details, similarity))
    first, second = (np.array([pair[k] for pair in pairs], dtype=int) for k in (0, 1))
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(details),) * 2)
    _, component = connected_components(links, directed=False)
    lowest: dict[int, float] = {}
    for one, _, value in pairs:
        lowest[component[one]] = min(value, lowest.get(component[one], 1.0))
    return [(np.flatnonzero(component == number).tolist(), value) for number, value in lowest.items()]


def _similar(details: Sequence[NDArray[Any]], similarity: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (i < j) that are similar in one of their orientations."""
    if not details:
        return
    stack = np.stack(details).astype(np.float32)
    flat = stack.reshape(len(stack), -1)
    starts = range(0, len(stack), _BLOCK)
    for start in track(starts, "comparing", disable=len(starts) < 4):
        block = stack[start : start + _BLOCK]
        best = np.full((len(block), len(stack) - start), -1, np.float32)
        for turned in orientations(block):
            np.maximum(best, turned.reshape(len(block), -1) @ flat[start:].T, out=best)
        for row, column in np.argwhere(best >= similarity - 1e-6):
            if row < column:
                yield start + int(row), start + int(column), min(1.0, float(best[row, column]))


def orientations(block: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """(N, ...) in eight orientations, as it is first; the one that swaps left and right is at `MIRRORED`.

    Pictures (N, height, width) are rotated by 90 degrees and mirrored, volumes (N, X, Y, Z) reflected.
    """
    if block.ndim == 3:
        for quarter in range(4):
            turned = np.rot90(block, quarter, axes=(1, 2))
            yield from (turned, turned[:, :, ::-1])
    else:
        for steps in product((1, -1), repeat=3):
            yield block[:, :: steps[0], :: steps[1], :: steps[2]]
