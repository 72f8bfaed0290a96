"""One scan classified, and shown what in it speaks for the class."""

from __future__ import annotations

import json
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.ndimage import affine_transform

from monai_pipelines import __version__
from monai_pipelines.chains import did_you_mean
from monai_pipelines.explain import Explanation, explain_class, explained_classes, overlay_figure
from monai_pipelines.explain.overlay import cell_mm, resolution
from monai_pipelines.metrics import predicted_classes
from monai_pipelines.probabilities import probabilities
from monai_pipelines.runs.checkpoint import load_checkpoint
from monai_pipelines.runs.record import inference_config


def explain_scan(
    source: str | PathLike[str],
    image: str | PathLike[str],
    out: str | PathLike[str],
    method: str = "gradcam",
    stage: str | None = None,
    class_name: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """Classify one scan as the inference of a bundle does, and draw what in it speaks for a class.

    Writes ``explanation.png`` (`monai_pipelines.report.overlay_figure`), ``explanation.json``, and the map, 0 to 1, on
    the grid of the file: of a volume ``map.nii.gz`` with the scan's shape and affine, so that a viewer lays it over the
    DICOM series or NIfTI it comes from; of a 2D image ``map.png`` with as many rows and columns, black to white. What
    the chain cuts off is 0. Images in arrays (.npy, .npz) have no such grid: theirs is that of the network.

    Args:
        source: folder of a run, or folder or name of a bundle.
        image: one scan or image, as the bundle's inference takes them.
        out: folder.
        method, stage: of `monai_pipelines.explain.explain_class`.
        class_name: what is explained; None: the second of two classes, of more the predicted one, of several labels
            the likeliest.
        checkpoint: None: ``best.pt`` of the run, or what the bundle's inference takes.

    Returns:
        the content of ``explanation.json``: ``image`` (name of the file), ``checkpoint``, ``prob`` (by class, tempered
        where the checkpoint says so), ``predicted`` (names), ``threshold``, ``temperature``, ``explained``,
        ``method``, ``stage``, ``cells``, ``cell_px``, ``cell_mm``, ``resolution`` (in words), ``map`` (name of the
        file), ``fingerprint`` of the chain, ``epoch``, ``versions``.

    Raises:
        ValueError: no run or bundle, more than one image, a bundle of slides, a class that there is not.
        FileNotFoundError: no such checkpoint.
        RuntimeError: MONAI's, around that a file or folder of images is not there or empty.
        ChainMismatchError: the checkpoint was trained with another chain.
        ScanError: the image cannot be used.
    """
    given = {} if checkpoint is None else {"checkpoint": str(checkpoint)}
    config = inference_config(source, dataset_dir=str(image), **given)
    if config["prepare"]["evaluate"]["_target_"].endswith("PrepareBags"):
        raise ValueError(
            f"{source}: a bundle of slides; its inference draws where the network looked, as maps of attention "
            "(docs/README.md of the bundle)"
        )
    network, chain = config.get_parsed_content("network").eval(), config.get_parsed_content("chain")
    classes, multilabel = list(config.get_parsed_content("classes")), config.get_parsed_content("multilabel")
    trained = load_checkpoint(config.get_parsed_content("checkpoint"), network, chain, classes)
    if class_name is not None and class_name not in classes:
        near = did_you_mean(class_name, classes)
        raise ValueError(f"no class {class_name!r}{near}; there are {', '.join(classes)}")
    scan, shown = _read(config, image)
    batch, _ = config.get_parsed_content("prepare::evaluate")(
        {"image": torch.as_tensor(shown).as_subclass(torch.Tensor)[None]}, config.get_parsed_content("device")
    )
    with torch.no_grad():
        logits = config.get_parsed_content("inferer")(batch, network)
    prob = probabilities(logits, multilabel, trained["temperature"]).double().cpu().numpy()
    called = predicted_classes(prob, trained["threshold"], multilabel)[0]
    telling = explained_classes(prob, trained["threshold"], multilabel)[0]
    index = int(telling) if class_name is None else classes.index(class_name)
    found = explain_class(network, batch, index, method, stage, multilabel)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "image": Path(image).name,
        "checkpoint": str(config.get_parsed_content("checkpoint")),
        "prob": dict(zip(classes, prob[0].tolist(), strict=True)),
        "predicted": [n for n, yes in zip(classes, called, strict=True) if yes] if multilabel else [classes[called]],
        "threshold": trained["threshold"],
        "temperature": trained["temperature"],
        "explained": classes[index],
        "method": found.method,
        "stage": found.stage,
        "cells": list(found.cells),
        "cell_px": list(found.cell_px),
        "cell_mm": cell_mm(shown, found),
        "resolution": resolution(shown, found),
        "map": _write_map(folder, found, scan, shown),
        "fingerprint": chain.fingerprint(),
        "epoch": trained["epoch"],
        "versions": {"monai_pipelines": __version__, "monai": version("monai"), "torch": torch.__version__},
    }
    title, predicted = f"{classes[index]}, {prob[0, index]:.2f}", classes[index] in told["predicted"]
    overlay_figure(shown, found, classes[index], predicted, title).savefig(folder / "explanation.png", dpi=130)
    (folder / "explanation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _print(told, folder)
    return told


def _read(config: ConfigParser, image: str | PathLike[str]) -> tuple[MetaTensor | None, Any]:
    """The file as it is read, None where images lie in an array, and what the chain makes of it before the batch."""
    if "data" not in config:
        dataset = config.get_parsed_content("dataset")
        if len(dataset) != 1:
            raise ValueError(f"{image}: wanted one image, got {len(dataset)}; save the one you want by itself")
        return None, dataset[0]["image"]
    items = config.get_parsed_content("data")
    if len(items) != 1:
        raise ValueError(f"{image}: wanted one image, got {len(items)}, as {items[0]['name']}; name that one")
    load, *rest = config.get_parsed_content("preprocessing").steps.values()
    item = load({"image": items[0]["image"]})
    scan = item["image"]
    for step in rest:
        item = step(item)
    return scan, item["image"]


def _write_map(folder: Path, found: Explanation, scan: MetaTensor | None, shown: Any) -> str:
    """Write the map on the grid of the file; its name."""
    if found.map.ndim == 2:
        values = found.map if scan is None else _on_grid(found.map, shown, scan)
        Image.fromarray((255 * values).round().astype(np.uint8)).save(folder / "map.png")
        return "map.png"
    affine = np.eye(4) if scan is None else np.asarray(scan.affine, float)
    volume = nib.Nifti1Image(found.map if scan is None else _on_grid(found.map, shown, scan), affine)
    volume.set_sform(affine, code=1)  # scanner
    volume.set_qform(affine, code=1)
    volume.header.set_xyzt_units("mm")
    nib.save(volume, folder / "map.nii.gz")
    return "map.nii.gz"


def _on_grid(map_: NDArray[np.float32], shown: MetaTensor, scan: MetaTensor) -> NDArray[np.float32]:
    """The map at the pixels of the scan, linear; 0 where the network saw nothing of it."""
    dims = map_.ndim
    to_map = (np.linalg.inv(np.asarray(shown.affine, float)) @ np.asarray(scan.affine, float))[:dims]
    bordered = np.pad(map_, 1, mode="edge")  # half of the outer pixels lies beyond their centres
    size = tuple(scan.shape[1:])
    return affine_transform(bordered, to_map[:, :dims], to_map[:, -1] + 1, output_shape=size, order=1, cval=0)


def _print(told: dict[str, Any], folder: Path) -> None:
    table = Table("class", "probability", title=escape(f"predicted: {', '.join(told['predicted']) or 'none'}"))
    for name, prob in told["prob"].items():
        table.add_row(escape(name), f"{prob:.3f}")
    rule = "the likeliest" if told["threshold"] is None else f"by the threshold {np.round(told['threshold'], 3)}"
    warmth = "not tempered" if told["temperature"] is None else f"temperature {told['temperature']:.3g}"
    files = ", ".join(("explanation.png", "explanation.json", told["map"]))
    console = Console(soft_wrap=True)
    console.print(table)
    for line in (f"{rule}, {warmth}; explained: {told['explained']}", told["resolution"], f"wrote {folder}: {files}"):
        console.print(escape(line))
