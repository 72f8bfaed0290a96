"""Checkpoints as plain data: weights, what the classes are, and the chain that feeds the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from monai_pipelines.chains import Chain

logger = logging.getLogger(__name__)


def save_plain(content: Any, file: str | PathLike[str]) -> None:
    """Save tensors and plain data so that ``file`` is either the old one or the whole new one."""
    target = Path(file)
    temporary = target.with_name(f"{target.stem}.{uuid4().hex}.part")
    try:
        with open(temporary, "xb") as out:
            torch.save(content, out)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    file: str | PathLike[str],
    network: torch.nn.Module | None = None,
    chain: Chain | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Load a checkpoint of a training run, checked against the chain and the classes it is used with.

    Args:
        file: ``best.pt`` or ``last.pt`` of a run.
        network: gets the weights.
        chain: the chain that will feed it.
        classes: the class names it will predict.

    Returns:
        the checkpoint: ``model``, ``classes``, ``chain`` (a description), ``epoch``, ``metrics`` and more (see
        `monai_pipelines.handlers.Checkpoints`); ``threshold``, ``threshold_by`` and ``temperature`` are None where a
        checkpoint has none.

    Raises:
        FileNotFoundError: no such file.
        ChainMismatchError: trained with another chain; lists what differs.
        ValueError: other classes, or weights of another network.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint; train first, or name one with --checkpoint")
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if chain is not None:
        for version in chain.check_same(checkpoint["chain"], str(file)):
            logger.warning("%s was made with another library version: %s", file, version)
    if classes is not None and list(classes) != checkpoint["classes"]:
        raise ValueError(f"{file}: trained for classes {checkpoint['classes']}, used with {list(classes)}")
    if network is not None:
        try:
            network.load_state_dict(checkpoint["model"])
        except RuntimeError:
            wanted, given = (
                {k: v.shape for k, v in own.items()} for own in (network.state_dict(), checkpoint["model"])
            )
            other = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
            raise ValueError(
                f"{file}: weights of another network than {type(network).__name__} as configured "
                f"(name the overlay it was trained with); {len(other)} are missing, unexpected or of another shape: "
                f"{', '.join(other[:3])}{' ...' if len(other) > 3 else ''}"
            ) from None
    return {"threshold": None, "threshold_by": None, "temperature": None, **checkpoint}
