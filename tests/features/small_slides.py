"""Slides of a few tiles and a backbone of a few weights, for the tests of features and bags."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import nn

from monai_pipelines import Chain, load_chain
from monai_pipelines.features import extract_features
from monai_pipelines.networks import TileBackbone
from monai_pipelines.slides import close_slides
from tests.slides.slide_files import write_slide

TILE_PX, NUM_TILES, NUM_FEATURES = 32, 24, 4  # tissue covers 4 x 6 tiles


def small_slide(path: Path, seed: int = 0, mpp: float = 0.5) -> Path:
    """256 x 192 pixels at 0.5 um: pink tissue of 192 x 128 with a white border, in JPEG tiles of 64."""
    rng = np.random.default_rng(seed)
    picture = np.full((192, 256, 3), 245, dtype=np.uint8)
    shade = rng.integers(0, 40, (4, 6, 1)).repeat(32, 0).repeat(32, 1)
    picture[32:160, 32:224] = np.array([200, 110, 180]) - shade
    path.parent.mkdir(parents=True, exist_ok=True)
    close_slides()  # one of this name may be open
    return write_slide(path, [picture], mpp=mpp, subsampling="444")


def small_chain(**knobs: Any) -> Chain:
    small = {"mask_mpp": 2, "min_tissue_mm2": 0, "max_hole_mm2": 0, "inks": [], "tile_px": TILE_PX}
    return load_chain("slide_tiles", **{**small, **knobs})


def small_backbone(seed: int = 0) -> TileBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, NUM_FEATURES, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return TileBackbone(network, name="small", tile_px=TILE_PX)


def datalist(folder: Path, num: int, **more: Any) -> list[dict[str, Any]]:
    """Slides of different content."""
    names = [f"s{i}.tif" for i in range(num)]
    return [{"image": str(small_slide(folder / n, i)), "name": n, **more} for i, n in enumerate(names)]


def extract(items: list[dict[str, Any]], folder: Path, **options: Any) -> list[str]:
    """Status of each slide."""
    options = {"chain": small_chain(), "backbone": small_backbone(), "precision": "fp32", **options}
    return [row["status"] for row in extract_features(items, folder, **options)]


def listed(folder: Path) -> list[dict[str, str]]:
    """The rows of features.csv."""
    with (folder / "features.csv").open() as file:
        return list(csv.DictReader(file))


def spoil(kind: str, path: Path) -> None:
    """Make a slide unusable."""
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("image,label\n")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "no tissue":
        tifffile.imwrite(path, np.full((192, 256, 3), 245, np.uint8), resolution=(20000, 20000), resolutionunit=3)
    elif kind == "mpp of 1e-4":
        small_slide(path, mpp=1e-4)
    elif kind == "smaller than a tile":
        tifffile.imwrite(path, np.full((20, 20, 3), 150, np.uint8), resolution=(20000, 20000), resolutionunit=3)
    else:  # the pixels of a tile in the middle
        with tifffile.TiffFile(path) as file:
            offset, size = file.pages[0].dataoffsets[6], file.pages[0].databytecounts[6]
        content = bytearray(path.read_bytes())
        content[offset : offset + size] = b"\0" * size
        path.write_bytes(content)


def file_times(folder: Path) -> dict[str, int]:
    """Time of each file of features."""
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.h5")}


def names(folder: Path) -> set[str]:
    """Files in a folder, except the record of the run."""
    return {file.name for file in folder.iterdir() if not file.name.startswith("progress-")}
