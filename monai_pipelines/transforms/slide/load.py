"""Opening of slides at a known resolution."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from os import PathLike
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

from monai_pipelines.errors import ScanError
from monai_pipelines.slides import Slide, open_slide
from monai_pipelines.slides.resolution import PLAUSIBLE_MPP


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
        low, high = PLAUSIBLE_MPP
        if slide_mpp is not None and not low <= slide_mpp <= high:
            raise ValueError(f"LoadSlide: slide_mpp must lie in {low:g}..{high:g} um per pixel, got {slide_mpp}")
        self.slide_mpp = slide_mpp

    def __call__(self, path: str | PathLike[str]) -> Slide:
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

    def _loader(self, path: str | PathLike[str], mpp: Any) -> LoadSlide:
        if mpp is None or str(mpp).strip() in ("", "nan"):
            return self.load
        try:
            return LoadSlide(float(mpp))
        except ValueError:
            low, high = PLAUSIBLE_MPP
            raise ScanError(
                path, f"wanted {low:g} to {high:g} um per pixel in {self.mpp_key!r}, got {mpp!r}; correct or clear it"
            ) from None
