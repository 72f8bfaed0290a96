"""One HDF5 file for each slide: features of its tiles, where they lie, and a small picture of the slide."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import numpy as np
from numpy.typing import NDArray

from monai_pipelines.errors import ScanError

DAY_S = 24 * 60 * 60


@dataclass(frozen=True, eq=False)
class FeatureBag:
    """Features of the tiles of one slide; None is what a file of another tool does not tell.

    Attributes:
        features: (N, D) float32.
        coords: (N, 2) int64, x and y of each tile's upper left corner, pixels of level 0.
        level0_px: side of a tile, pixels of level 0.
        tile_px: side of a tile as the backbone saw it, pixels.
        mpp: um per pixel of the tiles.
        slide_mpp: um per pixel of level 0.
        slide_size: width and height of level 0, pixels.
        thumbnail: (h, w, 3) uint8 picture of the slide.
        tissue: (h, w) uint8, 1 on tissue, on the grid of the thumbnail.
        downsample: pixels of level 0 for one of the thumbnail.
        chain_fingerprint, backbone_fingerprint: of what made the features.
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
    chain_fingerprint: str | None = None
    backbone_fingerprint: str | None = None


def read_features(file: str | PathLike[str], pictures: bool = True) -> FeatureBag:
    """Read the features of one slide, as `extract_features` or another tool (CLAM, TRIDENT) wrote them.

    Of other tools' files ``features`` (N, D) or (1, N, D) and ``coords`` are used. The side of their tiles is
    ``patch_size_level0``, or ``patch_size`` times ``downsample``, as attributes of ``coords``; without these the most
    frequent step between neighbours, None where two are as frequent.

    Args:
        file: the HDF5 file.
        pictures: also the thumbnail and the tissue, which take longer than the features.

    Raises:
        ScanError: no such file, unreadable, without features, or features that are NaN or infinite.
    """
    try:
        with h5py.File(file, "r") as opened:
            bag = _read(opened, pictures)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        told = error.args[0] if isinstance(error, KeyError) else error
        reason = f"no file of features that can be read ({told}); delete it to have it made again"
        raise ScanError(file, reason) from error
    if bag.features.ndim != 2 or not bag.features.size:
        raise ScanError(file, f"wanted features (N, D) of one tile or more, got shape {bag.features.shape}")
    if bag.coords is not None and bag.coords.shape != (len(bag.features), 2):
        raise ScanError(file, f"wanted coords ({len(bag.features)}, 2), one of each tile, got {bag.coords.shape}")
    if not np.isfinite(bag.features).all():
        raise ScanError(file, "features are NaN or infinite; delete it and extract them with precision fp32")
    return bag


def _read(opened: h5py.File, pictures: bool) -> FeatureBag:
    features = opened["features"][...].astype(np.float32)
    features = features[0] if features.ndim == 3 and len(features) == 1 else features
    about = opened.attrs
    coords = opened["coords"][...].astype(np.int64) if "coords" in opened else None
    coords = coords[0] if coords is not None and coords.ndim == 3 and len(coords) == 1 else coords
    tissue = opened.get("tissue")
    width, height = about.get("slide_size", (0, 0))
    return FeatureBag(
        features=features,
        coords=coords,
        level0_px=None if coords is None else _level0_px(about, opened["coords"].attrs, coords),
        tile_px=_number(about, "tile_px", int),
        mpp=_number(about, "mpp", float),
        slide_mpp=_number(about, "slide_mpp", float),
        slide_size=(int(width), int(height)) if width else None,
        thumbnail=opened["thumbnail"][...] if pictures and tissue is not None else None,
        tissue=tissue[...] if pictures and tissue is not None else None,
        downsample=None if tissue is None else _number(tissue.attrs, "downsample", float),
        chain_fingerprint=about.get("chain_fingerprint"),
        backbone_fingerprint=about.get("backbone_fingerprint"),
    )


def _number(attributes: Mapping[str, Any], name: str, kind: type) -> Any:
    return kind(attributes[name]) if name in attributes else None


def _level0_px(about: Mapping[str, Any], attributes: Mapping[str, Any], coords: NDArray[np.int64]) -> int | None:
    """Side of a tile at level 0: as the file says, or the step between neighbours."""
    if "tile_px_level0" in about:
        return int(about["tile_px_level0"])
    if "patch_size_level0" in attributes:
        return int(attributes["patch_size_level0"])
    if "patch_size" in attributes and "downsample" in attributes:
        return round(float(attributes["patch_size"]) * float(np.ravel(attributes["downsample"])[0]))
    return _step(coords) if coords.shape[1:] == (2,) else None


def _step(coords: NDArray[np.int64]) -> int | None:
    """The most frequent gap between neighbours in a row or column: each piece of tissue may have a grid of its own."""
    found = []
    for along in (0, 1):
        gaps = np.diff(coords[np.lexsort((coords[:, along], coords[:, 1 - along]))], axis=0)
        found.append(gaps[(gaps[:, 1 - along] == 0) & (gaps[:, along] > 0), along])
    steps, counts = np.unique(np.concatenate(found), return_counts=True)
    frequent = steps[counts == counts.max(initial=0)]
    return int(frequent[0]) if len(frequent) == 1 else None


def look_into(file: Path, num_features: int) -> tuple[dict[str, Any], int] | None:
    """What a file tells about its making, and its number of tiles; None where it must be made (again).

    Args:
        file: the HDF5 file, or none.
        num_features: of the backbone. The features of a file that tells no ``backbone_fingerprint`` are checked: they
            are those of another tool, and never made again.

    Raises:
        ScanError: what lies there is of no use and not ours.
    """
    if file.is_dir():
        raise ScanError(file, "wanted a file of features, got a folder; move it away")
    try:
        with h5py.File(file) as opened:
            about = dict(opened.attrs)
            if "backbone_fingerprint" in about:
                return about, opened["features"].shape[-2]
    except (OSError, KeyError, IndexError, AttributeError):  # not there, or damaged
        return None
    features = read_features(file, pictures=False).features
    if features.shape[1] != num_features:
        raise ScanError(
            file,
            f"wanted {num_features} features of a tile, as the backbone has, got {features.shape[1]}; name the network "
            "that made them, or choose another features_dir",
        )
    return about, len(features)


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A name to write to, of this run alone; in the end ``file`` is the whole new one or untouched."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{uuid4().hex}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def remove_old_parts(folder: Path) -> None:
    """Remove what killed runs left of `written_whole`; parts of the last day may be those of a run beside this one."""
    for part in folder.glob(f"*.{'[0-9a-f]' * 32}.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > DAY_S:
                part.unlink()


def write_features(file: Path, bag: FeatureBag, attributes: Mapping[str, Any], dtype: str = "float32") -> None:
    """Write the features of one slide so that ``file`` is the whole new one or untouched.

    The attributes of ``coords`` are those that tools for such files look for; a tile is told as one of level 0.

    Args:
        file: the HDF5 file.
        bag: with ``coords``, ``level0_px``, ``tile_px``, ``mpp``, ``slide_mpp`` and ``slide_size``.
        attributes: of the file, beside those of the bag: what made it.
        dtype: "float32" or "float16", of the features in the file.

    Raises:
        ValueError: features that are NaN or infinite, or too large for float16.
    """
    with np.errstate(over="ignore"):
        features = bag.features.astype(dtype)
    if not np.isfinite(features).all():
        raise ValueError(
            f"{file}: features are NaN or infinite as {dtype}; extract them as float32 with precision fp32"
        )
    with written_whole(file) as part, h5py.File(part, "w") as out:
        _write(out, bag, features, attributes)


def _write(out: h5py.File, bag: FeatureBag, features: NDArray[np.floating], attributes: Mapping[str, Any]) -> None:
    out.create_dataset("features", data=features)
    coords = out.create_dataset("coords", data=bag.coords)
    if bag.thumbnail is not None and bag.tissue is not None:
        for key, picture in (("thumbnail", bag.thumbnail), ("tissue", bag.tissue)):
            out.create_dataset(key, data=picture, compression="gzip").attrs["downsample"] = bag.downsample
    own = {
        "mpp": bag.mpp,
        "tile_px": bag.tile_px,
        "tile_px_level0": bag.level0_px,
        "slide_mpp": bag.slide_mpp,
        "slide_size": bag.slide_size,
        "chain_fingerprint": bag.chain_fingerprint,
        "backbone_fingerprint": bag.backbone_fingerprint,
    }
    out.attrs.update({key: value for key, value in {**own, **attributes}.items() if value is not None})
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
