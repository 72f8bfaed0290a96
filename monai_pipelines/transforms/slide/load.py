"""Opening of slides at a known resolution, and reading of their tiles."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from io import BytesIO
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from PIL import Image, ImageCms

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import Remote
from monai_pipelines.slides import Slide, Tiles, open_slide
from monai_pipelines.slides.opening import PLAUSIBLE_MPP, check_mpp
from monai_pipelines.transforms.keyed import EachKeyd


class LoadSlide(Transform):
    """Open a slide without reading pixels; see `monai_pipelines.slides.open_slide`.

    Args:
        slide_mpp: micrometers per pixel of level 0, for slides with missing or wrong resolution; None uses the file's.

    Returns:
        `monai_pipelines.slides.Slide`.

    Raises:
        ScanError: no slide, or unknown resolution; says how to fix it.

    Example:
        >>> import numpy as np, tempfile, tifffile
        >>> path = f"{tempfile.mkdtemp()}/slide.tif"
        >>> tifffile.imwrite(path, np.full((600, 800, 3), 200, np.uint8), tile=(256, 256), photometric="rgb")
        >>> slide = LoadSlide(slide_mpp=0.25)(path)
        >>> slide.size, slide.mpp
        ((800, 600), 0.25)
    """

    def __init__(self, slide_mpp: float | None = None) -> None:
        self.slide_mpp = None if slide_mpp is None else check_mpp(slide_mpp, "LoadSlide: slide_mpp")

    def __call__(self, path: str | PathLike[str] | Remote) -> Slide:
        if not isinstance(path, (str, PathLike, Remote)):
            raise ScanError("slide", f"wanted its path, got {type(path).__name__}; for a tile in an array use image2d")
        return open_slide(path, self.slide_mpp)


class LoadSlided(MapTransform):
    """`LoadSlide` for dictionaries: ``data[mpp_key]``, a number or text, if not empty, overrides ``slide_mpp``."""

    def __init__(
        self,
        keys: KeysCollection,
        slide_mpp: float | None = None,
        mpp_key: str = "mpp",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mpp_key = mpp_key
        self.load = LoadSlide(slide_mpp)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._loader(d[key], d.get(self.mpp_key))(d[key])
        return d

    def _loader(self, path: object, mpp: Any) -> LoadSlide:
        if mpp is None or str(mpp).strip() in ("", "nan"):
            return self.load
        try:
            return LoadSlide(float(mpp))
        except ValueError:
            low, high = PLAUSIBLE_MPP
            raise ScanError(
                path, f"wanted {low:g} to {high:g} um per pixel in {self.mpp_key!r}, got {mpp!r}; correct or clear it"
            ) from None


class ReadTiles(Transform):
    """Read the pixels of tiles into a bag.

    Args:
        color: "none" keeps the scanner's colors; "srgb" converts them to sRGB by the slide's ICC profile, if any
            (perceptual intent).
        num_threads: decoding threads.

    Returns:
        `MetaTensor` (N, 3, tile_px, tile_px) uint8, channels last in memory. ``meta``: ``coords`` (N, 2) int64 numpy,
        (x, y) of the upper left corners in level-0 pixels; ``mpp`` and ``slide_mpp``, micrometers per pixel of the
        tiles and of level 0; ``tile_px``; ``level0_px``, side of a tile in level-0 pixels.

    Raises:
        ScanError: a corrupt file or profile.

    Example:
        >>> import tempfile, tifffile
        >>> from monai_pipelines.slides import open_slide
        >>> path = f"{tempfile.mkdtemp()}/slide.tif"
        >>> tifffile.imwrite(path, np.full((600, 800, 3), 200, np.uint8), tile=(256, 256), photometric="rgb")
        >>> slide = open_slide(path, mpp=0.25)
        >>> bag = ReadTiles()(Tiles(slide, np.array([[0, 0], [256, 64]]), slide.tile_size(256, mpp=0.5)))
        >>> bag.shape, bag.dtype, bag.meta["level0_px"]
        (torch.Size([2, 3, 256, 256]), torch.uint8, 512)
    """

    def __init__(self, color: Literal["none", "srgb"] = "none", num_threads: int = 1) -> None:
        if color not in ("none", "srgb"):
            raise ValueError(f"ReadTiles: color must be 'none' or 'srgb', got {color!r}")
        if num_threads < 1:
            raise ValueError(f"ReadTiles: num_threads must be 1 or more, got {num_threads}")
        self.color, self.num_threads = color, num_threads

    def __call__(self, tiles: Tiles) -> MetaTensor:
        slide, size = tiles.slide, tiles.size
        pixels = slide.read_tiles(tiles.coords, size, self.num_threads)
        if self.color == "srgb" and len(tiles):
            try:
                to_srgb = _to_srgb(profile) if (profile := slide.color_profile) else None
            except (ImageCms.PyCMSError, OSError) as error:
                raise ScanError(
                    slide.path, f"unusable ICC profile ({failure(error)}); read it with color 'none'"
                ) from None
            if to_srgb:
                stacked = Image.fromarray(pixels.reshape(-1, size.tile_px, 3))
                pixels = np.array(ImageCms.applyTransform(stacked, to_srgb)).reshape(pixels.shape)
        meta = {
            "coords": tiles.coords,
            "mpp": size.mpp,
            "slide_mpp": slide.mpp,
            "tile_px": size.tile_px,
            "level0_px": size.level0_px,
        }
        return MetaTensor(torch.from_numpy(pixels).permute(0, 3, 1, 2), meta=meta)


class ReadTilesd(EachKeyd):
    """`ReadTiles` for dictionaries."""

    def __init__(
        self,
        keys: KeysCollection,
        color: Literal["none", "srgb"] = "none",
        num_threads: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, ReadTiles(color, num_threads), allow_missing_keys)


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), "RGB", "RGB"
    )
