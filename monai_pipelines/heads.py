"""From logits to probabilities, for the three forms of a head: one logit, multi-class, multi-label."""

from __future__ import annotations

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


def probabilities(logits: Tensor, multilabel: bool = False) -> Tensor:
    """Probabilities of the classes: sigmoid of each logit where labels are many, else softmax over `class_logits`.

    Args:
        logits: (N, C) or, of one image, (C,), floating point.
        multilabel: any number of classes at once, instead of exactly one.

    Returns:
        the shape of `logits`; one logit without `multilabel` becomes two classes ``[1 - p, p]``.

    Example:
        >>> probabilities(torch.tensor([[0.0]]))
        tensor([[0.5000, 0.5000]])
        >>> probabilities(torch.tensor([[0.0, 0.0, 0.0]]), multilabel=True)
        tensor([[0.5000, 0.5000, 0.5000]])
    """
    return logits.sigmoid() if multilabel else class_logits(logits).softmax(-1)


class Probabilitiesd(MapTransform):
    """Dictionary twin of `probabilities`, for post-processing.

    Args:
        keys: entries with logits, (N, C) or (C,); array or tensor.
        multilabel: any number of classes at once, instead of exactly one.
        allow_missing_keys: pass over keys that are not there.

    Example:
        >>> Probabilitiesd("pred")({"pred": torch.tensor([0.0])})
        {'pred': tensor([0.5000, 0.5000])}
    """

    def __init__(self, keys: KeysCollection, multilabel: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.multilabel = multilabel

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = probabilities(convert_to_tensor(d[key], track_meta=False), self.multilabel)
        return d
