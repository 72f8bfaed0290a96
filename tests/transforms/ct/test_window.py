from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange

from monai_pipelines.transforms import WindowHU

HU = np.array([[[[-3024, -1000, -999, -160, 0], [40, 240, 399, 400, 3071]]]], np.int16)


def _reference_window(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.interp(hu.astype(np.float64), [low, high], [0, 1])


@pytest.mark.parametrize(
    ("window", "edges"),
    [
        ("lung", (-1000, 400)),
        ("mediastinum", (-160, 240)),
        ("bone", (-450, 1050)),
        ((-1024, 3071), (-1024, 3071)),
        ([0.5, 0.75], (0.5, 0.75)),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_window(window: str | tuple[float, float], edges: tuple[float, float], dtype: type) -> None:
    out = WindowHU(window)(HU.astype(dtype))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, _reference_window(HU, *edges), atol=1e-6)
    monai = ScaleIntensityRange(*edges, 0, 1, clip=True)(HU.astype(np.float32))
    np.testing.assert_allclose(out, monai, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "center_hu", "width_hu"), [("lung", -300, 1400), ("mediastinum", 40, 400), ("bone", 300, 1500)]
)
def test_hand_worked_level_and_width(window: str, center_hu: float, width_hu: float) -> None:
    hu = torch.tensor([-0.5, -0.25, 0.0, 0.5]) * width_hu + center_hu
    assert WindowHU(window)(hu).tolist() == pytest.approx([0, 0.25, 0.5, 1])


def test_float_input_is_unchanged() -> None:
    """No conversion copies it, so an in-place step would change it."""
    hu = torch.from_numpy(HU.astype(np.float32))
    WindowHU()(hu)
    np.testing.assert_array_equal(hu, HU)


def test_affine_and_meta_stay() -> None:
    image = MetaTensor(
        torch.from_numpy(HU), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])), meta={"lungs_found": True}
    )
    out = WindowHU()(image)
    assert torch.equal(out.affine, image.affine)
    assert out.meta["lungs_found"] is True


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((400, -1000), r"window_hu must rise, got \[400, -1000\] \(swapped\?\)"),
        ((100, 100), "must rise"),
        ((1, 2, 3), "must rise"),
        ("lungs", "one of lung, mediastinum, bone or .low, high., got 'lungs'"),
    ],
)
def test_bad_window(window: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowHU(window)
