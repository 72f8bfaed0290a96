"""From logits to probabilities, for the three kinds of heads: one logit, multi-class, multi-label."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from torch import Tensor


def class_logits(logits: Tensor) -> Tensor:
    """Two class logits in place of one: ``[z] -> [0, z]``; the softmax of these is ``[1 - sigmoid(z), sigmoid(z)]``.

    Args:
        logits: (..., C) floating point.

    Returns:
        (..., 2) for C = 1, else `logits` itself.

    Example:
        >>> class_logits(torch.tensor([[3.0]]))
        tensor([[0., 3.]])
    """
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits


def probabilities(logits: Tensor, multilabel: bool = False, temperature: float | None = None) -> Tensor:
    """Class probabilities: sigmoid of each logit if `multilabel`, else softmax over `class_logits`.

    Args:
        logits: (N, C), or (C,) of one image, floating point.
        multilabel: any number of classes at once, instead of exactly one.
        temperature: the logits are divided by it, see `monai_pipelines.metrics.fit_temperature`; None: 1.

    Returns:
        the shape of `logits`; one logit without `multilabel` becomes two classes ``[1 - p, p]``.

    Example:
        >>> probabilities(torch.tensor([[0.0]]))
        tensor([[0.5000, 0.5000]])
        >>> probabilities(torch.tensor([[0.0, 0.0, 0.0]]), multilabel=True)
        tensor([[0.5000, 0.5000, 0.5000]])
        >>> probabilities(torch.tensor([[6.0]])), probabilities(torch.tensor([[6.0]]), temperature=3)
        (tensor([[0.0025, 0.9975]]), tensor([[0.1192, 0.8808]]))
    """
    scaled = logits if temperature is None else logits / temperature
    return scaled.sigmoid() if multilabel else class_logits(scaled).softmax(-1)


class Probabilitiesd(MapTransform):
    """Dictionary twin of `probabilities`, for post-processing; in float64, as thresholds are.

    Args:
        keys: entries with logits, (N, C) or (C,); array or tensor.
        multilabel: any number of classes at once, instead of exactly one.
        temperature: the logits are divided by it; None: 1.
        allow_missing_keys: skip missing keys.

    Raises:
        ValueError: a temperature that is not above 0.

    Example:
        >>> Probabilitiesd("pred")({"pred": torch.tensor([0.0])})
        {'pred': tensor([0.5000, 0.5000], dtype=torch.float64)}
    """

    def __init__(
        self,
        keys: KeysCollection,
        multilabel: bool = False,
        temperature: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"Probabilitiesd: temperature must be above 0 and finite, or None, got {temperature}")
        self.multilabel, self.temperature = multilabel, temperature

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            logits = convert_to_tensor(d[key], track_meta=False).double()
            d[key] = probabilities(logits, self.multilabel, self.temperature)
        return d
