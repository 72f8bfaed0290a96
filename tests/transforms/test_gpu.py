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


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.array])
def test_step_on_the_gpu(name: str, tmp_path: Path) -> None:
    item = ROWS[name].inputs(tmp_path)
    on_gpu = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in item.items()}
    for got, wanted in zip(run(standard(name), on_gpu), run(standard(name), item), strict=True):
        if isinstance(wanted, torch.Tensor) and name not in ("SegmentLungs", "PlaceBoxes"):
            assert got.device.type == "cuda"
        for one, other in zip(_numbers(got), _numbers(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
