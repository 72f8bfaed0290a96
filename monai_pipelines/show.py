"""Chains and bundles told in the terminal, and drawn."""

from __future__ import annotations

import difflib
import re
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from monai_pipelines.chains import Chain, chain_file, load_chain
from monai_pipelines.declared import declared_path, list_declared

_TOP_LEVEL = re.compile(r"^(?P<name>\w+):\s*(?P<value>[^#]*?)\s*(?:\s#\s*(?P<comment>.*))?$")


def show_all() -> None:
    """Print the names of all chains and bundles."""
    table = Table("chain", "steps", title="Chains: load_chain(name)")
    for name in list_declared("transforms"):
        table.add_row(name, ", ".join(load_chain(name).step_names))
    bundles = Table(
        "bundle", "configs", title="Bundles: python -m monai.bundle run --bundle_root ROOT --config_file ..."
    )
    for name in list_declared("bundles"):
        configs = declared_path("bundles") / name / "configs"
        bundles.add_row(name, ", ".join(sorted(p.name for p in configs.glob("*.yaml"))))
    Console().print(table, bundles)


def show_one(name: str) -> None:
    """Print knobs, steps and numbers of a chain, or the numbers and chains of a bundle."""
    bundle = Path(name) if (Path(name) / "configs").is_dir() else declared_path("bundles") / name
    if not (bundle / "configs").is_dir():
        near = difflib.get_close_matches(name, list_declared("bundles"), n=1)
        if near and not difflib.get_close_matches(name, list_declared("transforms")):
            raise FileNotFoundError(f"no chain or bundle {name!r} (did you mean {near[0]!r}?)")
        chain = load_chain(name)
        _print_knobs(chain_file(name), chain.describe()["knobs"])
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


def draw_chain(name: str, scan: str | PathLike[str], file: str | PathLike[str], **knobs: Any) -> None:
    """Draw an image, or the middle axial and coronal slice of a scan, after each step of a chain that loads it.

    Args:
        name: the chain.
        scan: what it loads: a scan, or a 2D image.
        file: the picture.
        knobs: of the chain.

    Raises:
        ValueError: a chain that starts from what is loaded already.
    """
    chain = load_chain(name, **knobs)
    first = type(next(iter(chain.steps.values()))).__name__
    if not first.startswith("Load"):
        raise ValueError(
            f"chain {name} starts with {first}, not with a file; draw one that loads, such as lung_ct or image2d"
        )
    data: Any = {chain.key: str(scan)}
    drawn: list[tuple[str, Any, Any]] = []
    for step, transform in chain.steps.items():
        data = transform(data)
        drawn.append((step, data[chain.key], data.get("lungs")))
    rows = 1 if drawn[0][1].ndim == 3 else 2
    figure = Figure(figsize=(2.6 * len(drawn), 0.4 + 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, len(drawn), squeeze=False)
    for column, (step, image, mask) in zip(axes.T, drawn, strict=True):
        told = f"{step}\n{'x'.join(map(str, image.shape))} {str(image.dtype).removeprefix('torch.')}"
        if rows == 1:
            values = _draw_image(column[0], np.asarray(image))
            column[0].set_title(f"{told}\n{values}", fontsize=9)
            continue
        mm = " x ".join(f"{v:.2g}" for v in image.pixdim)
        column[0].set_title(f"{told}\n{mm} mm", fontsize=9)
        for axis, plane in zip(column, (2, 1), strict=True):
            _draw_plane(axis, image, mask, plane)
    with matplotlib.rc_context({"savefig.dpi": 130}):
        figure.savefig(file)


def _draw_image(axis: Any, image: NDArray[Any]) -> str:
    """An image (C, H, W): RGB, or the first channel in grey; values outside of [0, 1] are scaled to be seen.

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


def _draw_plane(axis: Any, image: Any, mask: Any, normal: int) -> None:
    """One slice through the middle, patient right on the viewer's left, the lungs outlined."""
    import nibabel as nib

    volume = nib.Nifti1Image(np.asarray(image[0], np.float32), image.affine.numpy())
    volume = nib.as_closest_canonical(volume)
    values, mm = volume.get_fdata(dtype=np.float32), volume.header.get_zooms()
    middle = values.shape[normal] // 2
    others = [a for a in range(3) if a != normal]
    low, high = (-1000, 400) if values.min() < -10 else (0, 1)
    edges = [volume.affine[a, 3] + np.array([-0.5, values.shape[a] - 0.5]) * mm[a] for a in others]
    extent = [edges[0][1], edges[0][0], edges[1][0], edges[1][1]]
    axis.imshow(values.take(middle, normal)[::-1].T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
    axis.set_axis_off()
    axis.set_anchor("N")
    axis.text(0.03, 0.9, "R", color="white", fontsize=9, transform=axis.transAxes)
    if mask is not None:
        inside = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(mask[0], np.uint8), mask.affine.numpy()))
        at = np.linalg.inv(inside.affine) @ volume.affine @ np.array([s // 2 for s in values.shape] + [1.0])
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
            table.add_row(match["name"], escape(str(value)), escape(match["comment"] or ""))
    Console().print(table)


def _print_steps(chain: Chain, entry: str = "") -> None:
    described = chain.describe()
    title = f"{entry}{described['name']}, fingerprint {chain.fingerprint()}"
    table = Table("step", "transform", "arguments", title=title)
    for step, arguments in described["steps"].items():
        target = arguments.pop("_target_")
        told = ", ".join(f"{k}={v}" for k, v in arguments.items() if k != "allow_missing_keys")
        table.add_row(step, target.rpartition(".")[2], escape(told))
    Console().print(table)
