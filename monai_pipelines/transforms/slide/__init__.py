"""Steps for slides."""

from __future__ import annotations

from monai_pipelines.transforms.slide.load import LoadSlide, LoadSlided, ReadTiles, ReadTilesd
from monai_pipelines.transforms.slide.tiles import RandSampleTiles, RandSampleTilesd, TileSlide, TileSlided
from monai_pipelines.transforms.slide.tissue import SegmentTissue, SegmentTissued

__all__ = [
    "LoadSlide",
    "LoadSlided",
    "RandSampleTiles",
    "RandSampleTilesd",
    "ReadTiles",
    "ReadTilesd",
    "SegmentTissue",
    "SegmentTissued",
    "TileSlide",
    "TileSlided",
]
