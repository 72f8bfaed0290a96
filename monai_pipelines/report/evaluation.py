"""The end of an evaluation: predictions beside the shortcut baselines, written as a report and into TensorBoard."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from monai_pipelines.data.overlap import audit_splits
from monai_pipelines.data.split import SPLITS
from monai_pipelines.metrics import shortcut_baselines
from monai_pipelines.metrics.classification import Threshold
from monai_pipelines.report.embedding import embed, embedding_figure, principal_components, stratified_indices
from monai_pipelines.report.figures import png_bytes
from monai_pipelines.report.page import DPI, write_report
from monai_pipelines.report.pictures import images_figure, in_turn
from monai_pipelines.report.predictions import class_name
from monai_pipelines.report.results import class_table, confident_mistakes
from monai_pipelines.report.saved import Evaluation, picture
from monai_pipelines.report.tensorboard import log_evaluation
from monai_pipelines.report.words import at_threshold, decision_words
from monai_pipelines.runs import Trained
from monai_pipelines.runs.record import check_subgroups

logger = logging.getLogger(__name__)

Pictures = Sequence[tuple[str, Any]]

NUM_IMAGES, NUM_VOLUMES = 12, 8  # shown as samples, and as many as mistakes
NUM_FITTED = 5000  # training images that the shortcut baselines are fitted on
NUM_POINTS = 2000  # test images in an embedding
SIDE_IMAGE, SIDE_VOLUME = 32, 16  # pixels or voxels of what is embedded as raw pixels
SIDE_LOOKED = 1200  # pixels of a picture of where the network looked, at most


def report_evaluation(
    output_dir: str | PathLike[str],
    title: str,
    trained: Trained,
    rows: Sequence[dict[str, Any]],
    datasets: Any,
    features: ArrayLike,
    unit: str = "image",
    key_metric: str = "roc_auc",
    subgroups: Sequence[str] = (),
    explanations: Sequence[Any] = (),
    evidence_peak: Callable[[Any, int], Sequence[int] | None] | None = None,
) -> dict[str, Any]:
    """Write the report of predictions on the test set, with shortcut baselines fitted on the training set.

    The baselines are fitted on 5,000 training images at most, embeddings show 2,000 test images at most, both drawn
    with every class's share; every test image is loaded once for them. What was found is kept in ``evaluation.json``
    and ``pictures/``, from which `rebuild_report` renders the page again. Pictures, curves and embeddings also go to
    TensorBoard, ``output_dir/tensorboard/evaluation``.

    Args:
        output_dir: folder of the run; its ``history.json`` and ``run.json`` are used if they exist.
        title: of the page.
        trained: what was evaluated.
        rows: of `CollectPredictions`, in the order of ``datasets.test``.
        datasets: ``train``, ``validation`` and ``test``, each with ``data``, ``skipped`` and items that have ``image``
            and, for the baselines, ``shortcut``: name -> features (F,).
        features: (N, F) of `CollectFeatures`, in the order of ``datasets.test``.
        unit: what the page calls an input: image, scan or slide.
        key_metric: validation metric that chose the best epoch, where the checkpoint does not name it.
        subgroups: columns of the table, such as scanner or sex; metrics are reported for each of their values.
        explanations: of where the network looked, such as `ExplainSlides`: each with ``results`` (plain data) and
            ``pictures``: (caption, image (3, h, w) uint8).
        evidence_peak: (item, class index) -> voxel with the most evidence for a class, where mistakes in volumes are
            cut; None: at the default slices.

    Returns:
        the content of ``metrics.json``.

    Raises:
        TypeError: subgroups that are text instead of a list.
        ValueError: rows or features that are not as many as the test images; a column with more than 12 values.
        KeyError: a column of subgroups that no test image has.
    """
    check_subgroups(subgroups, datasets.test.data)
    train, test, model, decisions = datasets.train, datasets.test, trained.model, trained.decisions
    classes, learnt = list(model.classes), np.asarray(features)
    label = np.array([item["label"] for item in test.data]).astype(np.int64)
    if not len(rows) == len(learnt) == len(label):
        raise ValueError(
            f"report_evaluation: wanted a row and features for each of {len(label)} test {unit}s, "
            f"got {len(rows)} rows and {len(learnt)} features"
        )
    shown = stratified_indices(label, NUM_POINTS)
    cheap, pixels = _measured(test, range(len(label)), {*shown.tolist()}, f"reading test {unit}s")
    baselines = _baselines(train, cheap, len(classes), unit)
    scored = [
        {
            **row,
            "split": "test",
            "columns": {column: item.get(column) for column in subgroups},
            "shortcut_prob": {name: prob[k].tolist() for name, prob in baselines.items()},
        }
        for k, (row, item) in enumerate(zip(rows, test.data, strict=True))
    ]
    splits = present_splits(datasets)
    skipped = [{**row, "split": split} for split, dataset in splits.items() for row in skipped_rows(dataset)]
    num = NUM_VOLUMES if pixels.ndim == 5 else NUM_IMAGES
    samples = _samples(test, classes, num)
    mistakes, peaks = _mistakes(test, rows, label, classes, decisions.threshold, num, evidence_peak)
    logger.info("placing %d %ss by t-SNE", len(shown), unit)
    points = {"raw_pixels": pixels.reshape(len(pixels), -1), "trained_features": learnt[shown]}
    components = {name: found for name, values in points.items() if (found := principal_components(values)) is not None}
    embeddings = {
        name: embedding_figure(embed(found), label[shown], classes, name.replace("_", " ").capitalize())
        for name, found in components.items()
    }
    evaluation = Evaluation(
        title=title,
        rows=[*scored, *skipped],
        classes=classes,
        unit=unit,
        multilabel=model.multilabel,
        key_metric=decisions.key_metric or key_metric,
        threshold=decisions.threshold,
        threshold_by=decisions.threshold_by,
        temperature=decisions.temperature,
        epoch=decisions.epoch,
        members=None if decisions.members is None else [member._asdict() for member in decisions.members],
        subgroups=subgroups,
        splits={split: class_table(dataset.data, classes) for split, dataset in splits.items()},
        audit=audit_splits(splits) if "train" in splits else None,
        compared=compared_with_training(trained, datasets),
        samples=_pictures("sample", samples),
        mistakes=_pictures("mistake", mistakes, at=peaks),
        embeddings={name: png_bytes(figure, DPI) for name, figure in embeddings.items()},
        explanations=[
            {"results": part.results, "pictures": _pictures(f"looked-{k}", part.pictures, SIDE_LOOKED)}
            for k, part in enumerate(explanations)
        ],
    ).after_training(trained.run_folder(output_dir))
    shutil.rmtree(Path(output_dir) / "pictures", ignore_errors=True)  # of an earlier evaluation
    evaluation.save(output_dir)
    metrics = write_report(output_dir, evaluation)

    tagged = _tagged(Path(output_dir), evaluation, {"samples/test": samples, "mistakes/test": mistakes}, explanations)
    log_evaluation(
        Path(output_dir) / "tensorboard" / "evaluation",
        tagged,
        components,
        [class_name(label_, classes, ", ", "none") for label_ in label[shown]],
        pixels if pixels.ndim == 4 else None,
        prob=np.array([row["prob"] for row in rows]),
        label=label,
        classes=classes,
        metrics=metrics["metrics"],
        settings=metrics["run"].get("settings"),
    )
    _print_beside(metrics, unit)
    logger.info("report: %s", Path(output_dir) / "report.html")
    return metrics


def present_splits(datasets: Any) -> dict[str, Any]:
    """The splits of an evaluation that have any images: other data for the test may come alone."""
    splits = {split: getattr(datasets, split) for split in SPLITS}
    return {split: dataset for split, dataset in splits.items() if len(dataset.data)}


def compared_with_training(trained: Trained, datasets: Any) -> bool | None:
    """Whether the contents of test images that come alone were compared with those seen in training; None: not alone.

    Equal ones are an error before anything is evaluated (`monai_pipelines.runs.trained.check_split`).
    """
    return None if len(datasets.train.data) else "files" in (trained.decisions.split or {})


def _tagged(
    folder: Path, evaluation: Evaluation, chosen: dict[str, Pictures], explanations: Sequence[Any]
) -> dict[str, Any]:
    """What TensorBoard shows, by tag."""
    files = {"classes": "classes", "roc/test": "roc"}
    if not evaluation.multilabel:
        files["confusion_matrix/test"] = "confusion_matrix"
    tagged: dict[str, Any] = {tag: (folder / f"{file}.png").read_bytes() for tag, file in files.items()}
    tagged |= {f"embedding/{name}": png for name, png in evaluation.embeddings.items()}
    for tag, pictures in chosen.items():
        if pictures:
            tagged[tag] = images_figure([image for _, image in pictures], [caption for caption, _ in pictures])
    for part in explanations:
        method = part.results.get("method", "attention")
        for k, (caption, image) in enumerate(part.pictures, start=1):
            words = re.sub(r"[^\w.]+", "_", caption)
            tagged[f"{method}/{k}_{words}"] = image
    return tagged


def _baselines(
    train: Any, cheap: dict[str, NDArray[np.float32]], num_classes: int, unit: str
) -> dict[str, NDArray[np.float64]]:
    """Probabilities of the test images, whose cheap features these are; none without features or a second class."""
    if not cheap or not len(train):
        return {}
    label = np.array([item["label"] for item in train.data])
    if label.ndim == 1 and len(np.unique(label)) < 2:
        logger.warning("no shortcut baseline: the training %ss that could be used are of one class", unit)
        return {}
    fitted = stratified_indices(label, NUM_FITTED)
    features, _ = _measured(train, fitted.tolist(), set(), f"reading training {unit}s")
    return shortcut_baselines(features, label[fitted], cheap, num_classes)


def _measured(
    dataset: Any, indices: Sequence[int], with_pixels: set[int], description: str
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Shortcut features of some items, and the shrunken pixels of some of these, each item loaded once."""
    cheap: dict[str, list[NDArray[np.float32]]] = {}
    pixels = []
    for index in track(indices, description):
        item = dataset[index]
        for name, values in item.get("shortcut", {}).items():
            cheap.setdefault(name, []).append(np.asarray(values, dtype=np.float32))
        if index in with_pixels:
            pixels.append(_shrunken(item["image"]))
    return {name: np.stack(rows) for name, rows in cheap.items()}, np.array(pixels)


def _shrunken(image: Any) -> NDArray[np.float32]:
    """(1 or 3, ...) in [0, 1], averaged to at most 32 x 32 pixels or 16 x 16 x 16 voxels."""
    values = torch.as_tensor(np.asarray(image))
    values = values / 255 if values.dtype == torch.uint8 else values.float()
    values = values if len(values) == 3 else values[:1]
    if values.ndim == 4:
        return torch.nn.functional.adaptive_avg_pool3d(values, min(SIDE_VOLUME, *values.shape[1:])).numpy()
    side = min(SIDE_IMAGE, *values.shape[1:])
    return torch.nn.functional.adaptive_avg_pool2d(values, side).clamp(0, 1).numpy()


def _samples(dataset: Any, classes: Sequence[str], num: int) -> Pictures:
    """Drawn from the classes in turn, shown class by class."""
    label = [tuple(np.ravel(item["label"]).tolist()) for item in dataset.data]
    chosen = in_turn(np.random.default_rng(0).permutation(len(label)).tolist(), label.__getitem__, num)
    named = [class_name(dataset.data[i]["label"], classes, ", ", "none") for i in chosen]
    return [(f"{name}\n{dataset.data[i]['name']}", dataset[i]["image"]) for i, name in zip(chosen, named, strict=True)]


def _mistakes(
    dataset: Any,
    rows: Sequence[dict[str, Any]],
    label: NDArray[Any],
    classes: Sequence[str],
    threshold: Threshold,
    num: int,
    evidence_peak: Callable[[Any, int], Sequence[int] | None] | None,
) -> tuple[Pictures, list[Sequence[int] | None]]:
    """Captions and images, and the voxels with the most evidence for the wrong class, or for the class missed."""
    prob = np.array([row["prob"] for row in rows])
    pictures, peaks = [], []
    for row, k in confident_mistakes(prob, label, num, threshold):
        if label.ndim == 1:
            words = decision_words(prob[row].tolist(), classes, threshold, spread=rows[row].get("spread"))
            caption = f"true: {classes[label[row]]}\n{words}"
        else:
            caption = f"{'missed' if label[row, k] else 'false alarm'}: {classes[k]}, {prob[row, k]:.2f}"
        item = dataset[row]
        pictures.append((f"{caption}\n{dataset.data[row]['name']}", item["image"]))
        volume = evidence_peak is not None and len(item["image"].shape) == 4
        peaks.append(evidence_peak(item, k) if evidence_peak and volume else None)
    return pictures, peaks


def _pictures(
    name: str, pictures: Pictures, side: int = 192, at: Sequence[Sequence[int] | None] | None = None
) -> list[dict[str, Any]]:
    voxels = at or [None] * len(pictures)
    return [
        picture(f"{name}-{k}", caption, image, side, voxel)
        for k, ((caption, image), voxel) in enumerate(zip(pictures, voxels, strict=True))
    ]


def skipped_rows(dataset: Any) -> list[dict[str, Any]]:
    """Rows of the predictions of what could not be used, with the reasons."""
    kept = ("patient", "label", "skipped")
    return [{"image": i["name"], "prob": None, **{k: i[k] for k in kept if k in i}} for i in dataset.skipped]


def _print_beside(metrics: dict[str, Any], unit: str) -> None:
    patients = "patients unknown" if metrics["num_patients"] is None else f"{metrics['num_patients']} patients"
    title = f"{metrics['num_images']} {unit}s, {patients}"
    if metrics["threshold"] is not None:
        title += f"; network {at_threshold(metrics['threshold'])}"
    beside = {"at 0.5": metrics["metrics_at_half"]} if metrics["metrics_at_half"] else {}
    if metrics["shortcut"]:
        beside[f"shortcut: {metrics['shortcut_name']}"] = metrics["shortcut"]
    table = Table(Column(no_wrap=True), "network", Column("95%", no_wrap=True), *beside, title=title)
    for name, value in metrics["metrics"].items():
        ends = metrics["intervals"].get(name)
        interval = "n/a" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        table.add_row(name, _number(value), interval, *(_number(metrics[name]) for metrics in beside.values()))
    Console().print(table)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
