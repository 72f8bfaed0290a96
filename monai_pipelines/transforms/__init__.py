"""Transform steps, array and dictionary (``d``), to be named in chains or used alone."""

from monai_pipelines.transforms.intensity3d import (
    RandBrightness3D,
    RandBrightness3Dd,
    RandContrast3D,
    RandContrast3Dd,
    RandNoise3D,
    RandNoise3Dd,
)
from monai_pipelines.transforms.load_ct import LoadCT, LoadCTd
from monai_pipelines.transforms.lungs import SegmentLungs, SegmentLungsd
from monai_pipelines.transforms.mask_lungs import LungHistogram, LungHistogramd, MaskLungs, MaskLungsd
from monai_pipelines.transforms.resample_ct import ResampleCT, ResampleCTd
from monai_pipelines.transforms.spatial3d import RandSpatial3D, RandSpatial3Dd
from monai_pipelines.transforms.window import WindowHU, WindowHUd

__all__ = [
    "LoadCT",
    "LoadCTd",
    "LungHistogram",
    "LungHistogramd",
    "MaskLungs",
    "MaskLungsd",
    "RandBrightness3D",
    "RandBrightness3Dd",
    "RandContrast3D",
    "RandContrast3Dd",
    "RandNoise3D",
    "RandNoise3Dd",
    "RandSpatial3D",
    "RandSpatial3Dd",
    "ResampleCT",
    "ResampleCTd",
    "SegmentLungs",
    "SegmentLungsd",
    "WindowHU",
    "WindowHUd",
]
