from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.transforms import LungHistogram, LungHistogramd

SHAPE = (20, 18, 16)


def _reference_features(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = hu[mask > 0].astype(float)
    counts, _ = np.histogram(inside, [-np.inf, *range(-1000, 101, 100), np.inf])
    return np.array([inside.mean() / 1000, *counts / inside.size])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_histogram(kind: type) -> None:
    hu = np.random.default_rng(0).integers(-1100, 300, (1, *SHAPE), dtype=np.int16)
    hu[0, 5:9, 6, 4] = -1000, -900, 99, 100
    mask = np.zeros((1, *SHAPE))
    mask[0, 5:9, 6:12, 4:10] = 1
    (name, features), *others = LungHistogram()(kind(hu), kind(mask)).items()
    assert (name, others, features.dtype) == ("HU histogram", [], torch.float32)
    np.testing.assert_allclose(features, _reference_features(hu, mask), rtol=1e-5)
    assert features[1:].sum().item() == pytest.approx(1)


def test_hand_worked_histogram() -> None:
    """Four voxels: below -1000, in the first bin, on the edge of the last, and outside the mask."""
    hu = np.array([[[[-1001, -950, 100, 3000]]]])
    features = LungHistogram()(hu, np.array([[[[1, 1, 1, 0]]]]))["HU histogram"]
    assert features.tolist() == pytest.approx([-0.617, 1 / 3, 1 / 3, *[0] * 10, 1 / 3])


def test_empty_mask() -> None:
    with pytest.raises(ValueError, match="LungHistogram: the mask is empty"):
        LungHistogramd("image")({"image": torch.zeros(1, *SHAPE), "lungs": torch.zeros(1, *SHAPE)})
