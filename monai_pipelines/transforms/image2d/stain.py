"""Normalization and random variation of hematoxylin and eosin (H&E) stains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from monai_pipelines.transforms.keyed import EachKeyd
from monai_pipelines.transforms.random import RandImage, RandStepd

METHODS = ("none", "macenko")
WHITE = 240 / 255  # transmitted light without tissue
MIN_DENSITY = 0.15  # pixels below it in any channel are background
PERCENTILES = (1, 99)
MIN_ANGLE_DEG = 2  # between the two stains
TARGET_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])  # hematoxylin, eosin
TARGET_CONCENTRATIONS = np.array([1.9705, 1.0308])
DARKEST = 1e-6  # scikit-image's floor before the logarithm


class NormalizeStain(Transform):
    """Normalize the colors of H&E tiles, each separately, to those of a reference slide, after Macenko.

    Optical density is ``-ln(pixel / 240)`` for 8-bit pixels. The two stains are the directions at the 1st and 99th
    percentile of angle in the plane of the two largest singular vectors of the tissue's densities (all channels above
    0.15); the one with more red density is hematoxylin. Each pixel's two concentrations, by least squares, are
    scaled so that their 99th percentiles become those of the reference, and rendered in the reference's stains.

    A tile without two stains is returned unchanged: too little tissue (background, most fat), or stains within 2
    degrees (a single color).

    Args:
        method: "macenko", or "none" for no change.
        min_tissue: smallest fraction of tissue pixels, 0..1.

    Returns:
        (3, H, W) or (N, 3, H, W) of the input's dtype and memory format.

    Raises:
        ValueError: an argument out of range, or an input that is neither (3, H, W) nor (N, 3, H, W).
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> white = torch.full((3, 8, 8), 250, dtype=torch.uint8)
        >>> NormalizeStain()(white) is white
        True

    Reference:
        Macenko et al., ISBI 2009; reference stains and concentrations of the MATLAB code
        mitkovetta/staining-normalization. MONAI 1.6's `NormalizeHEStains` takes the stain with less red density for
        hematoxylin (it compares densities as if they were colors), which swaps the two on most tiles, and fails on
        tiles without tissue.
    """

    def __init__(self, method: str = "macenko", min_tissue: float = 0.02) -> None:
        if method not in METHODS:
            raise ValueError(f"NormalizeStain: method must be one of {', '.join(METHODS)}, got {method!r}")
        if not 0 <= min_tissue <= 1:
            raise ValueError(f"NormalizeStain: min_tissue must lie in 0..1, got {min_tissue}")
        self.method, self.min_tissue = method, min_tissue

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        tiles: Tensor = img if isinstance(img, Tensor) else convert_to_tensor(img)
        if tiles.ndim not in (3, 4) or tiles.shape[-3] != 3:
            raise ValueError(
                f"NormalizeStain: wanted an RGB image (3, H, W) or a batch (N, 3, H, W), got shape {tuple(tiles.shape)}"
            )
        if tiles.dtype != torch.uint8 and not tiles.is_floating_point():
            raise TypeError(f"NormalizeStain: wanted uint8 or floating point in [0, 1], got {tiles.dtype}")
        if self.method == "none":
            return tiles
        plain = tiles.as_tensor() if isinstance(tiles, MetaTensor) else tiles
        changed = [self._normalized(tile) for tile in (plain if plain.ndim == 4 else plain[None])]
        if all(new is None for new in changed):
            return tiles
        out = plain.detach().clone()
        for tile, new in zip(out if out.ndim == 4 else out[None], changed, strict=True):
            if new is not None:
                tile.copy_(torch.from_numpy(new))
        return MetaTensor(out).copy_meta_from(tiles) if isinstance(tiles, MetaTensor) else out

    def _normalized(self, tile: Tensor) -> NDArray[np.float32] | None:
        """One tile (3, H, W); None without two stains."""
        top = 255 if tile.dtype == torch.uint8 else 1
        pixels = tile.detach().cpu().to(torch.float32).flatten(1).numpy() / top
        density = -np.log(np.maximum(pixels, 1 / 255) / WHITE)
        stains = self._stains(density)
        if stains is None:
            return None
        concentrations = np.linalg.pinv(stains.T).astype(np.float32) @ density
        strongest = np.percentile(concentrations, PERCENTILES[1], axis=1)
        if strongest.min() <= 0:
            return None
        to_target = (TARGET_STAINS.T * (TARGET_CONCENTRATIONS / strongest)).astype(np.float32)
        light = np.clip(WHITE * np.exp(-to_target @ concentrations), 0, 1) * top
        return (light.round() if top == 255 else light).reshape(tile.shape)

    def _stains(self, density: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Hematoxylin and eosin (2, 3) of unit length from densities (3, N); None without two stains."""
        tissue = density[:, (density > MIN_DENSITY).all(axis=0)].astype(np.float64)
        if tissue.shape[1] < max(1, self.min_tissue * density.shape[1]):
            return None
        _, directions = np.linalg.eigh(tissue @ tissue.T)
        plane = directions[:, [2, 1]]  # the singular vectors, largest first
        plane[:, 0] *= np.sign(plane[:, 0].sum())  # towards the densities, so that no angle exceeds 90 degrees
        along, across = plane.T @ tissue
        angles = np.percentile(np.arctan2(across, along), PERCENTILES)
        if np.rad2deg(angles[1] - angles[0]) < MIN_ANGLE_DEG:
            return None
        stains = (plane @ [np.cos(angles), np.sin(angles)]).T
        return stains[np.argsort(-stains[:, 0])]


class RandStain(RandImage):
    """Vary the amounts of hematoxylin, eosin and DAB at random: ``c * (1 + a) + b`` for each stain.

    The concentrations c of a pixel add up to its optical density ``-ln(pixel)`` with Ruifrok's fixed stain matrix; they
    may be negative, so that the decomposition is lossless. A concentration of 1 is a density of about 1, as in a dark
    nucleus.

    Draws, for each image, whether (`prob`), and for each of the three stains a and b, uniform in ``[-sigma, sigma]``.

    Args:
        sigma: largest a and b; 0 changes nothing. Published: 0.05 (light) and 0.2 (strong).
        prob: probability for each image, 0..1.

    Returns:
        the input's shape, (3, H, W) or (B, 3, H, W), in [0, 1]; float32 for uint8, else the input's dtype.

    Raises:
        ValueError: an argument out of range, or an input that is neither an image nor a batch, or not RGB with sigma
            above 0.
        TypeError: neither uint8 nor floating point.

    Example:
        >>> import torch
        >>> tile = torch.rand(3, 8, 8)
        >>> RandStain(sigma=0)(tile) is tile
        True

    Reference:
        Tellez et al., Medical Image Analysis 2019; Ruifrok and Johnston, 2001. scikit-image's `rgb2hed` has the same
        matrix, but other units (1 is a density of 13.8), and clips negative concentrations.
    """

    def __init__(self, sigma: float = 0.05, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"RandStain: prob must lie in 0..1, got {prob}")
        if sigma < 0:
            raise ValueError(f"RandStain: sigma must be 0 or more, got {sigma}")
        super().__init__(prob)
        self.sigma = sigma

    def _draw(self) -> NDArray[np.float64] | None:
        drawn = self.R.random_sample() < self.prob
        change = self.R.uniform(-self.sigma, self.sigma, (2, 3))
        return change if drawn and self.sigma else None

    def _apply(self, batch: Tensor, draws: Sequence[NDArray[np.float64] | None]) -> Tensor:
        if self.sigma and batch.shape[1] != 3:
            raise ValueError(f"RandStain: wanted RGB (3 channels), got {batch.shape[1]}")
        return super()._apply(batch, draws)

    def _change(self, images: Tensor, draws: Sequence[NDArray[np.float64]]) -> Tensor:
        from skimage.color import hed_from_rgb, rgb_from_hed

        factors, biases = np.stack(draws, axis=1)
        mixes = hed_from_rgb @ ((1 + factors)[:, :, None] * rgb_from_hed)  # density (a row) -> density
        mix = torch.from_numpy(mixes).to(images)[..., None, None]
        bias = torch.from_numpy(biases @ rgb_from_hed).to(images)[..., None, None]
        red, green, blue = images.clamp_min(DARKEST).log_().split(1, dim=1)
        light = torch.addcmul(mix[:, 0] * red - bias, mix[:, 1], green).addcmul_(mix[:, 2], blue)
        return light.exp_().clamp_(0, 1)


class NormalizeStaind(EachKeyd):
    """`NormalizeStain` for dictionaries."""

    def __init__(
        self,
        keys: KeysCollection,
        method: str = "macenko",
        min_tissue: float = 0.02,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, NormalizeStain(method, min_tissue), allow_missing_keys)


class RandStaind(RandStepd):
    """`RandStain` for dictionaries; all keys get the same change."""

    def __init__(
        self, keys: KeysCollection, sigma: float = 0.05, prob: float = 0.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, RandStain(sigma, prob), allow_missing_keys)
