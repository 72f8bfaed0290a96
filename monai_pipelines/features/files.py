"""One HDF5 file per slide: features and positions of its tiles, and a thumbnail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_pipelines.errors import ScanError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import MissingError, Place, ScratchError, Source, local, whole_write

if TYPE_CHECKING:
    import h5py


@dataclass(frozen=True, eq=False)
class FeatureBag:
    """Features of the tiles of one slide; files of other tools leave fields None.

    Attributes:
        features: (N, D) float32.
        coords: (N, 2) int64, x and y of each tile's upper left corner, pixels of level 0.
        level0_px: side of a tile, pixels of level 0.
        tile_px: side of a tile as the backbone's input, pixels.
        mpp: um per pixel of the tiles.
        slide_mpp: um per pixel of level 0.
        slide_size: width and height of level 0, pixels.
        thumbnail: (h, w, 3) uint8.
        tissue: (h, w) uint8, 1 on tissue, on the grid of the thumbnail.
        downsample: pixels of level 0 per pixel of the thumbnail.
    """

    features: NDArray[np.float32]
    coords: NDArray[np.int64] | None = None
    level0_px: int | None = None
    tile_px: int | None = None
    mpp: float | None = None
    slide_mpp: float | None = None
    slide_size: tuple[int, int] | None = None
    thumbnail: NDArray[np.uint8] | None = None
    tissue: NDArray[np.uint8] | None = None
    downsample: float | None = None


def read_features(file: Source, pictures: bool = True) -> FeatureBag:
    """Read the features of one slide written by `extract_features` or another tool (CLAM, TRIDENT).

    Of other tools' files ``features`` (N, D) or (1, N, D) and ``coords`` are used. The side of their tiles is the
    attribute ``patch_size_level0``, or ``patch_size`` times ``downsample``, of ``coords``; without these the most
    frequent step between neighbors, None for a tie.

    Args:
        file: the HDF5 file, or its URL.
        pictures: also read thumbnail and tissue, which takes longer than the features.

    Raises:
        ScanError: no such file, unreadable, without features, or features that are NaN or infinite.
    """
    import h5py

    try:
        with local(file) as path, h5py.File(path, "r") as opened:
            bag = _read(opened, pictures)
    except (ImportError, ScanError, ScratchError):
        raise
    except Exception as error:  # h5py's depend on what is damaged
        raise ScanError(
            file, f"not a readable file of features ({failure(error)}); delete it to make it again"
        ) from None
    if bag.features.ndim != 2 or not bag.features.size:
        raise ScanError(file, f"wanted features (N, D) of one tile or more, got shape {bag.features.shape}")
    if bag.coords is not None and bag.coords.shape != (len(bag.features), 2):
        raise ScanError(file, f"wanted coords ({len(bag.features)}, 2), one per tile, got {bag.coords.shape}")
    if not np.isfinite(bag.features).all():
        raise ScanError(file, "features are NaN or infinite; delete it and extract them with precision fp32")
    return bag


def _read(opened: h5py.File, pictures: bool) -> FeatureBag:
    features = _squeezed(opened["features"][...].astype(np.float32))
    coords = _squeezed(opened["coords"][...]) if "coords" in opened else None
    if coords is not None and not np.isfinite(coords).all():
        raise ValueError("coords are NaN or infinite")
    coords = None if coords is None else coords.astype(np.int64)
    attributes = opened.attrs
    tissue = opened.get("tissue")
    width, height = attributes.get("slide_size", (0, 0))
    return FeatureBag(
        features=features,
        coords=coords,
        level0_px=None if coords is None else _level0_px(attributes, opened["coords"].attrs, coords),
        tile_px=_number(attributes, "tile_px", int),
        mpp=_number(attributes, "mpp", float),
        slide_mpp=_number(attributes, "slide_mpp", float),
        slide_size=(int(width), int(height)) if width else None,
        thumbnail=None if tissue is None or not pictures else opened["thumbnail"][...],
        tissue=None if tissue is None or not pictures else tissue[...],
        downsample=None if tissue is None else _number(tissue.attrs, "downsample", float),
    )


def _squeezed(array: NDArray[Any]) -> NDArray[Any]:
    """(1, N, D) as (N, D)."""
    return array[0] if array.ndim == 3 and len(array) == 1 else array


def _number(attributes: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in attributes:
        return None
    number = kind(attributes[name])
    if not 0 < number < inf:
        raise ValueError(f"{name} is {number}")
    return number


def _level0_px(of_file: Mapping[str, Any], of_coords: Mapping[str, Any], coords: NDArray[np.int64]) -> int | None:
    """Side of a tile at level 0 according to the attributes, or the step between neighbors."""
    if "tile_px_level0" in of_file:
        return int(of_file["tile_px_level0"])
    if "patch_size_level0" in of_coords:
        return int(of_coords["patch_size_level0"])
    if "patch_size" in of_coords and "downsample" in of_coords:
        return round(float(of_coords["patch_size"]) * float(np.ravel(of_coords["downsample"])[0]))
    return _step(coords) if coords.shape[1:] == (2,) else None


def _step(coords: NDArray[np.int64]) -> int | None:
    """The most frequent gap between neighbors in a row or column: each piece of tissue may have a different grid."""
    steps_along = []
    for along in (0, 1):
        gaps = np.diff(coords[np.lexsort((coords[:, along], coords[:, 1 - along]))], axis=0)
        steps_along.append(gaps[(gaps[:, 1 - along] == 0) & (gaps[:, along] > 0), along])
    steps, counts = np.unique(np.concatenate(steps_along), return_counts=True)
    frequent = steps[counts == counts.max(initial=0)]
    return int(frequent[0]) if len(frequent) == 1 else None


def read_origin(file: Place, num_features: int) -> tuple[dict[str, str], int] | None:
    """The attributes of a file as text, and its number of tiles; None if it must be made (again).

    Args:
        file: the HDF5 file, which may be missing or damaged: all of it is read.
        num_features: of the backbone. A file without ``backbone_fingerprint`` belongs to another tool: it is never made
            again.

    Raises:
        ScanError: a file of another tool, or a folder, that cannot be used.
    """
    if file.is_dir():
        raise ScanError(file, "wanted a file of features, got a folder; move it away")
    import h5py

    try:
        with local(file) as path, h5py.File(path) as opened:
            attributes = {key: str(value) for key, value in opened.attrs.items()}
    except MissingError:
        return None
    except (ScanError, ScratchError):  # what is there may be whole
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError):  # missing or damaged
        return None
    is_ours = "backbone_fingerprint" in attributes
    try:
        bag = read_features(file, pictures=is_ours)
    except ScanError:
        if is_ours:
            return None
        raise
    fits = bag.features.shape[1] == num_features
    if is_ours:
        return (attributes, len(bag.features)) if fits and bag.coords is not None else None
    if fits:
        return attributes, len(bag.features)
    raise ScanError(
        file,
        f"wanted {num_features} features per tile, as the backbone has, got {bag.features.shape[1]}; use the network "
        "that made them, or another features_dir",
    )


def write_features(file: Place, bag: FeatureBag, attributes: Mapping[str, Any], dtype: str = "float32") -> None:
    """Write the features of one slide in one step (`whole_write`), with checksums.

    The attributes of ``coords`` are those that other tools expect; they describe tiles of level 0.

    Args:
        file: the HDF5 file.
        bag: with ``coords``, ``level0_px``, ``tile_px``, ``mpp``, ``slide_mpp`` and ``slide_size``.
        attributes: further ones of the file: what made it.
        dtype: "float32" or "float16", of the features in the file.

    Raises:
        ValueError: features that are NaN or infinite, or too large for float16.
    """
    import h5py

    with np.errstate(over="ignore"):
        features = bag.features.astype(dtype)
    if not np.isfinite(features).all():
        raise ValueError(
            f"{file}: features are NaN or infinite as {dtype}; extract them as float32 with precision fp32"
        )
    with whole_write(file) as part, h5py.File(part, "w") as out:
        _write(out, bag, features, attributes)


def _write(out: h5py.File, bag: FeatureBag, features: NDArray[np.floating], attributes: Mapping[str, Any]) -> None:
    out.create_dataset("features", data=features, fletcher32=True)
    coords = out.create_dataset("coords", data=bag.coords, fletcher32=True)
    if bag.thumbnail is not None and bag.tissue is not None:
        for key, picture in (("thumbnail", bag.thumbnail), ("tissue", bag.tissue)):
            out.create_dataset(key, data=picture, compression="gzip", fletcher32=True).attrs["downsample"] = (
                bag.downsample
            )
    keys = ("mpp", "tile_px", "slide_mpp", "slide_size")
    described = {"tile_px_level0": bag.level0_px, **{key: getattr(bag, key) for key in keys}, **attributes}
    out.attrs.update({key: value for key, value in described.items() if value is not None})
    coords.attrs.update(
        {
            "name": "",  # CLAM prints it; the name of a slide may be that of a patient
            "patch_size": bag.level0_px,
            "patch_level": 0,
            "patch_size_level0": bag.level0_px,
            "downsample": np.ones(2),
            "level_dim": bag.slide_size,
            "downsampled_level_dim": bag.slide_size,
        }
    )
