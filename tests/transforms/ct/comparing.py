"""CT volumes compared wherever their voxels lie in memory, and SimpleITK's reading of them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monai.data import MetaTensor

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def assert_same_scan(volume: MetaTensor, hu: np.ndarray, affine: np.ndarray) -> None:
    """Same values at the same positions, in any order of voxels."""
    to_other = np.linalg.inv(affine) @ volume.affine.numpy()
    steps = np.rint(to_other)
    np.testing.assert_allclose(to_other, steps, atol=1e-3)
    where = nib.affines.apply_affine(steps, np.stack(np.indices(volume.shape[1:]), -1)).astype(int)
    assert hu.shape == tuple(np.abs(steps[:3, :3]).astype(int) @ volume.shape[1:])
    np.testing.assert_array_equal(volume[0].numpy(), np.rint(hu[tuple(np.moveaxis(where, -1, 0))]))


def itk_affine(image: sitk.Image) -> np.ndarray:
    columns = [image.TransformIndexToPhysicalPoint([int(a == b) for b in range(3)]) for a in range(3)]
    origin = np.array(image.TransformIndexToPhysicalPoint([0, 0, 0]))
    return LPS @ nib.affines.from_matvec((np.array(columns) - origin).T, origin)


def reference_sitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()
