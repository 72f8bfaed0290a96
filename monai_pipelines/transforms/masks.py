"""Masks of an image, from a file or an array, placed on the grid that a chain has made of the image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, convert_to_tensor, ensure_tuple
from numpy.typing import NDArray
from PIL import Image, ImageOps

from monai_pipelines.errors import ScanError
from monai_pipelines.remote import Remote, ScratchError, Source, local
from monai_pipelines.transforms.ct.load import LoadCT
from monai_pipelines.transforms.inverse import FixedSpatial, resample_axes


class PlaceMask(FixedSpatial):
    """Place a mask of a scan or image on the grid that other steps have made of it, by the nearest neighbor.

    A 3D mask with an affine (NIfTI, NRRD, MetaImage, `MetaTensor`) is placed by it, on whatever grid it is; its axes
    must be those of the scan, in any order and direction. Every other mask has the rows and columns, or voxels, of the
    image as it was before this package's steps moved it.

    Args:
        img: (C, H, W) or (C, X, Y, Z), with its affine and trace.
        mask: path, array or tensor (C, ...). A picture has one channel; the indices of a palette are its values.

    Returns:
        `MetaTensor` (C, *size), with the image's size and affine and the mask's dtype and values (a CT file's int16);
        0 where the mask does not reach.

    Raises:
        ScanError: an unreadable file, or colors.
        ValueError: a mask of another size, or with rotated axes.

    Example:
        >>> from monai_pipelines.transforms import ResizeImage
        >>> image = ResizeImage((2, 2), fit="crop")(torch.rand(3, 4, 8))
        >>> PlaceMask()(image, np.arange(32).reshape(1, 4, 8))[0].tolist()
        [[11, 13], [27, 29]]
    """

    def __call__(self, img: NdarrayOrTensor, mask: NdarrayOrTensor | str | PathLike[str]) -> MetaTensor:  # type: ignore[override]
        image: Any = convert_to_tensor(img, track_meta=True)
        dims = image.ndim - 1
        if isinstance(mask, (str, PathLike, Remote)):
            mask = LoadCT()(mask) if dims == 3 else _read_picture(mask)[None]
        given: Any = convert_to_tensor(mask, track_meta=True)
        if dims == 2 or not isinstance(mask, MetaTensor):
            size, affine = _source_grid(image)
            if tuple(given.shape[1:]) != size or given.ndim != dims + 1:
                raise ValueError(
                    f"PlaceMask: wanted a mask of the size of its image, (C, {', '.join(map(str, size))}), got "
                    f"{tuple(given.shape)}" + ("" if dims == 2 else "; one with an affine may have any grid")
                )
            given = MetaTensor(given.as_tensor(), affine=affine)
        to_mask = torch.linalg.inv(given.affine.double()) @ image.affine.cpu().double()
        placed = resample_axes(given.as_tensor(), to_mask, image.shape[1:], nearest=True)
        return self._traced(MetaTensor(placed, affine=image.affine.double()), given)


class PlaceMaskd(MapTransform, InvertibleTransform):
    """`PlaceMask` for dictionaries: the masks at ``mask_keys``, where an item has them.

    Args:
        keys: one key, the image.
        mask_keys: its masks.
        allow_missing_keys: whether the image may be missing.
    """

    def __init__(
        self, keys: KeysCollection, mask_keys: KeysCollection = "mask", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"PlaceMaskd: wanted one key, as masks belong to one image, got {list(self.keys)}")
        self.mask_keys, self.step = ensure_tuple(mask_keys), PlaceMask()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d |= {mask: self.step(d[key], d[mask]) for mask in self.mask_keys if mask in d}
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{mask: self.step.inverse(data[mask]) for mask in self.mask_keys if mask in data}}


def _source_grid(image: MetaTensor) -> tuple[tuple[int, ...], torch.Tensor]:
    """Size and affine that an image had before this package's steps moved it."""
    for operation in image.applied_operations:
        if "affine" in operation.get(TraceKeys.EXTRA_INFO, {}):
            return tuple(operation[TraceKeys.ORIG_SIZE]), torch.as_tensor(operation[TraceKeys.EXTRA_INFO]["affine"])
    return tuple(image.shape[1:]), image.affine


def _read_picture(path: Source) -> NDArray[Any]:
    """Classes of the pixels (H, W) of a picture, upright."""
    try:
        with local(path) as file, Image.open(file) as picture:
            values = np.array(ImageOps.exif_transpose(picture))
    except (ScanError, ImportError, ScratchError):
        raise
    except Exception as error:
        raise ScanError(path, f"unreadable mask ({type(error).__name__}); save it as PNG") from None
    if values.ndim == 3 and (values[..., :1] == values[..., :3]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise ScanError(path, f"wanted a mask of one channel, got {values.shape[2]}; save the classes as gray values")
    return values.astype(np.uint8) if values.dtype == bool else values
