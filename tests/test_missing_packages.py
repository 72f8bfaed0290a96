"""What works where packages for some kinds of files are missing, and the errors of what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_pipelines.chains import load_chain
from monai_pipelines.data.prepared import PreparedDataset
from monai_pipelines.features.files import read_features
from monai_pipelines.slides import open_slide
from monai_pipelines.transforms import LoadCT

ROOT = Path(__file__).parents[1]
MISSING = (
    *("SimpleITK", "cc3d", "elasticdeform", "fill_voids", "h5py", "numba", "onnx", "onnxruntime", "openslide"),
    *("dask", "distributed", "simplejpeg", "tifffile"),
)
CODE = f"""
import sys
sys.modules |= dict.fromkeys({MISSING})
import monai_pipelines.networks, monai_pipelines.transforms, monai_pipelines.losses, monai_pipelines.metrics
import monai_pipelines.data, monai_pipelines.engines, monai_pipelines.handlers, monai_pipelines.inferers
import monai_pipelines.explain, monai_pipelines.features, monai_pipelines.phantoms, monai_pipelines.slides, torch
from monai_pipelines import load_chain
for name, shape in {{"augment_ct": (1, 12, 12, 12), "augment_image2d": (3, 16, 16)}}.items():
    image = load_chain(name)({{"image": torch.rand(shape)}})["image"]
    assert image.shape == shape and image.isfinite().all(), name
"""


@pytest.mark.slow
def test_parts_of_a_training_work_without_packages_for_files() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def _prepare(file: Path) -> object:
    return PreparedDataset([{"image": str(file)}], load_chain("lung_ct"), on_error="skip")


@pytest.mark.parametrize(
    ("package", "name", "read"),
    [
        ("SimpleITK", "scan.nrrd", LoadCT()),
        ("h5py", "slide.h5", read_features),
        ("openslide", "slide.svs", open_slide),
        ("tifffile", "slide.tif", open_slide),
        ("SimpleITK", "scan.nrrd", _prepare),
    ],
)
def test_a_missing_package_is_no_broken_file(
    package: str, name: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"II*\0")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=package):
        read(tmp_path / name)
