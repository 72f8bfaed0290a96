"""Expected calibration error (ECE): probabilities against observed shares, bin by bin."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 10


def bin_indices(prob: ArrayLike) -> NDArray[np.int64]:
    """Index of the equal-width bin of each probability; a bin includes its upper edge.

    Example:
        >>> bin_indices([0.0, 0.1, 0.11, 1.0])
        array([0, 0, 1, 9])
    """
    return np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], prob)


def expected_calibration_error(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """ECE (R,) from gaps (B, R): (sum of probabilities - number observed) / N in each bin."""
    return np.abs(gaps).sum(0)
