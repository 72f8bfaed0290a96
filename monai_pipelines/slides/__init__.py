"""Whole slides: open them with their resolution, read tiles by level-0 coordinates."""

from __future__ import annotations

from monai_pipelines.slides.geojson import read_outlines, rectangle, write_features, write_geojson
from monai_pipelines.slides.handles import close_slides
from monai_pipelines.slides.opening import open_slide
from monai_pipelines.slides.slide import Slide, Tiles, TileSize

__all__ = [
    "Slide",
    "TileSize",
    "Tiles",
    "close_slides",
    "open_slide",
    "read_outlines",
    "rectangle",
    "write_features",
    "write_geojson",
]
