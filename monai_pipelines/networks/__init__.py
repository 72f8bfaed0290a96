"""Networks around MONAI's: heads with options, ImageNet weights."""

from monai_pipelines.networks.classifier import ImageClassifier, last_linear
from monai_pipelines.networks.imagenet import load_imagenet

__all__ = ["ImageClassifier", "last_linear", "load_imagenet"]
