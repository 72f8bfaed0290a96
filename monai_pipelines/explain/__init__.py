"""Where a network looked: Grad-CAM, Grad-CAM++ and occlusion in 2D and 3D, attention over slides."""

from monai_pipelines.explain.attention import attention_figure
from monai_pipelines.explain.images import ExplainImages
from monai_pipelines.explain.maps import METHODS, Explanation, explain_class
from monai_pipelines.explain.overlay import overlay_figure
from monai_pipelines.explain.slides import ExplainSlides
from monai_pipelines.explain.stages import stages

__all__ = [
    "METHODS",
    "ExplainImages",
    "ExplainSlides",
    "Explanation",
    "attention_figure",
    "explain_class",
    "overlay_figure",
    "stages",
]
