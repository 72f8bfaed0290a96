"""Steps on a CUDA device give what they give on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.transforms.contract_rows import ROWS
from tests.transforms.test_contract import run, standard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _numbers(value: Any) -> list[np.ndarray]:
    if isinstance(value, dict):
        return [np.asarray(number) for number in value.values()]
    return [np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.array and name != "RandNoise3D"])
def test_step_on_the_gpu(name: str, tmp_path: Path) -> None:
    item = ROWS[name].inputs(tmp_path)
    on_gpu = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in item.items()}
    for got, wanted in zip(run(standard(name), on_gpu), run(standard(name), item), strict=True):
        if isinstance(wanted, torch.Tensor) and name not in ("SegmentLungs", "PlaceBoxes"):
            assert got.device.type == "cuda"
        for one, other in zip(_numbers(got), _numbers(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_noise_on_the_gpu(tmp_path: Path) -> None:
    """Another generator, the same distribution."""
    image = ROWS["RandNoise3D"].inputs(tmp_path)["image"].cuda()
    noise = standard("RandNoise3D")(image) - image
    assert noise.device.type == "cuda"
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)
    assert abs(float(noise.mean())) < 1e-3
