"""One scan or image classified, and the evidence for a class in it."""

from __future__ import annotations

import json
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

from monai_pipelines.chains import Chain, did_you_mean
from monai_pipelines.explain.maps import explain_class, explained_classes
from monai_pipelines.explain.overlay import cell_mm, overlay_figure, resolution
from monai_pipelines.metrics import predicted_classes
from monai_pipelines.runs import Trained, inference_config
from monai_pipelines.transforms import LoadSlided
from monai_pipelines.versions import library_versions


def explain_scan(
    source: str | PathLike[str],
    image: str | PathLike[str],
    out: str | PathLike[str],
    method: str = "gradcam",
    stage: str | None = None,
    class_name: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """Classify one scan as the inference of a bundle does, and draw the evidence for a class.

    Writes ``explanation.png`` (`overlay_figure`), ``explanation.json``, and the map, 0 to 1, on the grid of the file:
    of a volume ``map.nii.gz`` with the scan's shape and affine, so that a viewer lays it over the DICOM series or NIfTI
    it comes from; of a 2D image ``map.png`` with as many rows and columns, black to white. What the chain cuts off is
    0. Images in arrays (.npy, .npz) have no such grid: the network's is used.

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
        if the checkpoint says so), ``predicted`` (names), ``threshold``, ``temperature``, ``explained``,
        ``method``, ``stage``, ``cells``, ``cell_px``, ``cell_mm``, ``resolution`` (in words), ``map`` (name of the
        file), ``fingerprint`` of the chain, ``epoch``, ``versions``.

    Raises:
        ValueError: no run or bundle, more than one image, a bundle of slides, a detector, a class that there is not.
        FileNotFoundError: no such checkpoint.
        RuntimeError: MONAI's, around that a file or folder of images is not there or empty.
        ChainMismatchError: the checkpoint was trained with another chain.
        ScanError: the image cannot be used.
    """
    config = inference_config(
        source, dataset_dir=str(image), **({} if checkpoint is None else {"checkpoint": str(checkpoint)})
    )
    model = config.get_parsed_content("model")
    if model.detects:
        raise ValueError(f"{source}: a detector, which draws its evidence itself: run the inference of its bundle")
    chain, shown = _read(config, image)
    network, classes, multilabel = model.network.eval(), list(model.classes), model.multilabel
    trained = Trained(model, config.get_parsed_content("checkpoint"))
    decisions = trained.decisions
    if class_name is not None and class_name not in classes:
        near = did_you_mean(class_name, classes)
        raise ValueError(f"no class {class_name!r}{near}; there are {', '.join(classes)}")
    batch, _ = model.prepare({"image": torch.as_tensor(shown).as_subclass(torch.Tensor)[None]}, model.device)
    with torch.no_grad():
        logits = model.inferer(batch, network)
    prob = trained.probabilities({"pred": logits})["pred"].cpu().numpy()
    predicted = predicted_classes(prob, decisions.threshold, multilabel)[0]
    likely = explained_classes(prob, decisions.threshold, multilabel)[0]
    index = int(likely) if class_name is None else classes.index(class_name)
    explanation = explain_class(network, batch, index, method, stage, multilabel)
    names = [n for n, yes in zip(classes, predicted, strict=True) if yes] if multilabel else [classes[predicted]]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "image": Path(image).name,
        "checkpoint": str(config.get_parsed_content("checkpoint")),
        "prob": dict(zip(classes, prob[0].tolist(), strict=True)),
        "predicted": names,
        "threshold": decisions.threshold,
        "temperature": decisions.temperature,
        "explained": classes[index],
        "method": explanation.method,
        "stage": explanation.stage,
        "cells": list(explanation.cells),
        "cell_px": list(explanation.cell_px),
        "cell_mm": cell_mm(shown, explanation),
        "resolution": resolution(shown, explanation),
        "map": _write_map(folder, explanation.map, chain, shown),
        "fingerprint": model.chain.fingerprint(),
        "epoch": decisions.epoch,
        "versions": library_versions(),
    }
    title = f"{classes[index]}, {prob[0, index]:.2f}"
    figure = overlay_figure(shown, explanation, classes[index], classes[index] in names, title)
    figure.savefig(folder / "explanation.png", dpi=130)
    (folder / "explanation.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _print(summary, folder)
    return summary


def _read(config: ConfigParser, image: str | PathLike[str]) -> tuple[Chain | None, Any]:
    """The chain before the batch, None where images lie in an array, and what it makes of the file."""
    if "data" not in config:
        dataset = config.get_parsed_content("dataset")
        if len(dataset) != 1:
            raise ValueError(f"{image}: wanted one image, got {len(dataset)}; save the one you want by itself")
        return None, dataset[0]["image"]
    items = config.get_parsed_content("data")
    if len(items) != 1:
        raise ValueError(f"{image}: wanted one image, got {len(items)}, as {items[0]['name']}; name that one")
    chain = config.get_parsed_content("preprocessing")
    if isinstance(next(iter(chain.steps.values())), LoadSlided):
        raise ValueError(
            f"{image}: a slide; the inference of its bundle draws where the network looked, as maps of attention "
            "(docs/README.md of the bundle)"
        )
    return chain, chain(items[0]["image"])


def _write_map(folder: Path, map_: NDArray[np.float32], chain: Chain | None, shown: Any) -> str:
    """Write the map on the grid of the file; its name."""
    values = MetaTensor(torch.from_numpy(map_)[None])
    if chain is not None:
        values = chain.inverse(values.copy_meta_from(shown))
    if map_.ndim == 2:
        Image.fromarray((255 * values[0].numpy()).round().astype(np.uint8)).save(folder / "map.png")
        return "map.png"
    affine = values.affine.numpy()
    volume = nib.Nifti1Image(values[0].numpy(), affine)
    volume.set_sform(affine, code=1)  # scanner
    volume.set_qform(affine, code=1)
    volume.header.set_xyzt_units("mm")
    nib.save(volume, folder / "map.nii.gz")
    return "map.nii.gz"


def _print(summary: dict[str, Any], folder: Path) -> None:
    table = Table("class", "probability", title=escape(f"predicted: {', '.join(summary['predicted']) or 'none'}"))
    for name, prob in summary["prob"].items():
        table.add_row(escape(name), f"{prob:.3f}")
    rule = "the likeliest" if summary["threshold"] is None else f"by the threshold {np.round(summary['threshold'], 3)}"
    tempering = "no temperature" if summary["temperature"] is None else f"temperature {summary['temperature']:.3g}"
    files = ", ".join(("explanation.png", "explanation.json", summary["map"]))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(escape(f"{rule}, {tempering}; explained: {summary['explained']}"))
    console.print(escape(summary["resolution"]))
    console.print(escape(f"wrote {folder}: {files}"))
