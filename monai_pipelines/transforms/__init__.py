"""Transform steps for arrays and dictionaries (``d``), for use in chains or alone."""

from monai_pipelines.transforms.boxes import PlaceBoxes, PlaceBoxesd
from monai_pipelines.transforms.crop_lesion import RandCropLesion, RandCropLesiond
from monai_pipelines.transforms.ct.intensity import (
    RandBrightness3D,
    RandBrightness3Dd,
    RandContrast3D,
    RandContrast3Dd,
    RandNoise3D,
    RandNoise3Dd,
)
from monai_pipelines.transforms.ct.load import LoadCT, LoadCTd
from monai_pipelines.transforms.ct.lungs import SegmentLungs, SegmentLungsd
from monai_pipelines.transforms.ct.mask_lungs import MaskLungs, MaskLungsd, RefineLungs, RefineLungsd
from monai_pipelines.transforms.ct.measure import LungHistogram, LungHistogramd
from monai_pipelines.transforms.ct.resample import ResampleCT, ResampleCTd
from monai_pipelines.transforms.ct.spatial import RandSpatial3D, RandSpatial3Dd
from monai_pipelines.transforms.ct.window import WindowHU, WindowHUd
from monai_pipelines.transforms.image2d.color import RandColor2D, RandColor2Dd
from monai_pipelines.transforms.image2d.load import LoadImage2D, LoadImage2Dd, LoadXray, LoadXrayd
from monai_pipelines.transforms.image2d.measure import MeasureImage, MeasureImaged
from monai_pipelines.transforms.image2d.normalize import NormalizeImage, NormalizeImaged
from monai_pipelines.transforms.image2d.resize import ResizeImage, ResizeImaged
from monai_pipelines.transforms.image2d.retina import CropRetina, CropRetinad
from monai_pipelines.transforms.image2d.spatial import RandSpatial2D, RandSpatial2Dd
from monai_pipelines.transforms.image2d.stain import NormalizeStain, NormalizeStaind, RandStain, RandStaind
from monai_pipelines.transforms.masks import PlaceMask, PlaceMaskd
from monai_pipelines.transforms.slide.load import LoadSlide, LoadSlided, ReadTiles, ReadTilesd
from monai_pipelines.transforms.slide.tiles import RandSampleTiles, RandSampleTilesd, TileSlide, TileSlided
from monai_pipelines.transforms.slide.tissue import SegmentTissue, SegmentTissued

__all__ = [
    "CropRetina",
    "CropRetinad",
    "LoadCT",
    "LoadCTd",
    "LoadImage2D",
    "LoadImage2Dd",
    "LoadSlide",
    "LoadSlided",
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
    "PlaceBoxes",
    "PlaceBoxesd",
    "PlaceMask",
    "PlaceMaskd",
    "RandBrightness3D",
    "RandBrightness3Dd",
    "RandColor2D",
    "RandColor2Dd",
    "RandContrast3D",
    "RandContrast3Dd",
    "RandCropLesion",
    "RandCropLesiond",
    "RandNoise3D",
    "RandNoise3Dd",
    "RandSampleTiles",
    "RandSampleTilesd",
    "RandSpatial2D",
    "RandSpatial2Dd",
    "RandSpatial3D",
    "RandSpatial3Dd",
    "RandStain",
    "RandStaind",
    "ReadTiles",
    "ReadTilesd",
    "RefineLungs",
    "RefineLungsd",
    "ResampleCT",
    "ResampleCTd",
    "ResizeImage",
    "ResizeImaged",
    "SegmentLungs",
    "SegmentLungsd",
    "SegmentTissue",
    "SegmentTissued",
    "TileSlide",
    "TileSlided",
    "WindowHU",
    "WindowHUd",
]
