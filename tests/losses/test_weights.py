from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_pipelines.errors import CohortError
from monai_pipelines.losses import class_weights, pos_weights


@pytest.mark.parametrize(("scheme", "beta"), list(itertools.product(["inverse", "effective"], [0.0, 0.9, 0.999])))
def test_class_weights(scheme: str, beta: float) -> None:
    counts = [3, 50, 700]
    labels = np.repeat([0, 1, 2], counts)
    raw = [1 / n if scheme == "inverse" else 1 / sum(beta**k for k in range(n)) for n in counts]
    expected = [3 * w / sum(raw) for w in raw]
    for values in [labels, labels.tolist(), torch.from_numpy(labels), labels[::-1].astype(np.int8)]:
        weights = class_weights(values, 3, scheme, beta)
        assert weights is not None
        assert weights.dtype == torch.float32
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_no_class_weights() -> None:
    assert class_weights([], 2, "none") is None
    assert class_weights("not looked at", 2, "none") is None


def test_class_weights_errors() -> None:
    with pytest.raises(CohortError) as error:
        class_weights([0, 0, 5, -1, 5], 3)
    assert error.value.problems == [
        "label -1 (1x) lies outside 0..2",
        "label 5 (2x) lies outside 0..2",
        "class 1 has no sample",
        "class 2 has no sample",
    ]
    with pytest.raises(CohortError, match="class 0 has no sample"):
        class_weights([], 1)
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        class_weights([0.0, 1.0], 2)
    with pytest.raises(ValueError, match=r"labels must be \(N,\), got shape \(1, 2\)"):
        class_weights([[0, 1]], 2)
    with pytest.raises(ValueError, match="scheme must be one of inverse, effective, none, got 'balanced'"):
        class_weights([0, 1], 2, "balanced")
    with pytest.raises(ValueError, match="beta must be"):
        class_weights([0, 1], 2, "effective", beta=1)


def test_pos_weights() -> None:
    labels = np.zeros((10, 3), dtype=np.int64)
    labels[:1, 0] = labels[:5, 1] = labels[:8, 2] = 1
    for values in [labels, labels.tolist(), torch.from_numpy(labels), labels.astype(np.float32), labels.astype(bool)]:
        weights = pos_weights(values)
        assert weights.dtype == torch.float32
        np.testing.assert_allclose(weights, [9, 1, 0.25])


def test_pos_weights_errors() -> None:
    with pytest.raises(CohortError) as error:
        pos_weights([[0, 1, 1], [0, 1, 0]])
    assert error.value.problems == ["class 0 has no positive", "class 1 has no negative"]
    with pytest.raises(ValueError, match=r"labels must be \(N, C\), got shape \(2,\)"):
        pos_weights([0, 1])
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, got \[2\]"):
        pos_weights([[0, 2], [1, 0]])
