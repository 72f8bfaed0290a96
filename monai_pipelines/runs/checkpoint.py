"""Checkpoints as plain data: weights, what the classes are, and the chain that feeds the network."""

from __future__ import annotations

import logging
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from monai_pipelines.atomic import atomic_write
from monai_pipelines.errors import DamagedCheckpointError
from monai_pipelines.model import Model
from monai_pipelines.networks.precision import Precision, fast_bf16

logger = logging.getLogger(__name__)

_LFS = b"version https://git-lfs"
_NEEDED = {"model", "classes", "chain"}
# None where a checkpoint has none
_OPTIONAL = ("split", "temperature", "threshold", "threshold_by", "key_metric", "precision")


def save_checkpoint(content: Any, file: str | PathLike[str], previous: str | PathLike[str] | None = None) -> None:
    """Save tensors and plain data; ``file`` is always either the old one or the complete new one.

    Args:
        content: what is saved.
        file: replaced at the end.
        previous: where the old file is kept; there is then no ``file`` for a moment.
    """
    with atomic_write(file) as part:
        with part.open("wb") as out:  # the bytes must not depend on the path
            torch.save(content, out)
        if previous is not None and Path(file).is_file():
            Path(file).replace(previous)


def read_checkpoint(file: str | PathLike[str], model: Model) -> dict[str, Any]:
    """Read a checkpoint of a training run, checked against the chain and the classes of a model.

    Args:
        file: ``best.pt`` or ``last.pt`` of a run.
        model: what it will be used for; not changed, see `load_weights`.

    Returns:
        the checkpoint: ``model`` (weights), ``classes``, ``chain`` (described), ``epoch``, ``metrics`` and more, see
        `Checkpoints`; ``split``, ``temperature``, ``threshold``, ``threshold_by``, ``key_metric`` and ``precision``
        are None where it has none.

    Raises:
        FileNotFoundError: no such file.
        ChainMismatchError: trained with another chain; lists what differs.
        DamagedCheckpointError: a file that is not a checkpoint, is truncated or has a wrong checksum.
        ValueError: other classes, a pointer of Git LFS, or weights alone.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint; train first, or name one with --checkpoint")
    checkpoint = _load(file)
    for version in model.chain.check_same(checkpoint["chain"], str(file)):
        logger.warning("%s was made with another library version: %s", file, version)
    if list(model.classes) != checkpoint["classes"]:
        raise ValueError(f"{file}: trained for classes {checkpoint['classes']}, used with {list(model.classes)}")
    return {**dict.fromkeys(_OPTIONAL), **checkpoint}


def _load(file: str | PathLike[str]) -> dict[str, Any]:
    with open(file, "rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            raise ValueError(f"{file}: a pointer of Git LFS, not the file itself; fetch it with git lfs pull")
    try:
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:  # torch does not compare the checksums that it writes
                raise zipfile.BadZipFile(f"checksum of {damaged}")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedCheckpointError(
            f"{file}: no checkpoint, or damaged ({type(error).__name__}); copy it again, or name best.pt of a run"
        ) from None
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _NEEDED:
        raise ValueError(
            f"{file}: weights alone, without the classes and the chain that they were trained with; name best.pt of a "
            "run of this package"
        )
    return checkpoint


def load_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor], file: str | PathLike[str]) -> None:
    """Load the weights of a checkpoint into a network.

    Raises:
        ValueError: weights of another network; names what is missing, unexpected or of another shape.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        wanted, got = ({name: value.shape for name, value in w.items()} for w in (network.state_dict(), weights))
        misfits = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
        raise ValueError(
            f"{file}: weights of another network than {type(network).__name__} as configured "
            f"(name the overlay it was trained with); {len(misfits)} are missing, unexpected or of another shape: "
            f"{', '.join(misfits[:3])}{' ...' if len(misfits) > 3 else ''}"
        ) from None


def use_precision(model: Model, precision: Precision | None) -> None:
    """Replace the precision "auto" of an inferer by a checkpoint's (None: unknown), if the device supports it."""
    fast = precision == "fp32" or fast_bf16(model.device.type, gradients=False)
    if precision is not None and fast and getattr(model.inferer, "precision", None) == "auto":
        model.inferer.precision = precision
