from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.transforms import MeasureImage, MeasureImaged

NAMES = ["mean color", "color histogram", "size and file type"]


def _reference_features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and histogram; uint8 divided by 255, in 16 bins of 16 values."""
    values = image.astype(float)
    mean = values.reshape(len(image), -1).mean(axis=1) / (255 if image.dtype == np.uint8 else 1)
    edges = np.linspace(0, 256, 17) if image.dtype == np.uint8 else np.linspace(0, 1, 17)
    shares = [np.histogram(channel, edges)[0] / channel.size for channel in values]
    return mean, np.concatenate(shares)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_features(channels: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (channels, 37, 51)).astype(dtype)
    if dtype is np.float32:
        image = (image // 16 * 16 / 256).astype(np.float32)  # on the edges of the bins
        image[:, 0] = 1
    features = MeasureImage()(image)
    mean, histogram = _reference_features(image)
    assert list(features) == NAMES
    assert all(vector.dtype == torch.float32 and vector.ndim == 1 for vector in features.values())
    np.testing.assert_allclose(features["mean color"], mean, rtol=1e-5)
    np.testing.assert_allclose(features["color histogram"], histogram, rtol=1e-5)


@pytest.mark.parametrize(
    ("file_type", "place"), [("png", 2), ("jpeg", 3), ("tiff", 4), ("dicom", 5), ("other", 6), ("bmp", 6), (None, 6)]
)
def test_size_and_file_type(file_type: str | None, place: int) -> None:
    meta = {"file_type": file_type} if file_type else {}
    features = MeasureImage()(MetaTensor(torch.zeros(1, 512, 100, dtype=torch.uint8), meta=meta))
    expected = [9, np.log2(100), 0, 0, 0, 0, 0]
    expected[place] = 1
    assert features["size and file type"].tolist() == pytest.approx(expected)


def test_hand_worked_histogram() -> None:
    """Of four pixels one is in the first bin (0..15), two in the second (16..31), one in the last (240..255)."""
    features = MeasureImage()(np.array([[[15, 16], [31, 255]]], np.uint8))
    assert features["color histogram"].tolist() == [0.25, 0.5, *[0] * 13, 0.25]
    assert features["mean color"].tolist() == pytest.approx([317 / 4 / 255])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_gives_results_on_the_cpu() -> None:
    image = torch.arange(96, dtype=torch.uint8).reshape(3, 4, 8)
    for name, vector in MeasureImage()(image.cuda()).items():
        torch.testing.assert_close(vector, MeasureImage()(image)[name])


def test_twin_and_errors() -> None:
    item = {"image": torch.zeros(3, 4, 4, dtype=torch.uint8)}
    assert list(MeasureImaged("image", feature_key="cheap")(item)["cheap"]) == NAMES
    for shape in ((4, 4), (2, 1, 4, 4), (3, 0, 4)):
        with pytest.raises(ValueError, match=r"MeasureImage: wanted an image \(C, H, W\), got shape"):
            MeasureImage()(torch.zeros(shape))
