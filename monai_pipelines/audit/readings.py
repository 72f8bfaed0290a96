"""What an audit keeps of an image, a scan or a slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import adaptive_avg_pool3d

from monai_pipelines.audit.likeness import detail, digest
from monai_pipelines.remote import Place, as_place
from monai_pipelines.slides import open_slide
from monai_pipelines.transforms import LoadCT
from monai_pipelines.transforms.image2d.decode import LUMA, decode_image

_SMALL_2D, _SMALL_3D = 24, 32  # sides of the small picture that is compared
_SIDE = 112  # pixels, of a picture to look at
_SHOWN_HU = (-1000, 400)
_SLIDE_SIDE = 1024  # pixels, of the overview of a slide
_TYPES = {".nii": "nifti", ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage"}


@dataclass(frozen=True, eq=False)
class Reading:
    """What is kept of an item.

    Attributes:
        size: pixels or voxels along the axes of its `Kind`.
        spacing: distances of pixels in the unit of its kind, or None.
        low, mean, std, high: of the values: gray levels 0 to 255, or HU; of scans the mean and standard deviation are
            those of values cut off at -1000 and 1000 HU.
        channels: 1 (gray) or 3.
        file_type, scanner: by content; empty if unknown.
        verdict: "ok", or what the reader chose or repaired.
        digest: of the content.
        coarse: small picture in gray levels, where position means anatomy, else None.
        detail: of `monai_pipelines.audit.likeness.detail`.
        picture: (h, w) or (h, w, 3) uint8 to look at.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None
    low: float
    mean: float
    std: float
    high: float
    channels: int
    file_type: str
    scanner: str
    verdict: str
    digest: bytes
    coarse: NDArray[np.uint8] | None
    detail: NDArray[np.float16]
    picture: NDArray[np.uint8]


def read_image(item: Mapping[str, Any]) -> Reading:
    """Of a 2D image; equal to the same image saved as gray, if it is gray."""
    image = decode_image(item["image"])
    pixels = image.pixels
    if (pixels[..., 1:] == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    levels = pixels if pixels.dtype == np.uint8 else 255 * pixels
    gray = _gray(levels)
    small = _shrunk(gray, (_SMALL_2D, _SMALL_2D))
    return Reading(
        size=pixels.shape[:2],
        spacing=image.spacing_mm,
        **_values(gray),
        channels=pixels.shape[2],
        file_type=image.file_type,
        scanner=image.scanner,
        verdict="ok",
        digest=digest(pixels),
        coarse=small.astype(np.uint8),
        detail=detail(small),
        picture=_picture(levels),
    )


def read_scan(item: Mapping[str, Any], load: LoadCT) -> Reading:
    """Of a CT; its digest depends neither on the file format nor on the order of axes in the file."""
    volume = load(item["image"])
    affine = volume.affine.numpy()
    orientation = io_orientation(affine)
    hu = apply_orientation(volume[0].numpy(), orientation)
    spacing = voxel_sizes(affine)[np.argsort(orientation[:, 0])]
    gray = np.clip(hu, *_SHOWN_HU).astype(np.float32) - _SHOWN_HU[0]
    gray *= 255 / (_SHOWN_HU[1] - _SHOWN_HU[0])
    small = adaptive_avg_pool3d(torch.from_numpy(gray)[None], _SMALL_3D)[0].numpy()
    cut = np.clip(hu, -1000, 1000)
    return Reading(
        size=hu.shape,
        spacing=tuple(spacing.round(4).tolist()),
        low=float(hu.min()),
        mean=round(float(cut.mean()), 2),
        std=round(float(cut.std()), 2),
        high=float(hu.max()),
        channels=1,
        file_type=_scan_type(as_place(item["image"])),
        scanner=volume.meta["scanner"],
        verdict=volume.meta["verdict"],
        digest=digest(hu),
        coarse=small.astype(np.uint8),
        detail=detail(small),
        picture=_views(gray, spacing),
    )


def read_slide(item: Mapping[str, Any]) -> Reading:
    """Of a slide, from an overview: equal are slides of one size whose overviews are equal."""
    slide = open_slide(item["image"], item.get("mpp"))
    overview, _ = slide.thumbnail(slide.mpp * max(1.0, max(slide.size) / _SLIDE_SIDE))
    gray = _gray(overview)
    return Reading(
        size=slide.size,
        spacing=(slide.mpp, slide.mpp),
        **_values(gray),
        channels=1 if (overview[..., 1:] == overview[..., :1]).all() else 3,
        file_type=slide.vendor,
        scanner="",
        verdict="ok",
        digest=digest(overview) + repr(slide.size).encode(),
        coarse=None,
        detail=detail(_shrunk(gray, (_SMALL_2D, _SMALL_2D))),
        picture=_picture(overview),
    )


def _values(gray: NDArray[np.float32]) -> dict[str, float]:
    found = {"low": gray.min(), "mean": gray.mean(), "std": gray.std(), "high": gray.max()}
    return {name: round(float(value), 2) for name, value in found.items()}


def _gray(levels: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) of (H, W, 1 or 3)."""
    return levels @ np.array(LUMA if levels.shape[2] == 3 else [1], np.float32)


def _shrunk(gray: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BOX))


def _picture(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """A small copy of (H, W, 1 or 3) from 0 to 255."""
    pixels = levels.astype(np.uint8)
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    shown.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(shown)


def _views(gray: NDArray[np.float32], spacing: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The middle axial slice above the middle coronal one, as a radiologist sees them."""
    middle = [size // 2 for size in gray.shape]
    views = (gray[::-1, ::-1, middle[2]].T, 1), (gray[::-1, middle[1], ::-1].T, 2)
    width_mm = gray.shape[0] * spacing[0]
    rows = []
    for view, axis in views:
        height = np.clip(round(_SIDE * gray.shape[axis] * spacing[axis] / width_mm), 1, 2 * _SIDE)
        rows.append(_shrunk(np.ascontiguousarray(view), (_SIDE, int(height))))
    return np.concatenate(rows).astype(np.uint8)


def _scan_type(path: Place) -> str:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return _TYPES.get(suffix, "dicom") if path.is_file() else "dicom"
