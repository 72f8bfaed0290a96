"""`LoadCT` of volumes that are loaded already: with an affine they are taken, without one refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import LoadCT
from tests.transforms.contract_rows import file


def test_volume_with_an_affine_is_taken(tmp_path: Path) -> None:
    wanted = LoadCT()(file(tmp_path)["image"])
    out = LoadCT()(MetaTensor(wanted.as_tensor().float() + 0.2, affine=wanted.affine, meta={"patient": "a"}))
    assert out.dtype == torch.int16
    assert torch.equal(out.as_tensor(), wanted.as_tensor())
    np.testing.assert_allclose(out.affine, wanted.affine)
    assert (out.meta["patient"], out.meta["verdict"], out.meta["scanner"]) == ("a", "ok", "")


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((1, 4, 4, 4)), r"volume: ndarray has no affine, .* MetaTensor\(volume, affine=\.\.\.\)"),
        (torch.zeros(1, 4, 4, 4), "Tensor has no affine"),
        (MetaTensor(torch.zeros(4, 4, 4)), r"wanted finite HU \(1, X, Y, Z\), got shape \(4, 4, 4\)"),
        (MetaTensor(torch.full((1, 4, 4, 4), torch.nan)), "or NaN"),
        (MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([1.0, 1, 99, 1]))), "1 x 1 x 99 mm"),
    ],
)
def test_other_volumes_are_errors(volume: object, message: str) -> None:
    with pytest.raises(ScanError, match=message):
        LoadCT()(volume)  # type: ignore[arg-type]
