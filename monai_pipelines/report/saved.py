"""An evaluation as one value, kept as files from which its page can be rendered again without the data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from monai_pipelines.metrics.classification import Threshold
from monai_pipelines.report.figures import png_bytes
from monai_pipelines.report.pictures import slices_figure, thumbnail
from monai_pipelines.report.results import Row, plain_data
from monai_pipelines.runs.folder import RunFolder

Pictures = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Saved:
    """What an evaluation found, as ``evaluation.json`` and ``pictures/`` in the folder of a run.

    Attributes:
        task: kept in the file; says which page is rendered.
        history: per epoch ``{"epoch": 1, "lr": 0.001, "train": {"loss": 0.7, ...}, "val": {...}}``.
        run: plain data about the training (seed, chain, fingerprint, versions, table hash ...); ``command`` says how to
            run again.
        compared: of test images without the training data: whether the contents were compared with those seen in
            training by their hashes; None: the training data are there, too.
    """

    task: ClassVar[str]

    history: Sequence[Mapping[str, Any]] | None = field(default=None, kw_only=True)
    run: Mapping[str, Any] | None = field(default=None, kw_only=True)
    compared: bool | None = field(default=None, kw_only=True)

    def save(self, output_dir: str | PathLike[str]) -> None:
        """Write ``evaluation.json``, and the pictures that it names, into a folder."""
        folder = Path(output_dir)
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        values = {"task": self.task, **self._to_json(folder)}
        for picture in _found_pictures(values):
            (folder / picture["file"]).write_bytes(picture["content"])
        text = json.dumps(plain_data(_without_content(values)), ensure_ascii=False, allow_nan=False)
        (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, output_dir: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: no run, not evaluated, a file that is not JSON, or a picture that is missing.
        """
        folder = RunFolder(output_dir)
        values = folder.evaluation
        if values is None:
            if folder.run is None:
                raise ValueError(f"{folder.path}: no run: wanted the output_dir of a training or evaluation")
            raise ValueError(f"{folder.path}: not evaluated yet, there is no evaluation.json: add --run_id evaluate")
        values.pop("task", None)
        try:
            return cls(**cls._from_json(_with_content(values, folder.path), folder.path))
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename}: the picture is missing: run the evaluation again") from error

    def after_training(self, output_dir: str | PathLike[str]) -> Self:
        """With the history and, as far as the page shows it, the ``run.json`` of a folder."""
        folder = RunFolder(output_dir)
        return replace(self, history=folder.history, run=None if folder.run is None else _summary(folder.run))

    def _to_json(self, folder: Path) -> dict[str, Any]:
        """The attributes by name; other files may be written into the folder."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def _from_json(cls, values: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The attributes from what `_to_json` gave."""
        return values


@dataclass(frozen=True)
class Evaluation(Saved):
    """What an evaluation found, before any metric is computed.

    Attributes:
        title: headline of the page.
        rows: one mapping per image: ``image`` (path), ``prob`` (C floats), ``label`` (int, or C of 0 and 1), and where
            there are any ``patient``, ``split``, ``spread`` (of the likeliest class's probability, over test-time
            augmentations, passes or networks), ``columns`` (name -> value, for subgroups), ``skipped`` (why the image
            has no ``prob``), ``shortcut_prob`` (name -> C floats, of
            :func:`monai_pipelines.metrics.shortcut_baselines`; all scored rows or none).
        classes: class names by index; of two, the second is the positive class.
        unit: what the page calls an input: image, scan or slide.
        multilabel: several labels each.
        key_metric: validation metric that chose the model; its best epoch is marked.
        threshold: probability from which the second of two classes is predicted, or one for each of several labels;
            None: the likelier one, or 0.5.
        threshold_by: the rule that chose it on the validation set; None: given by hand.
        temperature: fitted on the validation set; ``prob`` is tempered by it.
        epoch: whose weights were evaluated.
        members: networks of an ensemble: of each ``file``, ``epoch``, ``temperature`` and ``threshold``.
        subgroups: names in ``columns``; metrics are reported for each value.
        splits: name -> its table, of :func:`monai_pipelines.report.results.class_table`; None: that of the scored rows.
        audit: of :func:`monai_pipelines.data.audit_splits`.
        samples: images as the network saw them, each a `picture`.
        mistakes: the same, of wrong predictions.
        embeddings: name, such as ``raw_pixels`` -> PNG file.
        explanations: of where the network looked: each with ``results`` (plain data) and ``pictures`` (as ``samples``).
    """

    task: ClassVar[str] = "classification"

    title: str
    rows: Sequence[Row]
    classes: Sequence[str]
    unit: str = "image"
    multilabel: bool = False
    key_metric: str = "roc_auc"
    threshold: Threshold = None
    threshold_by: str | None = None
    temperature: float | None = None
    epoch: int | None = None
    members: Sequence[Mapping[str, Any]] | None = None
    subgroups: Sequence[str] = ()
    splits: Mapping[str, Mapping[str, Any]] | None = None
    audit: Mapping[str, Any] | None = None
    samples: Pictures = ()
    mistakes: Pictures = ()
    embeddings: Mapping[str, bytes] = field(default_factory=dict)
    explanations: Sequence[Mapping[str, Any]] = ()

    def _to_json(self, folder: Path) -> dict[str, Any]:
        for name, png in self.embeddings.items():
            (folder / f"embedding_{name}.png").write_bytes(png)
        return super()._to_json(folder) | {"embeddings": list(self.embeddings)}

    @classmethod
    def _from_json(cls, values: dict[str, Any], folder: Path) -> dict[str, Any]:
        return values | {
            "embeddings": {name: (folder / f"embedding_{name}.png").read_bytes() for name in values["embeddings"]}
        }


def picture(name: str, caption: str, image: Any, side: int = 192, at: Sequence[int] | None = None) -> dict[str, Any]:
    """An image for the page.

    Args:
        name: of the file; may not identify a patient.
        caption: below the picture.
        image: 2D (C, H, W), as `monai_pipelines.report.pictures.images_figure` takes it, or a volume (C, X, Y, Z),
            drawn as three slices.
        side: a 2D image's longest side in pixels, at most.
        at: voxel through which a volume is cut; None: as `slices_figure` does.

    Returns:
        ``caption``, ``file`` (in the run's folder), ``content``, ``volume``, ``anatomical`` (a volume that is known to
        lie in RAS), ``small`` (shown pixel by pixel), ``at`` (as given).

    Example:
        >>> import numpy as np
        >>> picture("sample-0", "healthy", np.zeros((1, 28, 28), np.uint8))["file"]
        'pictures/sample-0.png'
    """
    volume = len(image.shape) == 4
    kind, content = (
        ("png", png_bytes(slices_figure([image], [""], [at]), dpi=110)) if volume else thumbnail(image, side)
    )
    return {
        "caption": caption,
        "file": f"pictures/{name}.{kind}",
        "content": content,
        "volume": volume,
        "anatomical": volume and hasattr(image, "affine"),
        "small": kind == "png" and not volume,
        "at": None if at is None else list(at),
    }


def _found_pictures(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if "content" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _found_pictures(part)


def _without_content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_content(part) for name, part in value.items() if name != "content"}
    return [_without_content(part) for part in value] if isinstance(value, list | tuple) else value


def _with_content(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        content = {"content": (folder / value["file"]).read_bytes()} if "caption" in value else {}
        return {name: _with_content(part, folder) for name, part in value.items()} | content
    return [_with_content(part, folder) for part in value] if isinstance(value, list) else value


def _summary(run: Mapping[str, Any]) -> dict[str, Any]:
    """``run.json`` for the page: knobs of the chains, name of the source; the command has the overrides."""
    chains = {
        name: run[name] and {knob: value for knob, value in run[name]["knobs"].items() if knob != "keys"}
        for name in ("chain", "augmentation")
    }
    summary = {**run, **chains, "source": Path(run["source"]).name}
    return {name: value for name, value in summary.items() if name not in ("overrides", "folder")}
