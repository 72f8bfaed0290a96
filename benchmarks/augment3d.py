"""Random changes of 128^3 volumes, everything drawn: `augment_ct` and the usual ways to write it, per volume.

    python benchmarks/augment3d.py [--rounds 5] [--csv benchmarks/results/augment3d.csv]

The recipe is the published one of scipy and elasticdeform: rotations, zoom, shift, deformation and noise, one after the
other. Before anything is timed, our field of the same control points is compared with elasticdeform's. Each method
draws its own random numbers, so that outputs differ; TorchIO is timed if it is installed (benchmarks/requirements.txt).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import elasticdeform
import numpy as np
import torch
from harness import record, timed
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "augment3d.csv")
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
    if find_spec("torchio"):
        methods["TorchIO with elastic"] = partial(torchio_chain(True), volume)
        methods["TorchIO without elastic"] = partial(torchio_chain(False), volume)
    seconds = timed(methods, args.rounds)
    seconds[f"{OURS}, batch of 4"] = [value / 4 for value in seconds[f"{OURS}, batch of 4"]]
    data = f"{args.size}^3 float32"
    differences = {OURS: f"field at most {error:.4f} voxels from elasticdeform's"}
    record(
        args.csv, seconds, lambda name: OURS, differences, data, "torch", "monai", "numba", "elasticdeform", "torchio"
    )


if __name__ == "__main__":
    main()
