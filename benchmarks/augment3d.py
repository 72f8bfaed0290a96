"""Random changes of 128^3 volumes, everything drawn: `augment_ct` and the usual ways to write it, per volume.

    python benchmarks/augment3d.py [--rounds 5] [--csv benchmarks/results/augment3d.csv]

The recipe is the published one of scipy and elasticdeform: rotations, zoom, shift, deformation and noise, one after the
other. Before anything is timed, our field of the same control points is compared with elasticdeform's. Each method
draws its own random numbers, so that outputs differ. TorchIO, batchgeneratorsv2 and kornia are timed if they are
installed (benchmarks/requirements.txt); kornia has no elastic deformation of volumes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import elasticdeform
import numpy as np
import torch
from harness import arguments, installed, record, timed
from monai.transforms import (
    Compose,
    Rand3DElastic,
    RandAdjustContrast,
    RandAffine,
    RandGaussianNoise,
    RandScaleIntensity,
)
from scipy import ndimage

from monai_pipelines import load_chain
from monai_pipelines.transforms import RandSpatial3D

OURS = "augment_ct"
ALWAYS = {
    f"{part}_prob": 1 for part in ("rotation", "scale", "shift", "elastic", "brightness", "contrast", "noise")
}  # no flip: it is free


def recipe(volume: np.ndarray, rng: np.random.Generator, elastic: bool) -> np.ndarray:
    """One scipy call for each change."""
    for axes in ((0, 1), (0, 2), (1, 2)):
        volume = ndimage.rotate(volume, rng.uniform(-10, 10), axes, reshape=False, order=1)
    zoomed = ndimage.zoom(volume, rng.uniform(0.9, 1.1), order=1)
    volume = np.zeros_like(volume)
    size = [min(a, b) for a, b in zip(volume.shape, zoomed.shape, strict=True)]
    volume[: size[0], : size[1], : size[2]] = zoomed[: size[0], : size[1], : size[2]]
    volume = ndimage.shift(volume, rng.uniform(-5, 5, 3), order=1)
    if elastic:
        volume = elasticdeform.deform_grid(volume, rng.normal(0, 3, (3, 3, 3, 3)), order=1)
    return (volume * rng.uniform(0.9, 1.1) + rng.normal(0, 0.05, volume.shape)).astype(np.float32)


def monai_chain(spatial: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """MONAI's array transforms."""
    intensity = [
        RandScaleIntensity(0.1, prob=1),
        RandAdjustContrast(prob=1, gamma=(0.9, 1.1)),
        RandGaussianNoise(prob=1, std=0.05),
    ]
    return Compose([spatial, *intensity])


def torchio_chain(elastic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """TorchIO's transforms."""
    import torchio as tio

    spatial = [tio.RandomAffine(scales=0.1, degrees=10, translation=5)]
    if elastic:
        spatial.append(tio.RandomElasticDeformation(num_control_points=7, max_displacement=7.5))
    return tio.Compose([*spatial, tio.RandomGamma(0.1), tio.RandomNoise(std=0.05)])


def batchgenerators_chain(size: int, elastic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """nnU-Net's transforms; displacements as large as ours at most."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    angle = np.pi / 18
    spatial = SpatialTransform(
        (size,) * 3, size // 2 - 5, random_crop=True, p_rotation=1, rotation=(-angle, angle), p_scaling=1,
        scaling=(0.9, 1.1), p_elastic_deform=int(elastic), elastic_deform_magnitude=(0, 7.5),
    )  # fmt: skip
    intensity = [
        MultiplicativeBrightnessTransform((0.9, 1.1), synchronize_channels=True),
        ContrastTransform((0.9, 1.1), preserve_range=True, synchronize_channels=True),
        GaussianNoiseTransform((0, 0.05)),
    ]
    chain = ComposeTransforms([spatial, *intensity])
    return lambda volume: chain(image=volume)["image"]


def kornia_chain(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Kornia's affine transform of volumes, and the same brightness, contrast and noise as tensor operations."""
    from kornia.augmentation import RandomAffine3D

    affine = RandomAffine3D(10.0, translate=(5 / size,) * 3, scale=(0.9, 1.1), p=1.0)

    def run(volume: torch.Tensor) -> torch.Tensor:
        moved = affine(volume[None])[0]
        brightness, contrast = torch.empty(2).uniform_(0.9, 1.1)
        mean = moved.mean()
        return ((moved - mean) * contrast + mean) * brightness + 0.05 * torch.randn_like(moved)

    return run


def field_error() -> float:
    """The largest distance of our deformation from elasticdeform's, voxels."""
    shape = (64, 64, 64)
    step = RandSpatial3D(rotation_prob=0, scale_prob=0, shift_prob=0, elastic_prob=1).set_random_state(0)
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    moved = step(coordinates).numpy()
    expected = np.stack(
        elasticdeform.deform_grid(list(coordinates.numpy()), step.draws[0].elastic_voxels, order=1, cval=np.nan)
    )
    inner = (slice(None), *[slice(12, -12)] * 3)  # further out, the volume's end is in sight
    return float(np.nanmax(np.abs(moved - expected)[inner]))


def main() -> None:
    parser = arguments(__doc__, "augment3d.csv")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    error = field_error()
    print(f"deformation: at most {error:.4f} voxels from elasticdeform's")
    assert error < 0.05
    volume = torch.rand(1, *[args.size] * 3, generator=torch.Generator().manual_seed(0))
    rng, chain = np.random.default_rng(0), load_chain("augment_ct", **ALWAYS)
    batch = volume.expand(4, -1, -1, -1, -1).clone()
    reach = {"spatial_size": (args.size,) * 3, "rotate_range": [np.pi / 18] * 3, "padding_mode": "zeros", "prob": 1}
    affine = {"translate_range": [5] * 3, "scale_range": [0.1] * 3, **reach}
    elastic = Rand3DElastic(sigma_range=(5, 7), magnitude_range=(50, 150), **affine)
    methods: dict[str, Callable[[], Any]] = {
        OURS: lambda: chain(volume),
        f"{OURS}, batch of 4": lambda: chain(batch),
        "recipe: scipy, elasticdeform": lambda: recipe(volume[0].numpy(), rng, True),
        "recipe without elastic": lambda: recipe(volume[0].numpy(), rng, False),
        "MONAI Rand3DElastic, intensity": partial(monai_chain(elastic), volume),
        "MONAI RandAffine, intensity": partial(monai_chain(RandAffine(**affine)), volume),
    }
    if installed("torchio"):
        methods["TorchIO with elastic"] = partial(torchio_chain(True), volume)
        methods["TorchIO without elastic"] = partial(torchio_chain(False), volume)
    if installed("batchgeneratorsv2"):
        methods["batchgeneratorsv2 with elastic"] = partial(batchgenerators_chain(args.size, True), volume)
        methods["batchgeneratorsv2 without elastic"] = partial(batchgenerators_chain(args.size, False), volume)
    if installed("kornia"):
        methods["kornia RandomAffine3D, intensity"] = partial(kornia_chain(args.size), volume)
    seconds = timed(methods, args.rounds)
    seconds[f"{OURS}, batch of 4"] = [value / 4 for value in seconds[f"{OURS}, batch of 4"]]
    data = f"{args.size}^3 float32"
    differences = {OURS: f"field at most {error:.4f} voxels from elasticdeform's"}
    packages = ("torch", "monai", "numba", "elasticdeform", "torchio", "batchgeneratorsv2", "kornia")
    record(args.csv, seconds, lambda name: OURS, differences, data, *packages)


if __name__ == "__main__":
    main()
