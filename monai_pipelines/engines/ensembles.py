"""One run or an ensemble of several, evaluated the same way."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import EnsembleEvaluator, Evaluator, SupervisedEvaluator
from monai.transforms import Transform
from monai.utils import convert_to_tensor

from monai_pipelines.chains import Chain
from monai_pipelines.probabilities import probabilities
from monai_pipelines.runs.checkpoint import load_checkpoint

__all__ = ["MeanOfMembersd", "load_trained", "make_evaluator"]

logger = logging.getLogger(__name__)

Runs = str | Sequence[str | PathLike[str]]
_NOT_YET = ("members", "epoch", "split", "temperature", "threshold", "threshold_by")


def load_trained(
    file: str | PathLike[str], chain: Chain, classes: Sequence[str], ensemble: Runs | None = None
) -> dict[str, Any]:
    """Load the checkpoint of one run, or those of an ensemble, checked against chain and classes.

    Args:
        file: checkpoint of the one run; not looked at with an ensemble.
        chain: the chain that will feed the networks.
        classes: the class names they will predict.
        ensemble: two or more run folders (their ``best.pt``) or checkpoint files, as a list or joined by commas; None:
            the one run.

    Returns:
        what `monai_pipelines.runs.checkpoint.load_checkpoint` returns, and ``file`` and ``members``. For one run
        ``members`` is None; where its file is missing all but ``file`` is None: a config can be built before the
        training. For an ensemble it lists for each member ``file`` (as given), ``epoch``, ``temperature``
        and ``threshold``; ``file`` is the first member's checkpoint, whose content the rest is, except that
        ``temperature`` is None (each member has its own), ``threshold`` the mean of the members' (None where one has
        none), ``threshold_by`` None (no rule chose it for the mean), and ``split`` holds the ``seen`` of all members,
        and lists their ``seed`` and ``split_fractions`` where these differ.

    Raises:
        ValueError: fewer than two members, or one twice.
        FileNotFoundError, ChainMismatchError, ValueError: of a member, see `load_checkpoint`.
    """
    if ensemble is None:
        if not Path(file).is_file():
            return {"file": str(file), **dict.fromkeys(_NOT_YET)}
        return {**load_checkpoint(file, chain=chain, classes=classes), "file": str(file), "members": None}
    given = [part.strip() for part in (ensemble.split(",") if isinstance(ensemble, str) else map(str, ensemble))]
    files = [_checkpoint_file(name) for name in given]
    if len(files) < 2 or len({own.resolve() for own in files}) < len(files):
        raise ValueError(
            f"ensemble: wanted two or more different runs, as RUN_A,RUN_B, got {', '.join(given) or 'none'}"
        )
    cards = [load_checkpoint(own, chain=chain, classes=classes) for own in files]
    thresholds = [card["threshold"] for card in cards]
    without = [name for name, threshold in zip(given, thresholds, strict=True) if threshold is None]
    if 0 < len(without) < len(cards):
        logger.warning("ensemble: no threshold is used, for %s has none; the others' are dropped", ", ".join(without))
    return {
        **cards[0],
        "file": str(files[0]),
        "members": [
            {"file": name, **{key: card[key] for key in ("epoch", "temperature", "threshold")}}
            for name, card in zip(given, cards, strict=True)
        ],
        "temperature": None,
        "threshold": None if None in thresholds else np.mean(thresholds, axis=0).tolist(),
        "threshold_by": None,
        "split": _common_split(cards, given),
    }


def make_evaluator(
    trained: Mapping[str, Any],
    device: torch.device,
    val_data_loader: Any,
    prepare_batch: Any,
    network: torch.nn.Module,
    inferer: Any,
    postprocessing: Any,
    val_handlers: Sequence[Any],
    multilabel: bool = False,
) -> Evaluator:
    """MONAI's `SupervisedEvaluator` of one run, or its `EnsembleEvaluator` over the members of an ensemble.

    With an ensemble the network gets the first member's weights and copies of it those of the others; the output's
    ``pred`` is the mean of the members' probabilities, each at its own temperature, and ``spread`` the standard
    deviation over the members of the likeliest class's (see `MeanOfMembersd`). What hooks on the network collect is
    the first member's.

    Args:
        trained: of `load_trained`. A `LoadCheckpoint` among the handlers wants its ``file``.
        device, val_data_loader, prepare_batch, network, inferer, val_handlers: of MONAI's evaluators.
        postprocessing: of the one run, logits to probabilities in ``pred``; an ensemble has its own.
        multilabel: any number of classes at once, instead of exactly one.

    Raises:
        ValueError: a member's weights are those of another network.

    Reference: Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles,
    NeurIPS 2017.
    """
    common = {
        "device": device,
        "val_data_loader": val_data_loader,
        "prepare_batch": prepare_batch,
        "inferer": inferer,
        "val_handlers": val_handlers,
    }
    members = trained["members"]
    if members is None:
        return SupervisedEvaluator(network=network, postprocessing=postprocessing, **common)
    networks = [network, *(deepcopy(network) for _ in members[1:])]
    for member, own in zip(members, networks, strict=True):
        load_checkpoint(_checkpoint_file(member["file"]), own)
    mean = MeanOfMembersd([member["temperature"] for member in members], multilabel)
    return EnsembleEvaluator(networks=networks, postprocessing=mean, **common)


class MeanOfMembersd(Transform):
    """Mean ``pred`` of the members' probabilities and their ``spread``, from the logits ``pred_0``, ``pred_1``, ...

    In float64, as `monai_pipelines.probabilities.Probabilitiesd`.

    Args:
        temperatures: of each member; None: 1.
        multilabel: any number of classes at once, instead of exactly one.

    Example:
        >>> step = MeanOfMembersd([None, 2.0])
        >>> item = step({"pred_0": torch.tensor([0.0, 0.0]), "pred_1": torch.tensor([0.0, 2 * 1.0986])})
        >>> item["pred"], item["spread"]
        (tensor([0.3750, 0.6250], dtype=torch.float64), tensor(0.1250, dtype=torch.float64))
    """

    def __init__(self, temperatures: Sequence[float | None], multilabel: bool = False) -> None:
        self.temperatures, self.multilabel = list(temperatures), multilabel

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        names = [f"pred_{index}" for index in range(len(self.temperatures))]
        logits = [convert_to_tensor(d.pop(name), track_meta=False).double() for name in names]
        of_each = zip(logits, self.temperatures, strict=True)
        prob = torch.stack([probabilities(own, self.multilabel, temperature) for own, temperature in of_each])
        d["pred"] = prob.mean(0)
        d["spread"] = prob[:, d["pred"].argmax()].std(correction=0)
        return d


def _checkpoint_file(run: str | PathLike[str]) -> Path:
    return Path(run) / "best.pt" if Path(run).is_dir() else Path(run)


def _common_split(cards: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    """The first member's split, with all that any member has seen in training, and seeds and fractions that differ."""
    splits = [card["split"] for card in cards if card["split"] is not None]
    unknown = [name for name, card in zip(names, cards, strict=True) if card["split"] is None]
    if unknown and splits:
        logger.warning("%s: not told what it was trained on: make sure that no test patient was", ", ".join(unknown))
    if not splits:
        return None
    told = {key: [split.get(key) for split in splits] for key in ("seed", "split_fractions")}
    several = {key: values for key, values in told.items() if any(value != values[0] for value in values)}
    return {**splits[0], **several, "seen": sorted({name for split in splits for name in split["seen"]})}
