"""How to test each public transform step: the rows of test_contract.py, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_pipelines import transforms
from monai_pipelines.slides import open_slide
from monai_pipelines.transforms.boxes import BOX_AFFINE, BOX_KEYS
from tests.dicom_files import write_image
from tests.transforms.slide.slide_files import disc, stained, write_slide

SHAPE = (48, 60, 40)
TURN = Rotation.from_euler("xyz", [5, -8, 10], degrees=True).as_matrix()
AFFINE = nib.affines.from_matvec((TURN * [-6, 6, -6])[:, [2, 0, 1]], [100, 150, -30])  # oblique, flipped, permuted
BLOB_MM = nib.affines.apply_affine(AFFINE, [25.2, 43.3, 19.6])

SHAPE_2D = (60, 80)
AFFINE_2D = nib.affines.from_matvec(np.diag([0.5, 0.4, 1]))
BLOB_2D_MM = nib.affines.apply_affine(AFFINE_2D, [22.3, 47.6, 0])

Item = dict[str, Any]


def chest() -> MetaTensor:
    """Two lungs of about 1.4 l in a body, with a bright ball in one of them, HU."""
    z, x, y = np.indices(SHAPE) * 6.0
    hu = np.where(((y - 117) / 110) ** 2 + ((x - 177) / 150) ** 2 < 1, 40, -1000)
    for center in (112, 242):
        hu[((x - center) / 50) ** 2 + ((y - 117) / 70) ** 2 + ((z - 141) / 100) ** 2 < 1] = -850
    from_blob = nib.affines.apply_affine(AFFINE, np.stack(np.indices(SHAPE), -1)) - BLOB_MM
    hu = np.maximum(hu, 3000 * np.exp(-((from_blob / 12) ** 2).sum(axis=-1) / 2) - 1000)
    affine = torch.from_numpy(AFFINE)
    return MetaTensor(torch.from_numpy(hu.astype(np.int16))[None], affine=affine, meta={"filename_or_obj": "chest.nii"})


def ct(folder: Path) -> Item:
    return {"image": chest()}


def ct_with_boxes(folder: Path) -> Item:
    boxes = torch.tensor([[*(BLOB_MM - 20), *(BLOB_MM + 20)], [*(BLOB_MM + 500), *(BLOB_MM + 520)]])
    return {"image": chest(), "boxes": boxes, "box_labels": torch.tensor([1, 0]), "box_ignore": torch.zeros(2).bool()}


def windowed_with_boxes(folder: Path) -> Item:
    boxes = torch.tensor([[18.0, 36, 13, 32, 50, 27], [1.0, 2, 3, 4, 6, 5]])
    return {**windowed(folder), "boxes": boxes, "box_labels": torch.tensor([1, 0]), "box_ignore": torch.tensor([0, 1])}


def ct_with_lungs(folder: Path) -> Item:
    image = chest()
    lungs = torch.zeros(image.shape, dtype=torch.uint8)
    lungs[:, 7:40, 10:50, 8:32] = 1
    return {"image": image, "lungs": MetaTensor(lungs, affine=image.affine)}


def photo_with_mask(folder: Path) -> Item:
    """A mask of the photograph before it was made smaller."""
    image = transforms.ResizeImage((30, 20))(photo(folder)["image"])
    return {"image": image, "mask": torch.arange(60 * 80).reshape(1, *SHAPE_2D)}


def windowed(folder: Path) -> Item:
    return {"image": transforms.WindowHU("bone")(chest())}


def windowed_with_lungs(folder: Path) -> Item:
    return {**windowed(folder), "lungs": ct_with_lungs(folder)["lungs"]}


def file(folder: Path) -> Item:
    image = chest()
    nib.save(nib.Nifti1Image(image[0].numpy(), AFFINE), folder / "chest.nii")
    return {"image": str(folder / "chest.nii")}


def photo(folder: Path) -> Item:
    """A bright spot on a gray disc in the dark, (3, H, W) uint8."""
    rows, columns = np.indices(SHAPE_2D)
    spot = 180 * np.exp(-((rows - 22.3) ** 2 + (columns - 47.6) ** 2) / (2 * 4**2))
    gray = np.where((rows - 29) ** 2 + (columns - 41) ** 2 < 26**2, 60, 0) + spot
    pixels = torch.from_numpy(np.stack([gray, 0.9 * gray, 0.6 * gray]).astype(np.uint8))
    return {"image": MetaTensor(pixels, affine=torch.from_numpy(AFFINE_2D), meta={"file_type": "png"})}


def photo_float(folder: Path) -> Item:
    """`photo` in [0, 1], float32."""
    return {"image": photo(folder)["image"] / 255}


def radiograph(folder: Path) -> Item:
    """A DICOM file with the pixels of `photo`."""
    pixels = photo(folder)["image"][0].numpy()
    return {"image": str(write_image(folder / "photo.dcm", pixels, PixelSpacing=[0.5, 0.4]))}


def slide_file(folder: Path) -> Item:
    """Tissue on glass, 640 x 480 pixels of 0.5 um."""
    return {"image": write_slide(folder / "slide.tif", [stained(disc((480, 640), (220, 300), 180))])}


def slide(folder: Path) -> Item:
    return {"image": open_slide(slide_file(folder)["image"])}


def slide_with_tissue(folder: Path) -> Item:
    return {**slide(folder), "tissue": MetaTensor(torch.from_numpy(disc((480, 640), (220, 300), 180)[None]))}


def tiles(folder: Path) -> Item:
    return {"image": transforms.TileSlide(tile_px=64)(*slide_with_tissue(folder).values())}


class Row(NamedTuple):
    """How to test a step."""

    args: Item
    inputs: Callable[[Path], Item]
    outputs: tuple[str, ...] = ("image",)  # keys of the twin's results
    neutral: tuple[Item, ...] = ()  # arguments that change nothing
    landmark: bool = True  # the first output is an image with the input's bright spot
    keeps_grid: bool = False  # the affine stays the same
    array: bool = True  # takes numpy arrays, tensors and MetaTensors; False for paths, slides and tiles


STILL = {f"{part}_prob": 0 for part in ("rotation", "scale", "shift", "flip", "elastic")}
ROWS = {
    "CropRetina": Row({"margin": 0.1}, photo),
    "LoadCT": Row({}, file, keeps_grid=True, array=False),
    "LoadImage2D": Row({"channels": 3}, radiograph, keeps_grid=True, array=False),
    "LoadSlide": Row({"slide_mpp": 0.25}, slide_file, landmark=False, array=False),
    "LoadXray": Row({}, radiograph, keeps_grid=True, array=False),
    "LungHistogram": Row({}, ct_with_lungs, ("shortcut",), landmark=False),
    "MaskLungs": Row({"masking": "air"}, windowed_with_lungs, neutral=({"masking": "none"},), keeps_grid=True),
    "MeasureImage": Row({}, photo, ("shortcut",), landmark=False),
    "NormalizeImage": Row(
        {"mean": [0.5, 0.4, 0.3], "std": 0.25}, photo_float, neutral=({"mean": 0, "std": 1},), keeps_grid=True
    ),
    "NormalizeStain": Row({}, photo, neutral=({"method": "none"}, {"min_tissue": 1}), landmark=False),
    "PlaceBoxes": Row({}, ct_with_boxes, (*BOX_KEYS, BOX_AFFINE), landmark=False),
    "PlaceMask": Row({}, photo_with_mask, ("mask",), landmark=False, array=False),
    "RandBrightness3D": Row(
        {"prob": 1}, windowed, neutral=({"prob": 0}, {"factor": (1, 1), "prob": 1}), keeps_grid=True
    ),
    "RandColor2D": Row(
        {"brightness_prob": 1},
        photo_float,
        neutral=({"brightness": 0, "contrast": 0, "saturation": 0, "hue_turns": 0},),
        keeps_grid=True,
    ),
    "RandContrast3D": Row({"prob": 1}, windowed, neutral=({"prob": 0}, {"factor": (1, 1), "prob": 1}), keeps_grid=True),
    "RandCropLesion": Row(
        {"size": (24, 24, 24), "lesion_prob": 1}, windowed_with_boxes, ("image", *BOX_KEYS), neutral=({"size": SHAPE},)
    ),
    "RandNoise3D": Row(
        {"std": 0.01, "prob": 1}, windowed, neutral=({"prob": 0}, {"std": 0, "prob": 1}), keeps_grid=True
    ),
    "RandSampleTiles": Row({"num_tiles": 3}, tiles, landmark=False, array=False),
    "RandSpatial2D": Row(
        {"flip_prob": 0.5, "rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "crop_size": SHAPE_2D},
        photo_float,
        neutral=({"flip_prob": 0, "rotation_deg": 0, "scale": (1, 1), "shift": 0},),
    ),
    "RandSpatial3D": Row(
        {"rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "flip_prob": 0.5, "elastic_prob": 0, "crop_size": SHAPE},
        windowed,
        neutral=(STILL, {"rotation_deg": 0, "scale": (1, 1), "shift_voxels": 0, "elastic_std_voxels": 0}),
    ),
    "RandStain": Row({"prob": 1}, photo_float, neutral=({"prob": 0}, {"sigma": 0, "prob": 1}), keeps_grid=True),
    "ReadTiles": Row({"color": "srgb"}, tiles, landmark=False, array=False),
    "RefineLungs": Row({}, ct_with_lungs, ("lungs",), landmark=False, keeps_grid=True),
    "ResampleCT": Row({"size": (44, 50, 30)}, ct_with_lungs, ("image", "lungs")),
    "ResizeImage": Row({"size": (90, 70), "fit": "pad"}, photo, neutral=({"size": SHAPE_2D},)),
    "SegmentLungs": Row({"no_lungs": "flag"}, ct, ("lungs",), landmark=False),
    "SegmentTissue": Row({"mpp": 4, "min_tissue_mm2": 0}, slide, ("tissue",), landmark=False, array=False),
    "TileSlide": Row({"tile_px": 64, "overlap": 0.5}, slide_with_tissue, landmark=False),
    "WindowHU": Row({"window_hu": "bone"}, ct, keeps_grid=True),
}
