"""Features of the tiles of slides by a frozen network, their files, and bags for multiple-instance learning."""

from monai_pipelines.features.bags import FeatureBags, FeatureSplits, PrepareBags, pad_bags
from monai_pipelines.features.extraction import extract_features
from monai_pipelines.features.files import FeatureBag, read_features, write_features
from monai_pipelines.features.tile_bags import TileBags, TileSplits

__all__ = [
    "FeatureBag",
    "FeatureBags",
    "FeatureSplits",
    "PrepareBags",
    "TileBags",
    "TileSplits",
    "extract_features",
    "pad_bags",
    "read_features",
    "write_features",
]
