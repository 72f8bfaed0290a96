"""Writes a cohort of synthetic whole slides: pyramidal TIFF files, a table of labels, and outlines of the tumour."""

from __future__ import annotations

import json
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_pipelines.phantoms.slide_canvas import CELL_PX, INKS, draw_slide
from monai_pipelines.phantoms.slide_file import write_pyramid
from monai_pipelines.phantoms.slide_layout import GLASS, TUMOUR, draw_layout
from monai_pipelines.phantoms.writing import balanced_kinds, draw_all, new_folder, write_csv

_LABELS = ("normal", "tumour")


class _Scanner(NamedTuple):
    """How a scanner stores slides: um per pixel, pixels per pixel of the drawing, chroma subsampling, JPEG quality."""

    mpp: float
    zoom: int
    subsampling: tuple[int, int]
    quality: int


_SCANNERS = (_Scanner(0.499, 1, (2, 2), 80), _Scanner(0.2525, 2, (2, 1), 75))
_INK_KINDS = (*INKS, *(None for _ in range(6)))


class _Plan(NamedTuple):
    """One slide of the cohort."""

    name: str
    label: int
    tumour_fraction: float
    scanner: _Scanner
    ink: str | None
    seed: np.random.SeedSequence


def write_slides(
    directory: str | PathLike[str],
    num_slides: int = 40,
    seed: int = 0,
    *,
    size_mm: tuple[float, float] = (2.2, 1.7),
    tumour_fraction: tuple[float, float] = (0.01, 0.2),
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write stained bowel sections of synthetic patients as a data set for a slide classifier.

    Half the slides are `normal`, half hold islands of `tumour`. `directory` gets

    - `table.csv`: columns image, label, patient, annotation (empty for normal slides), paths relative to it;
    - `slides/slide-0000.tif`: pyramid of JPEG tiles of 256 pixels, levels shrunk by 1, 4 and 16, read by OpenSlide;
      half the slides of each class come from a scanner of 0.499 um per pixel, half from one of 0.2525;
    - `annotations/slide-0000.geojson`: outlines of the tumour in pixels of level 0, as QuPath has them;
    - `masks/slide-0000.png`: 0 glass, 128 tissue, 255 tumour; a pixel is 4 um wide, 8 pixels of level 0 at 0.499 um
      a pixel, 16 at 0.2525.

    Slides differ in stain and thickness, and show mucosa, stroma, muscle, fat, lymphocytes and debris. A third of
    each class has pen marks. The same arguments give the same bytes, for any `num_workers`.

    Args:
        directory, seed, num_workers, progress: of `write_lung_ct_cohort`.
        num_slides: at least 2.
        size_mm: width and height of a slide, at least 0.5 each.
        tumour_fraction: range of the tumour's share of the tissue in a positive slide; more where islands would be too
            small to see.

    Returns:
        Path of the table.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: fewer than 2 slides, too small a size, or fractions that do not rise within (0, 1).

    Example:
        >>> import tempfile
        >>> table = write_slides(tempfile.mkdtemp(), 2, size_mm=(0.5, 0.5), num_workers=1, progress=False)
        >>> table.read_text().splitlines()[0]
        'image,label,patient,annotation'
    """
    if num_slides < 2:
        raise ValueError(f"write_slides: num_slides must be at least 2, got {num_slides}")
    if min(size_mm) < 0.5:
        raise ValueError(f"write_slides: size_mm must be at least 0.5 x 0.5, got {size_mm}")
    if not 0 < tumour_fraction[0] <= tumour_fraction[1] < 1:
        raise ValueError(f"write_slides: tumour_fraction must rise within (0, 1), got {tumour_fraction}")
    folder = new_folder(directory, "write_slides", "slides", "annotations", "masks")
    plans, write = _plan(num_slides, seed, tumour_fraction), partial(_write_slide, folder=folder, size_mm=size_mm)
    rows = draw_all(write, plans, num_workers, progress)
    return write_csv(folder / "table.csv", ["image", "label", "patient", "annotation"], rows)


def _plan(num_slides: int, seed: int, tumour_fraction: tuple[float, float]) -> list[_Plan]:
    root = np.random.SeedSequence(seed)
    rng = np.random.default_rng(root)
    labels = rng.permutation(np.arange(num_slides) % 2)
    scanners = balanced_kinds(rng, labels, len(_SCANNERS))
    inks = balanced_kinds(rng, labels, len(_INK_KINDS))
    members = zip(labels.tolist(), scanners, inks, root.spawn(num_slides), strict=True)
    return [
        _Plan(f"slide-{index:04d}", label, rng.uniform(*tumour_fraction), _SCANNERS[scanner], _INK_KINDS[ink], child)
        for index, (label, scanner, ink, child) in enumerate(members)
    ]


def _write_slide(plan: _Plan, folder: Path, size_mm: tuple[float, float]) -> tuple[str, str, str, str]:
    """Returns the slide's row of the table."""
    rng = np.random.default_rng(plan.seed)
    zoom, mpp = plan.scanner.zoom, plan.scanner.mpp
    width, height = (round(1000 * side / mpp / zoom) for side in size_mm)
    shape = (-(-height // CELL_PX), -(-width // CELL_PX))
    layout = draw_layout(rng, shape, plan.tumour_fraction, tumour=bool(plan.label), pen=plan.ink is not None)
    drawing = draw_slide(rng, layout, plan.ink).crop((0, 0, width, height))
    if zoom > 1:
        drawing = drawing.resize((zoom * width, zoom * height), Image.Resampling.BICUBIC)
    levels = [np.asarray(drawing), *(_shrunk(drawing, times) for times in (4, 16))]
    image, annotation = f"slides/{plan.name}.tif", f"annotations/{plan.name}.geojson" if plan.label else ""
    write_pyramid(folder / image, levels, mpp, quality=plan.scanner.quality, subsampling=plan.scanner.subsampling)
    gray = np.where(layout.kinds == GLASS, 0, np.where(layout.kinds == TUMOUR, 255, 128)).astype(np.uint8)
    Image.fromarray(gray).save(folder / "masks" / f"{plan.name}.png")
    if annotation:
        outlines = {"type": "FeatureCollection", "features": _features(layout.kinds == TUMOUR, zoom * CELL_PX)}
        (folder / annotation).write_text(json.dumps(outlines) + "\n", encoding="utf-8")
    return image, _LABELS[plan.label], plan.name.replace("slide", "phantom"), annotation


def _shrunk(drawing: Image.Image, times: int) -> np.ndarray:
    """Means of squares of pixels; an incomplete last row or column is dropped."""
    width, height = (side // times * times for side in drawing.size)
    return np.asarray(drawing.reduce(times, (0, 0, width, height)))


def _features(tumour: np.ndarray, cell_px: int) -> list[dict[str, object]]:
    """A GeoJSON polygon for every island; its holes are its inner rings."""
    from skimage.measure import approximate_polygon, find_contours, points_in_poly  # slow to import

    field = np.pad(gaussian_filter(tumour.astype(np.float32), 0.9), 2)
    rings = [
        cell_px * (approximate_polygon(ring, 0.1)[:, ::-1] - 1.5) for ring in find_contours(field, 0.5) if len(ring) > 4
    ]
    holes = [ring for ring in rings if _area(ring) < 0]
    properties = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    features: list[dict[str, object]] = []
    for island in rings:
        if _area(island) > 0:
            inside = [hole for hole in holes if points_in_poly(hole[:1], island)[0]]
            polygon = {"type": "Polygon", "coordinates": [np.round(ring, 1).tolist() for ring in (island, *inside)]}
            features.append({"type": "Feature", "geometry": polygon, "properties": properties})
    return features


def _area(ring: np.ndarray) -> float:
    """Signed area of a closed ring of (x, y)."""
    x, y = ring.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)
