"""What a run has learned, applied and evaluated elsewhere without repeating anything of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_pipelines.engines.evaluation import evaluate, predict
from monai_pipelines.remote import as_place
from monai_pipelines.runs.export import export
from monai_pipelines.runs.folder import check_no_run
from monai_pipelines.runs.inference import inference_config, training_config

Paths = str | PathLike[str]


def load_run(source: Paths | Sequence[Paths]) -> Run:
    """A trained run, or an ensemble of runs, to predict with and to evaluate on other data.

    Args:
        source: folder of a run; of an ensemble several, as a list or joined by commas.

    Raises:
        ValueError: no run.

    Example:
        >>> run = load_run("output")  # doctest: +SKIP
        >>> run.predict("images")[0]["words"]  # doctest: +SKIP
        'disease 0.60, below the threshold 0.64: healthy'
        >>> run.evaluate("other", "output/other", rename={"DR": "disease"})["metrics"]["roc_auc"]  # doctest: +SKIP
        0.91
    """
    if isinstance(source, str | PathLike):
        source = [source] if Path(source).is_dir() else str(source).split(",")
    return Run([Path(str(folder).strip()) for folder in source])


class Run:
    """A trained run, or an ensemble of runs; see `load_run`.

    Classes, sizes, chain, network, overlays, threshold and temperature are those of the run; of an ensemble those of
    the first, and the mean threshold.

    Args:
        folders: of the runs.

    Attributes:
        folders: as given.

    Raises:
        ValueError: no run.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        for folder in self.folders:
            training_config(folder)

    def __repr__(self) -> str:
        return f"Run({', '.join(map(str, self.folders))})"

    def predict(self, source: Paths, out: Paths | None = None, **overrides: Any) -> list[dict[str, Any]]:
        """Classify images, or find lesions in them.

        Args:
            source: what the bundle's inference takes: a folder, a CSV table with the column ``image``, or one image,
                scan, slide or array file.
            out: folder for ``predictions.csv`` and what else the bundle's inference writes; None: nothing is written.
            overrides: of the bundle's ``inference.yaml``, such as ``threshold=0.3`` or ``backbone_weights="best.pt"``.

        Returns:
            a row for each input: ``image`` (name), ``words`` (the decision in words), ``threshold``, ``verdict`` if the
            image was chosen or repaired; of a classifier ``prob`` (by class), ``predicted`` (name, or names of several
            labels) and ``spread`` if there is one; of a detector ``boxes``: each with ``class``, ``score``, ``box``
            (2D: y_min, x_min, y_max, x_max, edges in pixels; 3D: minima and maxima of x, y, z, RAS mm) and, with a
            threshold, ``shown``. Of an unusable input only ``image`` and ``skipped``, the reason.

        Raises:
            CohortError, FileNotFoundError: nothing to predict, or no checkpoint.
            FileExistsError: ``out`` is the folder of a training.
            ValueError: an override that names nothing.
        """
        if out is not None:
            check_no_run(out)
        quiet: dict[str, Any] = {"handlers": []} if out is None else {"output_dir": str(out)}
        config = inference_config(self.folders[0], **self._weights(), dataset_dir=str(source), **quiet, **overrides)
        config.get_parsed_content("trained").load()
        return predict(config.get_parsed_content("evaluator"), out, config.get_parsed_content("unit"))

    def evaluate(
        self,
        data: Paths,
        out: Paths,
        rename: Mapping[str, str] | None = None,
        subgroups: Sequence[str] = (),
        **overrides: Any,
    ) -> dict[str, Any]:
        """Evaluate on other labeled data, all of them, as an external test; writes the report of the bundle.

        The training data are not needed. A test image whose content was seen in training is an error, see
        `monai_pipelines.runs.trained.check_split`.

        Args:
            data: what the bundle's training takes.
            out: folder for ``report.html``, ``metrics.json``, ``predictions.csv`` and more.
            rename: classes by the names that the data have for them; None: the names are those of the run.
            subgroups: columns of the table; metrics are also reported for each of their values.
            overrides: of the run's ``train.yaml``, such as ``threshold=0.3``, or ``boxes="other.csv"`` where those of a
                detector are not beside the data.

        Returns:
            the content of ``metrics.json``.

        Raises:
            CohortError: lists all problems of the data.
            FileExistsError: ``out`` is the folder of a training.
            ValueError: images that were seen in training, data whose classes cannot be renamed, an override that names
                nothing.
        """
        config = training_config(self.folders[0], **overrides)
        if rename and "rename" not in config["cohort"]:
            raise ValueError(f"{data}: rename wants classes with names; the labels of these data are numbers")
        renamed = {"cohort::rename": dict(rename)} if rename else {}
        of_training = dict.fromkeys(("dataset_dir", "table", "boxes", "imagenet"))
        made = {name: str(Path(out, part)) for name, part in (("cache_dir", "cache"), ("features_dir", "features"))}
        values = {
            **{name: value for name, value in {**of_training, **made}.items() if name in config},
            **self._weights(),
            **renamed,
            "cohort::test_source": str(data),
            "output_dir": str(out),
            "subgroups": list(subgroups),
            "title": f"{config.get_parsed_content('title')}: {as_place(data).name}",
        }
        config.update({name: value for name, value in values.items() if name not in overrides})
        check_no_run(config.get_parsed_content("output_dir"))
        return _evaluate(config)

    def export(self, file: Paths, size: int | Sequence[int] | None = None, **overrides: Any) -> dict[str, Any]:
        """Write the network as TorchScript or ONNX, see `monai_pipelines.runs.export.export`.

        Args:
            file: ``.ts`` or ``.onnx``.
            size: sides of the images, where the network takes no others.
            overrides: of the bundle's ``inference.yaml``, such as ``backbone_weights="best.pt"``.

        Returns:
            the description in the file.
        """
        config = inference_config(self.folders[0], **self._weights(), handlers=[], **overrides)
        return export(config.get_parsed_content("trained"), file, size)

    def _weights(self) -> dict[str, Any]:
        names = [str(folder) for folder in self.folders]
        checkpoint = {"checkpoint": str(self.folders[0] / "best.pt")}
        return checkpoint | ({"ensemble": names} if len(names) > 1 else {})


def _evaluate(config: ConfigParser) -> dict[str, Any]:
    """As ``--run_id evaluate`` does."""
    config.get_parsed_content("trained").load(config.get_parsed_content("cohort"))
    names = ("output_dir", "title", "unit", "key_metric", "subgroups")
    options = {name: config.get_parsed_content(name) for name in names}
    return evaluate(config.get_parsed_content("evaluator"), config.get_parsed_content("datasets"), **options)
