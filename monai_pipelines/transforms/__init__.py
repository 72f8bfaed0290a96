"""Transform steps, array and dictionary (``d``), to be named in chains or used alone."""

from monai_pipelines.transforms.color2d import RandColor2D, RandColor2Dd
from monai_pipelines.transforms.intensity3d import (
    RandBrightness3D,
    RandBrightness3Dd,
    RandContrast3D,
    RandContrast3Dd,
    RandNoise3D,
    RandNoise3Dd,
)
from monai_pipelines.transforms.load2d import LoadImage2D, LoadImage2Dd, LoadXray, LoadXrayd
from monai_pipelines.transforms.load_ct import LoadCT, LoadCTd
from monai_pipelines.transforms.lungs import SegmentLungs, SegmentLungsd
from monai_pipelines.transforms.mask_lungs import LungHistogram, LungHistogramd, MaskLungs, MaskLungsd
from monai_pipelines.transforms.measure2d import MeasureImage, MeasureImaged
from monai_pipelines.transforms.normalize import NormalizeImage, NormalizeImaged
from monai_pipelines.transforms.resample_ct import ResampleCT, ResampleCTd
from monai_pipelines.transforms.resize2d import ResizeImage, ResizeImaged
from monai_pipelines.transforms.retina import CropRetina, CropRetinad
from monai_pipelines.transforms.spatial2d import RandSpatial2D, RandSpatial2Dd
from monai_pipelines.transforms.spatial3d import RandSpatial3D, RandSpatial3Dd
from monai_pipelines.transforms.stain import NormalizeStain, NormalizeStaind, RandStain, RandStaind
from monai_pipelines.transforms.window import WindowHU, WindowHUd

__all__ = [
    "CropRetina",
    "CropRetinad",
    "LoadCT",
    "LoadCTd",
    "LoadImage2D",
    "LoadImage2Dd",
    "LoadXray",
    "LoadXrayd",
    "LungHistogram",
    "LungHistogramd",
    "MaskLungs",
    "MaskLungsd",
    "MeasureImage",
    "MeasureImaged",
    "NormalizeImage",
    "NormalizeImaged",
    "NormalizeStain",
    "NormalizeStaind",
    "RandBrightness3D",
    "RandBrightness3Dd",
    "RandColor2D",
    "RandColor2Dd",
    "RandContrast3D",
    "RandContrast3Dd",
    "RandNoise3D",
    "RandNoise3Dd",
    "RandSpatial2D",
    "RandSpatial2Dd",
    "RandSpatial3D",
    "RandSpatial3Dd",
    "RandStain",
    "RandStaind",
    "ResampleCT",
    "ResampleCTd",
    "ResizeImage",
    "ResizeImaged",
    "SegmentLungs",
    "SegmentLungsd",
    "WindowHU",
    "WindowHUd",
]
