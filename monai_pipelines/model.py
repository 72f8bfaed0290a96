"""The model as one value: what is trained, stored and used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from monai_pipelines.chains import Chain
from monai_pipelines.detection import Detector


@dataclass(frozen=True, eq=False)
class Model:
    """A network, and everything that its inputs and outputs mean.

    Attributes:
        network: gives logits, or is a `monai_pipelines.detection.Detector`; stands on ``device``.
        chain: makes the network's input from a file; stored with the weights, so that training and inference prepare
            alike.
        classes: class names by index; of two, the second is the positive one.
        device: where it is trained and used.
        inferer: one of MONAI's or of `monai_pipelines.inferers`.
        prepare: from a batch to the network's input and the label on the device, such as
            `monai_pipelines.data.PrepareImages`.
        multilabel: any number of classes at once, instead of exactly one.
    """

    network: torch.nn.Module
    chain: Chain
    classes: Sequence[str]
    device: torch.device
    inferer: Any
    prepare: Any
    multilabel: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", class_names(self.classes))

    @property
    def detects(self) -> bool:
        """Whether it gives boxes instead of probabilities."""
        return isinstance(self.network, Detector)


def class_names(classes: Sequence[Any]) -> tuple[str, ...]:
    """Class names as a config lists them; numbers are names, too.

    Raises:
        ValueError: YAML has read ``no``, ``yes``, ``on`` or ``off``.

    Example:
        >>> class_names(["normal", 1])
        ('normal', '1')
    """
    if any(isinstance(name, bool) for name in classes):
        raise ValueError(
            f"classes: wanted names, got {list(classes)}: YAML reads no, yes, on and off as false and true; quote them"
        )
    return tuple(map(str, classes))
