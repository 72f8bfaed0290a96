"""Draws a phantom slide at full resolution from its layout: textures laid side by side like a quilt."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from monai_pipelines.phantoms.fields import noise
from monai_pipelines.phantoms.histology import Stain
from monai_pipelines.phantoms.slide_layout import GLASS, KINDS, MUSCLE, STROMA, TUMOUR, SlideLayout
from monai_pipelines.phantoms.tissue import TISSUES, Tissue

CELL_PX = 8
INKS = {"blue": (45, 60, 170), "green": (30, 130, 80), "black": (48, 45, 52)}

_PATCH_PX = 256
_OVERLAP_PX = 64
_RIM = 4  # cells around a patch that its edges are smoothed with
_CELLS = _PATCH_PX // CELL_PX + 2 * _RIM
_SHARPER = [round(min(max(6 * (value - 127.5) + 127.5, 0), 255)) for value in range(256)]


def draw_slide(rng: np.random.Generator, layout: SlideLayout, ink: str | None = None) -> Image.Image:
    """Paint a layout, `CELL_PX` pixels per cell, with a pen in one of `INKS`; None: no pen."""
    stain = Stain.draw(rng)
    stain = stain._replace(light=(stain.light + 250) / 2)  # scanners balance white
    textures = _textures(rng, stain, np.unique(layout.kinds).tolist())
    cover, rough = _cover(rng), _gray(128 + 22 * noise(rng, CELL_PX * _CELLS, 7))
    height, width = (CELL_PX * side for side in layout.kinds.shape)
    slide = Image.new("RGB", (width, height))
    for top in range(-_OVERLAP_PX, height, _PATCH_PX - _OVERLAP_PX):
        for left in range(-_OVERLAP_PX, width, _PATCH_PX - _OVERLAP_PX):
            cells = _around(layout.kinds, top, left)
            first, *others = np.unique(cells).tolist()
            patch = _crop(rng, textures[first], first)
            for kind in others:
                patch.paste(_crop(rng, textures[kind], kind), mask=_share(cells >= kind, rough))
            if ink is not None and (pen := _around(layout.pen, top, left)).any():
                inked = ImageChops.multiply(patch, Image.new("RGB", patch.size, INKS[ink]))
                patch.paste(inked, mask=_share(pen).point([round(0.9 * value) for value in range(256)]))
            slide.paste(patch, (left, top), cover)
    _dust(rng, slide)
    return slide


def _textures(rng: np.random.Generator, stain: Stain, kinds: list[int]) -> dict[int, Image.Image]:
    """A texture of each kind, all of the same thickness."""
    seed = int(rng.integers(2**32))
    textures = {}
    for kind in kinds:
        tissue = Tissue(rng, 2 * _PATCH_PX if kind == TUMOUR else 3 * _PATCH_PX // 2)
        if kind == GLASS:
            tissue.pink += 0.01 * tissue.noise(3)
            tissue.blue += 0.01 * tissue.noise(2)
        else:
            TISSUES[KINDS[kind]](tissue)
        textures[kind] = Image.fromarray(stain.color(tissue, np.random.default_rng(seed)))
    return textures


def _crop(rng: np.random.Generator, texture: Image.Image, kind: int) -> Image.Image:
    """A part of a texture, turned and flipped; fibers keep their direction."""
    left, top = rng.integers(0, texture.width - _PATCH_PX + 1, 2).tolist()
    crop = texture.crop((left, top, left + _PATCH_PX, top + _PATCH_PX))
    turns = [Image.Transpose.ROTATE_180] if kind in (STROMA, MUSCLE) else list(Image.Transpose)
    number = int(rng.integers(len(turns) + 1))
    return crop.transpose(turns[number]) if number < len(turns) else crop


def _around(cells: np.ndarray, top: int, left: int) -> np.ndarray:
    """The cells of a patch and `_RIM` around it; beyond the slide, its edge repeated."""
    rows, columns = (
        np.clip(np.arange(_CELLS) + start // CELL_PX - _RIM, 0, side - 1)
        for start, side in zip((top, left), cells.shape, strict=True)
    )
    return cells[np.ix_(rows, columns)]


def _share(cells: np.ndarray, rough: Image.Image | None = None) -> Image.Image:
    """Share of each pixel of a patch that lies on the cells: smooth outlines, frayed by `rough`."""
    size = CELL_PX * _CELLS
    share = _gray(255 * cells).filter(ImageFilter.GaussianBlur(0.9)).resize((size, size), Image.Resampling.BICUBIC)
    if rough is not None:
        share = ImageChops.add(share, rough, offset=-128)
    rim = CELL_PX * _RIM
    return share.crop((rim, rim, rim + _PATCH_PX, rim + _PATCH_PX)).point(_SHARPER)


def _cover(rng: np.random.Generator) -> Image.Image:
    """Mask of a patch over those drawn before: all but wavy edges at its left and top."""
    rows, columns = np.mgrid[:_PATCH_PX, :_PATCH_PX]
    waves = np.clip(12 * noise(rng, _PATCH_PX, 50), -24, 24)
    return _gray(32 * (np.minimum(rows, columns) - _OVERLAP_PX / 2 + waves))


def _dust(rng: np.random.Generator, slide: Image.Image) -> None:
    """Specks on the glass."""
    draw = ImageDraw.Draw(slide)
    for _ in range(rng.poisson(1.5e-6 * slide.width * slide.height)):
        x, y = rng.uniform(0, slide.size)
        radius = rng.lognormal(0.6, 0.5)
        draw.ellipse(
            (x - radius * rng.uniform(1, 3), y - radius, x + radius, y + radius * rng.uniform(1, 2)),
            fill=_color(rng.uniform(70, 190) * rng.uniform(0.85, 1, 3)),
        )


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _color(values: np.ndarray) -> tuple[int, ...]:
    return tuple(np.rint(values).astype(int).tolist())
