"""Loading of 2D images: photographs and tiles in 8 bits, X-rays at full depth."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray

from monai_pipelines.errors import ScanError
from monai_pipelines.remote import Remote
from monai_pipelines.transforms.image2d.decode import DecodedImage, decode_image, with_channels
from monai_pipelines.transforms.keyed import EachKeyd


class LoadImage2D(Transform):
    """Read a photograph or tile from a file of any type, in 8 bits; see `decode_image`.

    Deeper files (16-bit PNG and TIFF, DICOM) are rounded to 8 bits, ``round(255 * x)``, so that a mixed folder has one
    dtype. `LoadXray` keeps the depth.

    An image (C, H, W) that is loaded already, uint8 or in [0, 1], gray or RGB, is taken, too.

    Differs from `monai.transforms.LoadImage`: rows come first; EXIF orientation, CMYK, palettes, transparency and
    DICOM's photometric interpretation are respected; a truncated JPEG is an error.

    Args:
        channels: 3 for RGB (gray is repeated), 1 for gray (the luma of colors, ITU-R BT.601).

    Returns:
        `MetaTensor` (channels, H, W) uint8; ``affine`` maps row and column to mm if a DICOM file has the spacing, else
        it is the identity; ``meta["original_affine"]`` keeps this one; ``meta["file_type"]`` is png, jpeg, tiff, dicom,
        bmp or other.

    Raises:
        ScanError: an unreadable file, or an array of another shape or dtype; says how to fix it.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> image = LoadImage2D(channels=3)(get_testdata_file("examples_palette.dcm"))
        >>> image.shape, image.dtype, image.meta["file_type"]
        (torch.Size([3, 350, 800]), torch.uint8, 'dicom')
    """

    def __init__(self, channels: Literal[1, 3] = 3) -> None:
        if channels not in (1, 3):
            raise ValueError(f"LoadImage2D: channels must be 1 (gray) or 3 (RGB), got {channels!r}")
        self.channels: Literal[1, 3] = channels

    def __call__(self, path: str | PathLike[str] | Remote | NdarrayOrTensor) -> MetaTensor:
        decoded = _decoded(path, self.channels)
        pixels = decoded.pixels
        return _tensor(pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8), decoded, path)


class LoadXray(Transform):
    """Read an X-ray from a file of any type as a viewer shows it; see `decode_image`.

    DICOM: modality LUT, VOI LUT or window, MONOCHROME1 inverted. 8-bit files become ``x / 255``, so that a mixed
    folder has one dtype. An image (C, H, W) that is loaded already, uint8 or in [0, 1], gray or RGB, is taken, too.

    Returns:
        `MetaTensor` (1, H, W) float32 in [0, 1], bone bright; ``affine`` and ``meta`` as from `LoadImage2D`.

    Raises:
        ScanError: an unreadable file, or an array of another shape or dtype; says how to fix it.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> image = LoadXray()(get_testdata_file("JPGExtended.dcm"))
        >>> image.shape, image.dtype, image.pixdim.tolist()
        (torch.Size([1, 1024, 256]), torch.float32, [2.26, 2.26])

    Reference: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT).
    """

    def __call__(self, path: str | PathLike[str] | Remote | NdarrayOrTensor) -> MetaTensor:
        decoded = _decoded(path, 1)
        pixels = decoded.pixels
        return _tensor(pixels if pixels.dtype == np.float32 else pixels / np.float32(255), decoded, path)


class LoadImage2Dd(EachKeyd):
    """`LoadImage2D` for dictionaries: each of ``keys`` holds a path or an image."""

    def __init__(self, keys: KeysCollection, channels: Literal[1, 3] = 3, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, LoadImage2D(channels), allow_missing_keys)


class LoadXrayd(EachKeyd):
    """`LoadXray` for dictionaries: each of ``keys`` holds a path or an image."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, LoadXray(), allow_missing_keys)


def _decoded(image: str | PathLike[str] | Remote | NdarrayOrTensor, channels: Literal[1, 3]) -> DecodedImage:
    """A file, or an image (C, H, W) that is loaded already."""
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        return decode_image(image, channels)
    values = torch.as_tensor(image).as_subclass(torch.Tensor).detach().cpu()
    if values.ndim != 3 or len(values) not in (1, 3) or not values.numel():
        way_out = "; channels come first: image.transpose(2, 0, 1)" if values.shape[2:] in ((1,), (3,)) else ""
        raise ScanError("image", f"wanted (1 or 3, H, W), gray or RGB, got shape {tuple(values.shape)}{way_out}")
    low, high = (float(v) for v in torch.aminmax(values))
    if values.dtype != torch.uint8 and not (values.is_floating_point() and low >= 0 and high <= 1):
        got = f"{values.dtype}, {low:g} to {high:g}"
        raise ScanError("image", f"wanted uint8, or floating point in [0, 1], got {got}; scale it first")
    pixels = (values if values.dtype == torch.uint8 else values.float()).permute(1, 2, 0).contiguous().numpy()
    return DecodedImage(with_channels(pixels, channels), "other")


def _tensor(pixels: NDArray[Any], decoded: DecodedImage, image: Any) -> MetaTensor:
    values = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    affine = torch.diag(torch.tensor([*(decoded.spacing_mm or (1, 1)), 1, 1], dtype=torch.float64))
    out = MetaTensor(values, affine=affine, meta={"file_type": decoded.file_type})
    if isinstance(image, MetaTensor):
        out.meta |= image.meta
        out.applied_operations = list(image.applied_operations)
    out.meta["original_affine"] = out.affine.clone()
    return out
