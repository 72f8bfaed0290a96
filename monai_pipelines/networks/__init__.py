"""Networks around MONAI's: heads with options, ImageNet weights, tile backbones, attention over bags of tiles, windows
of volumes."""

from monai_pipelines.networks.backbone import GivenFeatures, TileBackbone
from monai_pipelines.networks.checkpointing import checkpointed
from monai_pipelines.networks.classifier import ImageClassifier, last_linear
from monai_pipelines.networks.imagenet import load_imagenet
from monai_pipelines.networks.mil import AttentionMIL
from monai_pipelines.networks.windows import WindowClassifier

__all__ = [
    "AttentionMIL",
    "GivenFeatures",
    "ImageClassifier",
    "TileBackbone",
    "WindowClassifier",
    "checkpointed",
    "last_linear",
    "load_imagenet",
]
