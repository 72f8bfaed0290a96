"""What boxes need to know about their images, from the headers alone: sizes, grids, slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.errors import InvalidDicomError
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from monai_pipelines.data.box_files import BoxRow
from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import quiet_libraries
from monai_pipelines.remarks import logged_remarks, printed_remarks
from monai_pipelines.transforms.boxes import move_boxes
from monai_pipelines.transforms.ct.formats import ITK_SUFFIXES, NIFTI_SUFFIXES, itk_affine, nifti_affine
from monai_pipelines.transforms.ct.load import slice_affine
from monai_pipelines.transforms.ct.series import Series, choose_series, find_slices
from monai_pipelines.transforms.dicom import quiet_pydicom, read_header

MAX_GAP = 2  # slices from one box to the next of the same lesion
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap rows and columns
_ORIENTATION = 0x0112
_UNREADABLE = (OSError, ScanError, ValueError, RuntimeError, InvalidDicomError, nib.filebasedimages.ImageFileError)


def image_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of an upright 2D image; None if it cannot be read, which its chain reports."""
    try:
        with quiet_libraries(), Image.open(path) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(_ORIENTATION) in _TURNED else (height, width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    try:
        with quiet_pydicom():
            header = read_header(path, ("Rows", "Columns"))
            return header.integer("Rows", 1, 2**16), header.integer("Columns", 1, 2**16)
    except _UNREADABLE:
        return None


def scan_grid(path: Path) -> tuple[NDArray[np.float64], tuple[int, int, int]] | None:
    """Affine (voxels -> RAS mm) and shape of a scan; None if it cannot be read, which its chain reports."""
    name = path.name.lower()
    series = scan_series(path)
    if series is not None:
        first, num = series.slices[0], len(series.slices)
        step = (series.origins[-1] - series.origins[0]) / (num - 1) if num > 1 else first.normal
        rows, columns = first.shape
        return slice_affine(first, step), (columns, rows, num)
    try:
        with quiet_libraries(), logged_remarks(nib.imageglobals.logger.name), printed_remarks():
            if path.is_file() and name.endswith(NIFTI_SUFFIXES):
                image: Any = nib.load(path)
                x, y, z = image.shape[:3]
                return nifti_affine(path, image)[0], (x, y, z)
            if path.is_file() and name.endswith(ITK_SUFFIXES):
                import SimpleITK as sitk

                reader = sitk.ImageFileReader()
                reader.SetFileName(str(path))
                reader.ReadImageInformation()
                x, y, z = reader.GetSize()
                return itk_affine(reader), (x, y, z)
    except _UNREADABLE:
        pass
    return None


def scan_series(path: Path) -> Series | None:
    """The CT series that is read from a folder or file; None if it is not DICOM, or cannot be read."""
    if path.name.lower().endswith((*NIFTI_SUFFIXES, *ITK_SUFFIXES)):
        return None
    try:
        with quiet_pydicom():
            return choose_series(find_slices(path), "largest")[0]
    except _UNREADABLE:
        return None


def slice_uids(series: Series) -> list[str]:
    """SOPInstanceUID of each slice; empty for a frame of several, which has none of its own."""
    return [one.header.text("SOPInstanceUID") if one.num_frames == 1 else "" for one in series.slices]


def join_slices(series: Series, rows: Sequence[BoxRow]) -> list[BoxRow]:
    """Boxes in a scan from boxes on its slices.

    Boxes of one class that overlap on slices at most `MAX_GAP` apart are one lesion. It reaches half a slice beyond the
    first and the last of them, and is to be ignored if all of them are.

    Args:
        series: the scan.
        rows: boxes in pixels, whose images are SOPInstanceUIDs of its slices.

    Returns:
        boxes in RAS mm.
    """
    order = {uid: k for k, uid in enumerate(slice_uids(series))}
    index = np.array([order[row.image] for row in rows])
    joined = []
    for group in _lesions(rows, index):
        members = sorted(group, key=lambda i: index[i])
        joined.append(_in_space(series, [rows[i] for i in members], index[members]))
    return joined


def _lesions(rows: Sequence[BoxRow], index: NDArray[np.int64]) -> list[list[int]]:
    """Indices of the rows of each lesion."""
    if not rows:
        return []
    boxes, names = np.array([row.box for row in rows]), np.array([row.name for row in rows])
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    overlap = (np.minimum(high, high.swapaxes(0, 1)) > np.maximum(low, low.swapaxes(0, 1))).all(axis=2)
    apart = np.abs(index[:, None] - index)
    linked = overlap & (apart > 0) & (apart <= MAX_GAP) & (names[:, None] == names)
    num, lesion = connected_components(csr_matrix(linked), directed=False)
    return [np.flatnonzero(lesion == k).tolist() for k in range(num)]


def _in_space(series: Series, rows: Sequence[BoxRow], index: NDArray[np.int64]) -> BoxRow:
    """One box around those on slices, in order."""
    boxes = np.array([row.box for row in rows])
    (y_min, x_min), (y_max, x_max) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    first = series.slices[index[0]]
    half = (series.step_mm or first.header.number("SliceThickness", 0, 50, default=1)) / 2
    deep = series.along_mm[index[-1]] - series.along_mm[index[0]]
    in_slices = np.array([[x_min - 0.5, y_min - 0.5, -half, x_max - 0.5, y_max - 0.5, deep + half]])
    box = move_boxes(in_slices, slice_affine(first, first.normal))[0].tolist()
    return BoxRow(rows[0].where, rows[0].image, rows[0].name, tuple(box), all(row.ignore for row in rows))
