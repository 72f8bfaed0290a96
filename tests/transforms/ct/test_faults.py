from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import LoadCT
from monai_pipelines.transforms.ct.volume import AIR_HU
from tests.transforms.ct.faults import DOCUMENT, FAULTS, Fault, option_text, our_outcome
from tests.transforms.ct.spoiling import AFFINE, HU, MARKER, field_hu, write_healthy


def on_healthy_grid(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes in the phantom's order and direction."""
    for axis in range(3):
        if affine[axis, axis] * AFFINE[axis, axis] < 0:
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, volume.shape[axis] - 1
            volume, affine = np.flip(volume, axis), affine @ flip
    return volume, affine


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}: {fault.name}")
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_fault(fault: Fault, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    folder = write_healthy(tmp_path / "scan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = fault.spoil(folder) or folder
    capfd.readouterr()
    caplog.clear()
    if fault.outcome not in ("equal", "repaired", "padded", "other place"):
        with pytest.raises(ScanError, match=fault.outcome) as caught:
            LoadCT(**fault.options)(path)
        assert ";" in caught.value.reason, "no way out"
        said = str(caught.value)
    else:
        volume = LoadCT(**fault.options)(path)
        hu, affine = on_healthy_grid(volume[0].numpy(), volume.affine.numpy())
        verdict = volume.meta["verdict"]
        assert re.search(fault.verdict, verdict)
        assert (verdict == "ok") == (fault.verdict == "ok")
        said = verdict
        if fault.outcome == "repaired":
            where = np.moveaxis(np.indices(hu.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
            inner = hu[4:-4, 10:-10]
            wanted = field_hu(*np.moveaxis(where, -1, 0))[4:-4, 10:-10]
            assert np.abs(inner - wanted).max() <= 17
        else:
            wanted = HU.copy()
            if fault.outcome == "padded":
                wanted[:, :2] = AIR_HU
            if fault.outcome == "other place":
                np.testing.assert_array_equal(volume[0].numpy(), wanted)
            else:
                np.testing.assert_array_equal(hu, wanted)
                np.testing.assert_allclose(affine, AFFINE, atol=0.1)
    row = f"| {fault.kind} | {option_text(fault)} | {our_outcome(fault, path)} |"
    assert row in DOCUMENT.read_text(encoding="utf-8"), "python -m tests.transforms.ct.faults > ..."
    out = capfd.readouterr()
    assert MARKER not in said + caplog.text + out.out + out.err
