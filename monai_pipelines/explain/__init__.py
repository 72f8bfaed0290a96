"""Where a network looked: Grad-CAM, Grad-CAM++ and occlusion in 2D and 3D."""

from monai_pipelines.explain.maps import METHODS, Explanation, explain_class, explained_classes
from monai_pipelines.explain.stages import Stage, default_stage, stages

__all__ = ["METHODS", "Explanation", "Stage", "default_stage", "explain_class", "explained_classes", "stages"]
