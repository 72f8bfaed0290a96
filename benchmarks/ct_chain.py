"""A DICOM chest CT of 250 x 512 x 512 to the network's 128^3: `lung_ct` and the usual ways to write it.

    python benchmarks/ct_chain.py [--rounds 5] [--only recipe ...] [--csv benchmarks/results/ct_chain.csv]

All read the same phantom series (warm file cache), segment the lungs, window, set what is outside them to air, crop
to them and resize; then the same without a mask. The recipe is the published one of scipy and scikit-image: a mask at
full resolution by threshold, components, closing and filling. MONAI and TorchIO have no lung segmentation and get the
recipe's. TorchIO and MONAI's ITKReader are timed if they are installed (benchmarks/requirements.txt). Crops differ by a
voxel or two, so that with a mask the outputs are compared by the shape of the lungs and the mean in them (ours without
the 5 mm around them that the chain keeps), without one voxel by voxel. How exact the chain and the recipe are is
measured by `ct_accuracy`. The resampling alone, from HU in memory, is timed beside volresample's and scipy's.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pydicom
import torch
from ct_accuracy import Grid, dice, errors_in_lungs, grid_of, mask_agreement
from harness import arguments, installed, record, timed
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    MaskIntensityd,
    Orientation,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
)
from scipy import ndimage
from series import write_chest_series
from skimage.measure import label

from monai_pipelines import load_chain
from monai_pipelines.transforms import LoadCT, ResampleCT

SIZE = (128, 128, 128)
WINDOW = (-1000, 400)
TO_RAS = Orientation("RAS", labels=None)
NO_MASK = {"lungs": None, "measure": None, "mask": None}
OURS = "lung_ct, masking: air"
OURS_UNMASKED = "lung_ct without a mask"
OURS_RESAMPLING = "ResampleCT, cubic, anti-aliased"
RECIPE = "recipe: pydicom, scikit-image, scipy"


def recipe_lungs(hu: np.ndarray) -> np.ndarray:
    """The published mask (X, Y, Z) at full resolution: air off the border, two largest, closed, filled."""
    labels = label(hu < -320, connectivity=1)
    edges = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    sizes = np.bincount(labels.ravel())
    sizes[np.unique(np.concatenate([[0], *(edge.ravel() for edge in edges)]))] = 0
    lungs = np.isin(labels, [i for i in np.argsort(sizes)[-2:] if sizes[i] > sizes.max() / 4])  # no bowel gas
    closed = ndimage.binary_closing(lungs, iterations=3)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(closed, 2, 0)], axis=2)


def recipe_box(lungs: np.ndarray, voxel_mm: Iterable[float]) -> tuple[slice, ...]:
    """The published crop, 10 mm around the lungs."""
    return tuple(
        slice(max(0, int(along.min() - 10 / mm)), int(along.max() + 1 + 10 / mm))
        for along, mm in zip(np.nonzero(lungs), voxel_mm, strict=True)
    )


def to_window(hu: np.ndarray) -> np.ndarray:
    """HU to [0, 1]."""
    return np.clip((hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)


def recipe(folder: str, mask: bool) -> np.ndarray:
    """The published chain with pydicom, scikit-image and scipy."""
    slices = [pydicom.dcmread(entry.path) for entry in os.scandir(folder)]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    hu = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices], axis=2)
    hu = hu.transpose(1, 0, 2)[::-1, ::-1]  # rows and columns to RAS
    image = to_window(hu)
    if mask:
        lungs = recipe_lungs(hu)
        step = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
        voxel = (*map(float, slices[0].PixelSpacing), step)
        image = np.where(lungs, image, 0)[recipe_box(lungs, voxel)]
    return ndimage.zoom(image, np.divide(SIZE, image.shape), order=1)


def with_mask(data: dict[str, Any]) -> dict[str, Any]:
    """The item with the recipe's mask."""
    mask = recipe_lungs(data["image"][0].numpy())
    return {**data, "lungs": MetaTensor(torch.from_numpy(mask[None].astype(np.float32)), affine=data["image"].affine)}


def monai_chain(mask: bool, reader: str, anti_aliasing: bool, lazy: bool = False) -> Callable[[str], torch.Tensor]:
    """MONAI's dictionary transforms."""
    keys = ["image", "lungs"] if mask else ["image"]
    modes = ["bilinear", "nearest"][: len(keys)]
    load = [
        LoadImaged("image", reader=reader, image_only=True),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS", labels=None),
    ]
    spacing = Spacingd(keys, pixdim=(1, 1, 1), mode=modes)
    crop = [CropForegroundd(keys, source_key="lungs", margin=10, allow_smaller=True)] if mask else []
    resize = Resized(
        keys,
        SIZE,
        mode=["trilinear", "nearest"][: len(keys)],
        anti_aliasing=[anti_aliasing, False][: len(keys)],
    )
    window = ScaleIntensityRanged("image", *WINDOW, 0, 1, clip=True)
    air = [MaskIntensityd("image", mask_key="lungs")] if mask else []
    segment = [with_mask] if mask else []
    if lazy:  # the mask is needed for the crop, on the scan's grid
        fused = Compose([*crop, spacing, resize], lazy=True)
        chain = Compose([*load, *segment, fused, window, *air])
    else:
        spacing = Spacingd("image", pixdim=(1, 1, 1), mode="bilinear")
        chain = Compose([*load, spacing, *segment, *crop, resize, window, *air])
    return lambda folder: chain({"image": folder})["image"][0]


def torchio_chain(mask: bool) -> Callable[[str], torch.Tensor]:
    """TorchIO's transforms."""
    import torchio as tio

    def run(folder: str) -> torch.Tensor:
        image = tio.Resample(1)(tio.ToCanonical()(tio.ScalarImage(folder)))
        subject = tio.Subject(image=image)
        if mask:
            lungs = recipe_lungs(image.data[0].numpy())
            low, high = (f(np.argwhere(lungs), axis=0) for f in (np.min, np.max))
            low, high = np.maximum(low - 10, 0), np.minimum(high + 11, lungs.shape)
            crop = [side for pair in zip(low, lungs.shape - high, strict=True) for side in pair]
            subject.add_image(tio.LabelMap(tensor=torch.from_numpy(lungs[None]), affine=image.affine), "lungs")
            subject = tio.Crop([int(side) for side in crop])(subject)
        window = [tio.Clamp(*WINDOW), tio.RescaleIntensity((0, 1), in_min_max=WINDOW)]
        subject = tio.Compose([tio.Resize(SIZE), *window])(subject)
        return (subject["image"].data * subject["lungs"].data if mask else subject["image"].data)[0]

    return run


def accuracy(folder: str) -> dict[str, str]:
    """How exact our chain and the recipe are."""
    scan = TO_RAS(LoadCT()(folder))
    hu = scan[0].numpy()
    lungs = recipe_lungs(hu)
    ours, mask = load_chain("lung_ct", size=SIZE, masking="channel", dilate_mm=0)(folder)
    box = recipe_box(lungs, scan.pixdim.tolist())
    first, last = (np.array([getattr(along, end) for along in box], float) for end in ("start", "stop"))
    last = np.minimum(last, hu.shape) - 1
    corners = Grid(first, (last - first) / (np.array(SIZE) - 1), SIZE)  # of scipy's zoom
    grid = grid_of(ours, scan)
    exact = {
        OURS: errors_in_lungs(ours.numpy(), hu, lungs, grid, to_window),
        RECIPE: errors_in_lungs(recipe(folder, mask=True), hu, lungs, corners, to_window),
    }
    exact[OURS] += f"; {mask_agreement(mask.numpy() > 0, scan, lungs, grid)}"
    return exact


def resampling(scan: MetaTensor, threads: int) -> dict[str, Callable[[], Any]]:
    """Ways to shrink HU in memory."""
    hu = np.ascontiguousarray(TO_RAS(scan)[0].numpy())
    step = ResampleCT(SIZE)
    methods: dict[str, Callable[[], Any]] = {
        OURS_RESAMPLING: lambda: step(scan)[0].numpy(),
        "scipy zoom, linear": lambda: ndimage.zoom(
            hu, np.divide(SIZE, hu.shape), order=1, grid_mode=True, mode="nearest"
        ),
    }
    if installed("volresample"):
        import volresample

        volresample.set_num_threads(threads)
        for mode in ("linear", "area", "cubic"):
            methods[f"volresample, {mode}"] = partial(volresample.resample, hu, SIZE, mode=mode)
    return methods


def main() -> None:
    parser = arguments(__doc__, "ct_chain.csv")
    parser.add_argument("--slices", type=int, default=250)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of our kernels")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="besides ours, methods whose names contain one of these"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        hu = write_chest_series(folder, args.matrix, args.slices)
        chains: dict[str, Callable[[str], Any]] = {
            OURS: load_chain("lung_ct", size=SIZE, masking="air"),
            RECIPE: partial(recipe, mask=True),
            "MONAI, recipe's mask, PydicomReader": monai_chain(True, "PydicomReader", False),
            "MONAI lazy, recipe's mask": monai_chain(True, "PydicomReader", False, lazy=True),
            OURS_UNMASKED: load_chain("lung_ct", steps=NO_MASK, size=SIZE),
            "recipe without a mask": partial(recipe, mask=False),
            "MONAI without a mask": monai_chain(False, "PydicomReader", False),
            "MONAI without a mask, anti-aliasing": monai_chain(False, "PydicomReader", True),
        }
        if installed("itk"):
            chains["MONAI, recipe's mask, ITKReader"] = monai_chain(True, "ITKReader", False)
        if installed("torchio"):
            chains["TorchIO, recipe's mask"] = torchio_chain(True)
            chains["TorchIO without a mask"] = torchio_chain(False)
        chains = {
            name: chain
            for name, chain in chains.items()
            if name == partner(name) or any(part in name for part in args.only)
        }
        ours = {OURS: np.asarray(chains[OURS](folder))[0]}
        ours[OURS_UNMASKED] = np.asarray(chains[OURS_UNMASKED](folder))[0]
        tight = np.asarray(load_chain("lung_ct", size=SIZE, masking="air", dilate_mm=0)(folder))[0]
        differences: dict[str, str] = {}
        for name, chain in chains.items():
            output = np.asarray(chain(folder)).reshape(SIZE)
            if partner(name) == OURS_UNMASKED:  # one grid
                difference = abs(output - ours[OURS_UNMASKED]).mean()
                differences[name] = f"mean difference {difference:.4f} of the window"
                assert difference < 0.02, f"{name}: another result, {differences[name]}"
            elif name != OURS:
                overlap = dice(output > 0, tight > 0)
                means = output[output > 0].mean() - tight[tight > 0].mean()
                differences[name] = f"Dice of the lungs {overlap:.3f}, mean in them {means:+.4f} of the window"
                assert overlap > 0.9, f"{name}: another result, {differences[name]}"
        for name, exact in accuracy(folder).items():
            differences[name] = "; ".join(filter(None, [differences.get(name), exact]))
        seconds = timed({name: partial(chain, folder) for name, chain in chains.items()}, args.rounds)
        scan = LoadCT()(folder)
    packages = ("torch", "monai", "numba", "scipy", "torchio", "volresample")
    size = "x".join(map(str, SIZE))
    record(args.csv, seconds, partner, differences, f"DICOM {'x'.join(map(str, hu.shape))} -> {size}", *packages)
    methods = resampling(scan, args.threads)
    expected = methods[OURS_RESAMPLING]()
    differences = {
        name: f"mean difference {abs(to_window(method()) - to_window(expected)).mean():.4f} of the window"
        for name, method in methods.items()
    }
    seconds = timed(methods, args.rounds)
    data = f"int16 {'x'.join(map(str, hu.shape))} in memory -> {size}"
    record(args.csv, seconds, lambda name: OURS_RESAMPLING, differences, data, *packages)


def partner(name: str) -> str:
    """Our chain that does the same."""
    return OURS_UNMASKED if "without a mask" in name else OURS


if __name__ == "__main__":
    main()
