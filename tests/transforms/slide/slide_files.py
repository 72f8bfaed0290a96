"""Small lossless slides and thumbnails of known tissue, for the tests of the slide steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

GLASS = (244, 240, 243)
HEMATOXYLIN, EOSIN = np.array([0.56, 0.72, 0.41]), np.array([0.22, 0.80, 0.56])


def disc(shape: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2


def stained(tissue: np.ndarray, light: tuple[int, ...] = GLASS, density: float = 1.0, seed: int = 0) -> np.ndarray:
    """RGB of textured tissue (h, w) on glass, dark and blue in the left half, pale and pink in the right."""
    rng = np.random.default_rng(seed)
    texture = np.clip(1 + gaussian_filter(rng.standard_normal(tissue.shape), 1) * 1.2, 0.5, 1.6)
    left = np.arange(tissue.shape[1]) < np.nonzero(tissue.any(0))[0].mean() if tissue.any() else np.zeros(1, bool)
    amount = density * texture * tissue
    od = amount[..., None] * np.where(left[None, :, None], HEMATOXYLIN, 0.4 * EOSIN)
    noise = rng.normal(0, 1, (*tissue.shape, 3))
    return np.clip(np.array(light) * np.exp(-od) + noise, 0, 255).astype(np.uint8)


def pyramid(full: np.ndarray, downsamples: tuple[int, ...]) -> list[np.ndarray]:
    height, width = full.shape[:2]
    image = Image.fromarray(full)
    return [np.asarray(image.reduce(d).crop((0, 0, width // d, height // d))) for d in downsamples]


def write_slide(path: Path, levels: list[np.ndarray], mpp: float | None = 0.5, **options: Any) -> str:
    """A tiled TIFF of uncompressed levels."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "centimeter"}
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(
                level, tile=(64, 64), photometric="rgb", subfiletype=int(number > 0), metadata=None,
                **resolution, **options,
            )  # fmt: skip
    return str(path)
