"""High-throughput JPEG 2000: read as the native voxels.

The streams are the fifth slice of the healthy phantom, unsigned and signed, encoded losslessly by OpenJPH 0.26.3.
"""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL

from monai_pipelines.errors import ScanError
from monai_pipelines.transforms import LoadCT
from tests.transforms.ct.spoiling import AFFINE, HU, write_healthy

SLICE = 4
UNSIGNED = (
    "/0//UQApQAAAAAAgAAAAHAAAAAAAAAAAAAAAIAAAABwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJ"
    "CQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAhgAAf+TwAAmOfsFB3QAwAASwAATQAATALMBB3QANv4CB3QAkf4CB3QA"
    "wAAVMAAFRAABUL3EiDPuAQa0ADB6SrcAYZQAYYdCaADGtADAABakAAFoQAAVoF9dCo9HC0AsyE5Hk+YBkFiSZrcAAJq2vbBcTHrxAKH8yRGXAO"
    "LMpHBp/kAk9zYnNwDAABdjAABdfAABbACXCEIFAVJmisCqrWVSkRIYc3gQCz/s68IkgyzKb+xALWs7HXQtBiPOwBFS0g92cjMBZc+KQgRZoIry"
    "fR+FuNIBYNAllGVpKtw6k6+KYKT30AAPc+sXNJBRJAUdjRSmtAFAIYAB4LSDFAMj/qf/ftXqsW33cmv0EAHAAC9ngABewQAAuwAPAIJIQPqAAq"
    "AA/x8ELIAqyxaud1eFoKCw3QVE4E++u0eREjAZXdUAlrf9rspwCASCogjg1zUE9kDJuZaANZ2sADHPna9rOyJ2PuO11rhqvrnRplDFt6FB5b5u"
    "WyuS09/MR+T1YK8CAfgD/38/JQqSKAKg/1XaBLAwKKsJ/BcRSAXTkPw/KCACdsNQDEGpIyyhD1SAgQZo/uIAACggCfAgCADzCADmOANBhtAaih"
    "XTtVCdFJAQUyLp09Ev67qsKvucSTSq2D8CByCAAMRgfMibo9CJvqUBcb5pJba7NUuYp8Xee00TaOtbEV1MNrpKTojtVVYmNdUC/9k="
)
SIGNED = (
    "/0//UQApQAAAAAAgAAAAHAAAAAAAAAAAAAAAIAAAABwAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJ"
    "CQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAhcAAf+TwAAlOQIHdADAABLAABNAABMAswEHdAA2/gIHdACR/gIHdADA"
    "ABUwAAVEAAFQvcSIM+4BBrQAMHpKtwBhlABhh0JoAMa0AMAAFqQAAWhAABWgX10Kj0cLQCzITkeT5gGQWJJmtwAAmra9sFxMevEAofzJEZcA4s"
    "ykcGn+QCT3Nic3AMAAF2MAAF18AAFsAJcIQgUBUmaKwKqtZVKREhhzeBALP+zrwiSDLMpv7EAtazsddC0GI87AEVLSD3ZyMwFlz4pCBFmgivJ9"
    "H4W40gFg0CWUZWkq3DqTr4pgpPfQAA9z6xc0kFEkBR2NFKa0AUAhgAHgtIMUAyP+p/9+1eqxbfdya/QQAcAAL2eAAF7BAAC7AA8AgkhA+oACoA"
    "D/HwQsgCrLFq53V4WgoLDdBUTgT767R5ESMBld1QCWt/2uynAIBIKiCODXNQT2QMm5loA1nawAMc+dr2s7InY+47XWuGq+udGmUMW3oUHlvm5b"
    "K5LT38xH5PVgrwIB+AP/fz8lCpIoAqD/VdoEsDAoqwn8FxFIBdOQ/D8oIAJ2w1AMQakjLKEPVICBBmj+4gAAKCAJ8CAIAPMIAOY4A0GG0BqKFd"
    "O1UJ0UkBBTIunT0S/ruqwq+5xJNKrYPwIHIIAAxGB8yJuj0Im+pQFxvmkltrs1S5inxd57TRNo61sRXUw2ukpOiO1VViY11QL/2Q=="
)


def _write(folder: Path, stream: bytes, signed: bool, syntax: str) -> Path:
    file = sorted(write_healthy(folder).iterdir())[SLICE]
    dataset = pydicom.dcmread(file)
    dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), 0 if signed else -1024
    _put(dataset, stream, syntax)
    dataset.save_as(file)
    return folder


def _put(dataset: Dataset, stream: bytes, syntax: str) -> None:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
@pytest.mark.parametrize("signed", [False, True])
def test_equal_to_the_native_voxels(tmp_path: Path, signed: bool, syntax: str) -> None:
    stream = base64.b64decode(SIGNED if signed else UNSIGNED)
    volume = LoadCT()(_write(tmp_path / "scan", stream, signed, syntax))
    assert np.array_equal(volume[0], HU)
    assert np.allclose(volume.affine, AFFINE)


@pytest.mark.parametrize("damage", ["cut", "end missing", "zeros", "not a stream"])
def test_damaged(tmp_path: Path, damage: str) -> None:
    whole = base64.b64decode(UNSIGNED)
    stream = {
        "cut": whole[: len(whole) // 2],
        "end missing": whole[:-2],
        "zeros": whole[:4] + bytes(len(whole) - 6) + whole[-2:],
        "not a stream": b"text" * 20 + whole[-2:],
    }[damage]
    with pytest.raises(ScanError, match=r"truncated: the end of|cannot be decoded \(High-Throughput JPEG 2000"):
        LoadCT()(_write(tmp_path / "scan", stream, False, HTJ2KLossless))
