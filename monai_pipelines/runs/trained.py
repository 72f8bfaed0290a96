"""The weights of a run, or of an ensemble of runs, and how its validation said to read their outputs."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_pipelines.data.contents import content_hashes
from monai_pipelines.data.split import seen_hashes
from monai_pipelines.detection import DetectionEnsembleInferer
from monai_pipelines.inferers import EnsembleInferer
from monai_pipelines.metrics.classification import Threshold
from monai_pipelines.model import Model
from monai_pipelines.probabilities import Probabilitiesd
from monai_pipelines.runs.checkpoint import load_weights, read_checkpoint, use_precision

logger = logging.getLogger(__name__)

Runs = str | Sequence[str | PathLike[str]]
_UNKNOWN = "the checkpoint does not say what it was trained on: make sure that it has seen no test patient"


class Member(NamedTuple):
    """A network of an ensemble."""

    file: str
    """As named by the user: a run's folder or a checkpoint."""
    epoch: int
    temperature: float | None
    threshold: Threshold


@dataclass(frozen=True)
class Decisions:
    """What the checkpoints of a run or an ensemble hold beside the weights; None where there is nothing.

    Attributes:
        epoch: whose weights these are; of an ensemble the first member's.
        split: `monai_pipelines.data.Cohort.split_card` of the training; of an ensemble with the ``seen`` of all
            members, and with their ``seed`` and ``split_fractions`` listed where these differ.
        temperature: that logits are divided by; None for an ensemble, whose members have one each.
        threshold: probability from which the second of two classes is predicted, or each of several labels; of an
            ensemble the mean of the members', None where one has none.
        threshold_by: the rule that chose it; None for an ensemble: no rule chose the mean.
        key_metric: that chose the epoch; None: unknown.
        members: of an ensemble; None for one run.
    """

    epoch: int
    split: dict[str, Any] | None
    temperature: float | None
    threshold: Threshold
    threshold_by: str | None
    key_metric: str | None = None
    members: tuple[Member, ...] | None = None


class Trained:
    """A model with the weights of one run, or of an ensemble. Files are read once, when first needed.

    So a config can be built before the training.

    Args:
        model: its network gets the weights; of an ensemble those of the first member.
        checkpoint: ``best.pt`` of the run; ignored with an ensemble.
        ensemble: two or more run folders (their ``best.pt``) or checkpoint files, as a list or joined by commas; None:
            one run.
        threshold: in place of the stored one; None: the stored one.

    Attributes:
        model: as given.
        inferer: the model's, or the mean over the members of an ensemble, an `EnsembleInferer`.

    Raises:
        ValueError: fewer than two members, or one twice.
    """

    def __init__(
        self,
        model: Model,
        checkpoint: str | PathLike[str],
        ensemble: Runs | None = None,
        threshold: Threshold = None,
    ) -> None:
        self.model, self._given_threshold = model, threshold
        self._names = [str(checkpoint)]
        self.inferer = model.inferer
        if ensemble is not None:
            parts = ensemble.split(",") if isinstance(ensemble, str) else map(str, ensemble)
            self._names = [part.strip() for part in parts]
            mean = DetectionEnsembleInferer if model.detects else partial(EnsembleInferer, multilabel=model.multilabel)
            self.inferer = mean(model.inferer)
            if len({file.resolve() for file in self._files}) < max(2, len(self._files)):
                raise ValueError(
                    f"ensemble: wanted two or more different runs, as RUN_A,RUN_B, got {', '.join(self._names)}"
                )

    @property
    def _files(self) -> list[Path]:
        return [Path(name) / "best.pt" if Path(name).is_dir() else Path(name) for name in self._names]

    def run_folder(self, output_dir: str | PathLike[str]) -> Path:
        """``output_dir`` if it is a run's, else the folder of the one run whose weights these are."""
        one = len(self._files) == 1 and not (Path(output_dir) / "run.json").is_file()
        return self._files[0].parent if one else Path(output_dir)

    @cached_property
    def decisions(self) -> Decisions:
        """What the checkpoints hold beside the weights; the networks get their weights with it.

        Raises:
            FileNotFoundError, ChainMismatchError, ValueError: see `read_checkpoint` and `load_weights`.
        """
        model, files = self.model, self._files
        checkpoints = [read_checkpoint(file, model) for file in files]
        networks = [model.network, *(deepcopy(model.network).eval() for _ in files[1:])]
        for file, checkpoint, network in zip(files, checkpoints, networks, strict=True):
            load_weights(network, checkpoint.pop("model"), file)
        use_precision(model, checkpoints[0]["precision"])
        names = ("epoch", "split", "temperature", "threshold", "threshold_by", "key_metric")
        decisions = Decisions(**{name: checkpoints[0][name] for name in names})
        if isinstance(self.inferer, EnsembleInferer | DetectionEnsembleInferer):
            temperatures = [checkpoint["temperature"] for checkpoint in checkpoints]
            self.inferer.members = list(zip(networks, temperatures, strict=True))
            decisions = _of_ensemble(decisions, checkpoints, self._names)
        if self._given_threshold not in (None, decisions.threshold):
            decisions = replace(decisions, threshold=self._given_threshold, threshold_by=None)
        return decisions

    def load(self, cohort: Any = None) -> None:
        """Read the checkpoints now, so that a wrong one is reported before any image is prepared.

        Args:
            cohort: of an evaluation: nobody in its ``test`` may have been seen in training; see `check_split`.
        """
        if cohort is not None:
            check_split(self.decisions.split, cohort)
        _ = self.decisions

    def probabilities(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Post-processing: ``pred`` from logits to probabilities, in float64 as thresholds are chosen."""
        return Probabilitiesd("pred", self.model.multilabel, self.decisions.temperature)(item)


def _of_ensemble(first: Decisions, checkpoints: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Decisions:
    thresholds = [checkpoint["threshold"] for checkpoint in checkpoints]
    without = [name for name, threshold in zip(names, thresholds, strict=True) if threshold is None]
    if 0 < len(without) < len(names):
        logger.warning("ensemble: no threshold is used, since %s has none", ", ".join(without))
    members = (
        Member(name, *(checkpoint[key] for key in ("epoch", "temperature", "threshold")))
        for name, checkpoint in zip(names, checkpoints, strict=True)
    )
    return replace(
        first,
        members=tuple(members),
        temperature=None,
        threshold=None if without else _mean_threshold(thresholds),
        threshold_by=None,
        split=_common_split({name: checkpoint["split"] for name, checkpoint in zip(names, checkpoints, strict=True)}),
    )


def _mean_threshold(thresholds: Sequence[Any]) -> Any:
    """The mean, or that of each class: None for one for which a member has none."""
    if any(isinstance(threshold, list) for threshold in thresholds):
        return [None if None in of_class else float(np.mean(of_class)) for of_class in zip(*thresholds, strict=True)]
    return float(np.mean(thresholds))


def _common_split(splits: Mapping[str, dict[str, Any] | None]) -> dict[str, Any] | None:
    """The first member's split with all that any member has seen, and the seeds and fractions that differ."""
    known = [split for split in splits.values() if split is not None]
    if not known:
        return None
    if unknown := [name for name, split in splits.items() if split is None]:
        logger.warning("%s: %s", ", ".join(unknown), _UNKNOWN)
    values = {key: [split.get(key) for split in known] for key in ("seed", "split_fractions")}
    differing = {key: column for key, column in values.items() if any(value != column[0] for value in column)}
    common = {**known[0], **differing, "seen": sorted({name for split in known for name in split["seen"]})}
    if all("files" in (split or {}) for split in splits.values()):
        return {**common, "files": sorted({file for split in known for file in split["files"]})}
    common.pop("files", None)  # of some members only
    return common


def check_split(split: Mapping[str, Any] | None, cohort: Any) -> None:
    """Check that no test image, and no patient of one, was seen in training.

    Args:
        split: `monai_pipelines.data.Cohort.split_card` of the training; None (unknown) is a warning.
        cohort: of the evaluation, with ``test``, ``external`` and ``split_card``. In external data equal contents are
            an error, equal names only a warning, since unrelated images are often called 0001.png.

    Raises:
        ValueError: test images, or images of the same patients, were trained on or chose the epoch.
    """
    if split is None:
        logger.warning(_UNKNOWN)
        return
    seen = seen_hashes(cohort.test).intersection(split["seen"])
    if cohort.external and (equal := content_hashes(cohort.test).intersection(split.get("files", ()))):
        raise ValueError(
            f"{len(equal)} of {len(cohort.test)} test images have the contents of images seen in training, under "
            "whatever names; leave them out"
        )
    if cohort.external and seen:
        text = "%d names or patients of the test data are also names in training, of images with other contents: %s"
        logger.warning(text, len(seen), "make sure that they are not the same patients")
    elif seen:
        now = cohort.split_card
        raise ValueError(
            f"{len(seen)} names or patients of the test data have been seen in training; evaluate with the data, "
            "split_seed (by default the seed), split_fractions and patient_pattern of the training "
            f"({split_differences(split, now)})"
        )


def split_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What another split was drawn by, in words."""
    knobs = {"seed": "split_seed", "split_fractions": "split_fractions"}
    pairs = [(knob, then.get(name), now.get(name)) for name, knob in knobs.items()]
    differences = [f"{knob} {old} there, {new} here" for knob, old, new in pairs if old != new]
    return "; ".join(differences) or "the data differ"
