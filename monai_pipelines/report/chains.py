"""Chains and bundles printed in the terminal, and drawn."""

from __future__ import annotations

import math
import re
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from monai_pipelines.chains import Chain, chain_file, did_you_mean, load_chain
from monai_pipelines.data import read_image_boxes
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.slides import Slide, Tiles
from monai_pipelines.transforms.boxes import BOX_AFFINE, BOX_KEYS, edges_affine, find_box_affine, move_boxes
from monai_pipelines.transforms.random import RandStepd
from monai_pipelines.transforms.slide import ReadTilesd

NUM_TILES = 25  # drawn of a slide
NUM_DRAWS = 8  # of an augmentation
PREPARATION: dict[int, tuple[dict[str, Any], tuple[int | None, ...]]] = {  # by dimensions: a chain, and planes to draw
    2: ({"name": "image2d", "fit": "pad", "steps": {"normalize": None}}, (None,)),
    3: ({"name": "lung_ct", "no_lungs": "flag"}, (2, 1)),
}
BOX_COLOR = "#d55e00"
NO_BOXES = np.zeros((0, 6))
_TOP_LEVEL = re.compile(r"^(?P<name>\w+):\s*(?P<value>[^#]*?)\s*(?:\s#\s*(?P<comment>.*))?$")


def show_one(name: str) -> None:
    """Print knobs, steps and numbers of a chain, or the numbers and chains of a bundle."""
    bundle = Path(name) if (Path(name) / "configs").is_dir() else declared_path("bundles") / name
    if not (bundle / "configs").is_dir():
        try:
            file = chain_file(name)
        except FileNotFoundError:
            chains, bundles = list_declared("transforms"), list_declared("bundles")
            near = did_you_mean(name, [*chains, *bundles])
            there = f"chains: {', '.join(chains)}; bundles: {', '.join(bundles)}"
            raise FileNotFoundError(f"no chain or bundle {name!r}{near}; {there}") from None
        chain = load_chain(file)
        _print_knobs(file, chain.describe()["knobs"])
        _print_steps(chain)
        return
    Console().print(f"[bold]{bundle.name}[/bold]  {bundle}")
    train = bundle / "configs" / "train.yaml"
    _print_knobs(train)
    config = ConfigParser.load_config_file(train)
    parser = ConfigParser(config)
    for entry, value in config.items():
        if isinstance(value, dict) and value.get("_target_") == "monai_pipelines.load_chain":
            _print_steps(parser.get_parsed_content(entry), f"{entry}: ")


def draw_chain(
    name: str,
    scan: str | PathLike[str],
    file: str | PathLike[str],
    boxes: str | PathLike[str] | None = None,
    **knobs: Any,
) -> None:
    """Draw what a chain makes of a file after each step: an image, two slices of a scan, tissue and tiles of a slide.

    Of an augmentation, which starts from what `image2d` or `lung_ct` makes of the file, the original and eight draws.

    Args:
        name: the chain.
        scan: what it loads: a scan, a 2D image or a slide.
        file: the picture.
        boxes: file of boxes (`read_boxes`), of which those of the scan are drawn; slices go through the largest.
        knobs: of the chain.

    Raises:
        ValueError: another chain that starts from what is loaded already, or boxes for an augmentation.
    """
    chain = load_chain(name, **knobs)
    first = next(iter(chain.steps.values()))
    if isinstance(first, RandStepd) and first.step.spatial_dims in PREPARATION:
        if boxes is not None:
            raise ValueError(f"chain {name} places no boxes; draw them with lung_ct_detection or xray_detection")
        _draw_augmentation(chain, first.step.spatial_dims, scan, file)
        return
    if not type(first).__name__.startswith("Load"):
        start = f"chain {name} starts with {type(first).__name__}, not with a file"
        raise ValueError(f"{start}; draw one that loads, such as lung_ct or image2d")
    data: Any = {chain.key: str(scan)}
    if boxes is not None:
        data |= _box_entries(read_image_boxes(scan, boxes))
    drawn: list[tuple[str, Any, Any, Any]] = []
    for step, transform in chain.steps.items():
        if isinstance(transform, ReadTilesd):
            tiles = data[chain.key]
            data[chain.key] = tiles[np.linspace(0, len(tiles) - 1, min(len(tiles), NUM_TILES)).round().astype(int)]
        data = transform(data)
        mask = data.get("lungs", data.get("tissue"))
        drawn.append((step, data[chain.key], mask, _boxes_in(data, data[chain.key])))
    slide = isinstance(drawn[0][1], Slide)
    rows = 1 if slide or drawn[0][1].ndim == 3 else 2
    figure = Figure(figsize=(2.6 * len(drawn), 0.4 + 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, len(drawn), squeeze=False)
    for column, (step, image, mask, found) in zip(axes.T, drawn, strict=True):
        if slide:
            text = _draw_slide(column[0], image, mask)
        else:
            text = f"{'x'.join(map(str, image.shape))} {str(image.dtype).removeprefix('torch.')}\n"
            if rows == 1:
                text += _draw_image(column[0], np.asarray(image))
                _draw_boxes(column[0], found[:, [1, 0, 3, 2]] - 0.5)
            else:
                text += " x ".join(f"{v:.2g}" for v in image.pixdim) + " mm"
                for axis, plane in zip(column, (2, 1), strict=True):
                    _draw_plane(axis, image, mask, plane, found)
        column[0].set_title(f"{step}\n{text}", fontsize=9)
    with matplotlib.rc_context({"savefig.dpi": 130}):
        figure.savefig(file)


def _draw_augmentation(chain: Chain, dims: int, scan: str | PathLike[str], file: str | PathLike[str]) -> None:
    """The prepared file and `NUM_DRAWS` random changes of it, three to a row, a scan by two slices each."""
    prepare, planes = PREPARATION[dims]
    original = load_chain(**prepare)(str(scan))
    chain.set_random_state(0)  # type: ignore[attr-defined]
    images = {"original": original}
    for number in range(1, NUM_DRAWS + 1):
        drawn = torch.as_tensor(chain(original)).as_subclass(torch.Tensor)
        images[f"draw {number}"] = MetaTensor(drawn, affine=original.affine)  # the voxels as a network gets them
    columns = 3 * len(planes)
    figure = Figure(figsize=(2.6 * columns, 2.8 * len(images) / 3), layout="constrained")
    axes = figure.subplots(len(images) // 3, columns).reshape(-1, len(planes))
    for pair, (title, image) in zip(axes, images.items(), strict=True):
        for axis, plane in zip(pair, planes, strict=True):
            if plane is None:
                _draw_image(axis, np.asarray(image))
            else:
                _draw_plane(axis, image, None, plane, side=title == "original")
        pair[0].set_title(title, fontsize=10, loc="left")
    figure.suptitle(f"{chain.describe()['name']}, seed 0, after {prepare['name']}", fontsize=10)
    with matplotlib.rc_context({"savefig.dpi": 130}):
        figure.savefig(file)


def _box_entries(boxes: NDArray[np.float64]) -> dict[str, Any]:
    """An item's entries for boxes of one class."""
    return dict(zip(BOX_KEYS, (boxes, np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool)), strict=True))


def _boxes_in(data: dict[str, Any], image: Any) -> NDArray[np.float64]:
    """An item's boxes, edges in its image; before they are placed in it, by its affine."""
    dims = image.ndim - 1 if isinstance(image, torch.Tensor) else 2
    if "boxes" not in data:
        return np.zeros((0, 2 * dims))
    boxes = torch.as_tensor(data["boxes"])
    if not isinstance(image, torch.Tensor) or boxes.shape[1] != 2 * dims:
        raise ValueError(f"--boxes: boxes with {boxes.shape[1]} numbers do not fit {type(image).__name__} in {dims}D")
    if BOX_AFFINE not in data:
        boxes = move_boxes(boxes, torch.linalg.inv(find_box_affine(image)))
    return boxes.double().numpy()


def _draw_boxes(axis: Any, boxes: NDArray[np.float64]) -> None:
    """Rectangles (N, 4): minima, then maxima, horizontal axis first."""
    squares = [Rectangle((x, y), x_max - x, y_max - y) for x, y, x_max, y_max in boxes]
    axis.add_collection(PatchCollection(squares, facecolor="none", edgecolor=BOX_COLOR, linewidth=0.9), autolim=False)


def _draw_slide(axis: Any, found: Any, mask: Any) -> str:
    """A slide with the outline of its tissue, the tiles on it, or a sheet of tiles (N, 3, H, W).

    Returns:
        what it is.
    """
    axis.set_axis_off()
    axis.set_anchor("N")
    if not isinstance(found, Slide | Tiles):
        wide = math.ceil(math.sqrt(len(found)))
        sheet = np.full((wide * math.ceil(len(found) / wide), *found.shape[1:]), 255, np.uint8)
        sheet[: len(found)] = found
        rows = sheet.reshape(-1, wide, *found.shape[1:]).transpose(0, 3, 1, 4, 2)
        axis.imshow(rows.reshape(-1, wide * found.shape[3], 3))
        return f"{len(found)} of them, {found.shape[3]} px\n{found.meta['mpp']:.3g} um/px"
    slide = found if isinstance(found, Slide) else found.slide
    if mask is None:
        axis.imshow(slide.thumbnail(slide.mpp * max(1, max(slide.size) / 500))[0])
        return f"{slide.size[0]} x {slide.size[1]} px\n{slide.mpp:.4g} um/px"
    tissue, downsample = np.asarray(mask[0]), mask.meta["downsample"]
    axis.imshow(mask.meta["thumbnail"])
    if isinstance(found, Slide):
        if not tissue.all():
            axis.contour(tissue, [0.5], colors="#0072b2", linewidths=1)
        return f"{tissue.sum() * (downsample * slide.mpp / 1000) ** 2:.3g} mm2\n{downsample * slide.mpp:.3g} um/px"
    side = found.size.level0_px / downsample
    squares = [Rectangle(corner, side, side) for corner in found.coords / downsample - 0.5]
    axis.add_collection(PatchCollection(squares, facecolor="none", edgecolor="#0072b2", linewidth=0.6))
    return f"{len(found)} tiles of {found.size.tile_px} px\n{found.size.mpp:.3g} um/px"


def _draw_image(axis: Any, image: NDArray[Any]) -> str:
    """An image (C, H, W): RGB, or the first channel in gray; values outside of [0, 1] are scaled to be seen.

    Returns:
        the range of its values.
    """
    low, high = float(image.min()), float(image.max())
    if image.dtype == np.uint8:
        shown = image / 255
    elif low >= 0 and high <= 1:
        shown = image
    else:
        shown = (image - low) / (high - low or 1)
    if len(image) == 3:
        axis.imshow(shown.transpose(1, 2, 0))
    else:
        axis.imshow(shown[0], cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_anchor("N")
    return f"{low:.3g} to {high:.3g}"


def _draw_plane(
    axis: Any, image: Any, mask: Any, normal: int, boxes: NDArray[np.float64] = NO_BOXES, side: bool = True
) -> None:
    """One slice through the largest box or the middle, patient right on the viewer's left, the lungs outlined."""
    import nibabel as nib

    volume = nib.Nifti1Image(np.asarray(image[0], np.float32), image.affine.numpy())
    volume = nib.as_closest_canonical(volume)
    values, mm = volume.get_fdata(dtype=np.float32), volume.header.get_zooms()
    to_shown = torch.from_numpy(np.linalg.inv(volume.affine) @ image.affine.numpy())
    moved = move_boxes(torch.from_numpy(boxes), edges_affine(to_shown)).numpy()
    middle = values.shape[normal] // 2
    if len(moved):
        largest = moved[(moved[:, 3:] - moved[:, :3]).prod(axis=1).argmax()]
        middle = int(np.clip((largest[normal] + largest[normal + 3]) / 2, 0, values.shape[normal] - 1))
    others = [a for a in range(3) if a != normal]
    low, high = (-1000, 400) if values.min() < -10 else (0, 1)
    edges = [volume.affine[a, 3] + np.array([-0.5, values.shape[a] - 0.5]) * mm[a] for a in others]
    extent = [edges[0][1], edges[0][0], edges[1][0], edges[1][1]]
    axis.imshow(values.take(middle, normal)[::-1].T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
    axis.set_axis_off()
    axis.set_anchor("N")
    cut = moved[(moved[:, normal] < middle + 1) & (moved[:, normal + 3] > middle)]
    corners = [edges[k][0] + cut[:, a + end] * mm[a] for end in (0, 3) for k, a in enumerate(others)]
    _draw_boxes(axis, np.stack(corners, axis=1))
    if side:
        axis.text(0.03, 0.9, "R", color="white", fontsize=9, transform=axis.transAxes)
    if mask is not None:
        inside = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(mask[0], np.uint8), mask.affine.numpy()))
        place = [middle if a == normal else s // 2 for a, s in enumerate(values.shape)]
        at = np.linalg.inv(inside.affine) @ volume.affine @ np.array([*place, 1.0])
        filled = np.asarray(inside.dataobj).take(int(np.clip(round(at[normal]), 0, inside.shape[normal] - 1)), normal)
        zooms = inside.header.get_zooms()
        grid = [inside.affine[a, 3] + np.arange(inside.shape[a]) * zooms[a] for a in others]
        if 0 < filled.mean() < 1:
            axis.contour(grid[0], grid[1], filled.T, [0.5], colors="#e69f00", linewidths=1)


def _print_knobs(file: Path, values: dict[str, Any] | None = None) -> None:
    table = Table("knob", "value", Column("meaning", overflow="fold"), title=f"{file.name}")
    for line in file.read_text().splitlines():
        match = _TOP_LEVEL.match(line)
        if match is None or not match["value"] or match["value"].startswith("{"):
            continue
        if values or match["comment"]:
            value = values[match["name"]] if values else match["value"]
            table.add_row(match["name"], escape(_text(value)), escape(match["comment"] or ""))
    Console().print(table)


def _text(value: Any) -> str:
    return "null" if value is None else str(value)  # as in the chain's file


def _print_steps(chain: Chain, entry: str = "") -> None:
    described = chain.describe()
    title = f"{entry}{described['name']}, fingerprint {chain.fingerprint()}"
    table = Table("step", "transform", "arguments", title=title)
    for step, arguments in described["steps"].items():
        target = arguments.pop("_target_")
        values = ", ".join(f"{k}={_text(v)}" for k, v in arguments.items() if k != "allow_missing_keys")
        table.add_row(step, target.rpartition(".")[2], escape(values))
    Console().print(table)
