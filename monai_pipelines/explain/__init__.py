"""Where a network looked: Grad-CAM, Grad-CAM++ and occlusion in 2D and 3D, attention over slides."""

from monai_pipelines.explain.attention import attention_figure, tiles_figure
from monai_pipelines.explain.images import ExplainImages
from monai_pipelines.explain.maps import METHODS, Explanation, explain_class, explained_classes
from monai_pipelines.explain.overlay import overlay_figure
from monai_pipelines.explain.slides import ExplainSlides
from monai_pipelines.explain.stages import Stage, default_stage, stages

__all__ = [
    "METHODS",
    "ExplainImages",
    "ExplainSlides",
    "Explanation",
    "Stage",
    "attention_figure",
    "default_stage",
    "explain_class",
    "explained_classes",
    "overlay_figure",
    "stages",
    "tiles_figure",
]
