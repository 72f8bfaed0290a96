"""One scan or image classified, and the evidence for a class in it."""

from __future__ import annotations

import json
import logging
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from monai_pipelines.chains import Chain, did_you_mean
from monai_pipelines.errors import ScanError
from monai_pipelines.explain.maps import explain_class, explained_classes
from monai_pipelines.explain.overlay import cell_mm, overlay_figure, resolution
from monai_pipelines.metrics import predicted_classes
from monai_pipelines.remote import as_place
from monai_pipelines.report.words import decision_words
from monai_pipelines.runs import Trained, inference_config
from monai_pipelines.transforms import LoadSlided
from monai_pipelines.versions import library_versions

logger = logging.getLogger(__name__)


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
        if the checkpoint has a temperature), ``predicted`` (names), ``words`` (the decision), ``threshold``,
        ``temperature``, ``explained``, ``method``, ``stage``, ``cells``, ``cell_px``, ``cell_mm``, ``resolution`` (in
        words), ``map`` (name of the file), ``fingerprint`` of the chain, ``epoch``, ``versions``.

    Raises:
        ValueError: no run or bundle, more than one image (see `explain_scans`), a bundle of slides, a detector, a class
            that there is not.
        FileNotFoundError: no such checkpoint.
        RuntimeError: MONAI's, around that a file or folder of images is not there or empty.
        ChainMismatchError: the checkpoint was trained with another chain.
        ScanError: the image cannot be used.
    """
    found = _Found(source, image, checkpoint)
    if len(found.items) != 1:
        raise ValueError(
            f"{image}: wanted one image, got {len(found.items)}, as {found.items[0]['name']}; name that one"
        )
    return found.explain_only(Path(out), method, stage, class_name)


def explain_scans(
    source: str | PathLike[str],
    images: str | PathLike[str],
    out: str | PathLike[str],
    method: str = "gradcam",
    stage: str | None = None,
    class_name: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """`explain_scan` for one image or many: of many, each in a folder of its name in ``out``.

    The arguments are those of `explain_scan`; ``images`` may be a folder or table. Of many, those that cannot be used
    are logged with the reason and left out.

    Returns:
        the summaries.

    Raises:
        ScanError: of many none can be used; see also `explain_scan`.
    """
    found = _Found(source, images, checkpoint)
    if len(found.items) == 1:
        return [found.explain_only(Path(out), method, stage, class_name)]
    summaries, console = [], Console(soft_wrap=True, highlight=False)
    for index, item in enumerate(track(found.items, "explaining")):
        try:
            folder = Path(out, _inside(item["name"]))
            summary = found.explain(index, folder, method, stage, class_name)
        except ScanError as error:
            logger.warning("skipped %s: %s", item["name"], error.reason)
            continue
        console.print(escape(f"{item['name']}: {summary['words']}"))
        summaries.append(summary)
    if not summaries:
        raise ScanError(str(images), f"none of {len(found.items)} can be used")
    console.print(escape(f"wrote {out}: a folder for each of {len(summaries)}"))
    return summaries


def _inside(name: str) -> str:
    """The name, or its last part where it would lead out of a folder."""
    path = Path(name)
    return path.name if path.anchor or ".." in path.parts else name


class _Found:
    """A model, and the images that it is to explain."""

    def __init__(
        self, source: str | PathLike[str], images: str | PathLike[str], checkpoint: str | PathLike[str] | None
    ) -> None:
        named = {} if checkpoint is None else {"checkpoint": str(checkpoint)}
        self.config = inference_config(source, dataset_dir=str(images), **named)
        self.model = self.config.get_parsed_content("model")
        if self.model.detects:
            raise ValueError(f"{source}: a detector, which draws its evidence itself: run the inference of its bundle")
        self.name = as_place(images).name
        self.in_arrays = "data" not in self.config
        dataset = self.config.get_parsed_content("dataset" if self.in_arrays else "data")
        self.items = dataset.data if self.in_arrays else dataset
        self.dataset = dataset
        self.trained = Trained(self.model, self.config.get_parsed_content("checkpoint"))

    def explain(
        self, index: int, folder: Path, method: str, stage: str | None, class_name: str | None
    ) -> dict[str, Any]:
        """Write the files of an image; its summary."""
        model = self.model
        chain, shown = self._read(index)
        network, classes, multilabel = model.network.eval(), list(model.classes), model.multilabel
        decisions = self.trained.decisions
        if class_name is not None and class_name not in classes:
            near = did_you_mean(class_name, classes)
            raise ValueError(f"no class {class_name!r}{near}; there are {', '.join(classes)}")
        batch, _ = model.prepare({"image": torch.as_tensor(shown).as_subclass(torch.Tensor)[None]}, model.device)
        with torch.no_grad():
            logits = model.inferer(batch, network)
        prob = self.trained.probabilities({"pred": logits})["pred"].cpu().numpy()
        predicted = predicted_classes(prob, decisions.threshold, multilabel)[0]
        likely = explained_classes(prob, decisions.threshold, multilabel)[0]
        k = int(likely) if class_name is None else classes.index(class_name)
        explanation = explain_class(network, batch, k, method, stage, multilabel)
        names = [n for n, yes in zip(classes, predicted, strict=True) if yes] if multilabel else [classes[predicted]]
        folder.mkdir(parents=True, exist_ok=True)
        words = decision_words(prob[0].tolist(), classes, decisions.threshold, multilabel)
        summary = {
            "image": self.name if len(self.items) == 1 else self.items[index]["name"],
            "checkpoint": str(self.config.get_parsed_content("checkpoint")),
            "prob": dict(zip(classes, prob[0].tolist(), strict=True)),
            "predicted": names,
            "words": words,
            "threshold": decisions.threshold,
            "temperature": decisions.temperature,
            "explained": classes[k],
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
        figure = overlay_figure(shown, explanation, classes[k], classes[k] in names, words)
        figure.savefig(folder / "explanation.png", dpi=130)
        (folder / "explanation.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return summary

    def explain_only(self, folder: Path, method: str, stage: str | None, class_name: str | None) -> dict[str, Any]:
        """Write the files of the only image and print the result; its summary."""
        summary = self.explain(0, folder, method, stage, class_name)
        _print(summary, folder)
        return summary

    def _read(self, index: int) -> tuple[Chain | None, Any]:
        """The chain before the batch, None where images lie in an array, and what it makes of the file."""
        if self.in_arrays:
            return None, self.dataset[index]["image"]
        chain, image = self.config.get_parsed_content("preprocessing"), self.items[index]["image"]
        if isinstance(next(iter(chain.steps.values())), LoadSlided):
            raise ValueError(
                f"{image}: a slide; the inference of its bundle draws where the network looked, as maps of attention "
                "(docs/README.md of the bundle)"
            )
        return chain, chain(image)


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
    table = Table("class", "probability", title=escape(summary["words"]))
    for name, prob in summary["prob"].items():
        table.add_row(escape(name), f"{prob:.3f}")
    tempering = "no temperature" if summary["temperature"] is None else f"temperature {summary['temperature']:.3g}"
    files = ", ".join(("explanation.png", "explanation.json", summary["map"]))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(escape(f"{tempering}; explained: {summary['explained']}"))
    console.print(escape(summary["resolution"]))
    console.print(escape(f"wrote {folder}: {files}"))
