"""A penalty on attention that is spread over many tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]


class AttentionEntropyLoss:
    """A loss plus the entropy of the network's attention, which is lower on fewer tiles.

    ``loss(logits, label) + weight * mean(-sum_n a_n ln a_n)``, the mean over the bags and branches of the network's
    last forward pass. The term is added in training only, where the logits have a gradient: metrics and validation
    get the loss alone.

    Args:
        network: an `AttentionMIL` with attention, or another network that keeps ``attention_weights`` (B, K, N).
        loss: of logits and labels.
        weight: 0 or more. Uniform attention over 10,000 tiles has an entropy of 9.2.

    Raises:
        ValueError: a negative weight, or no attention of as many bags where the logits have a gradient.

    Example:
        >>> from monai_pipelines.losses import CrossEntropyLoss
        >>> network = nn.Module()
        >>> network.attention_weights = torch.full((1, 1, 4), 0.25)
        >>> loss = AttentionEntropyLoss(network, CrossEntropyLoss(), weight=1.0)
        >>> logits = torch.zeros(1, 1, requires_grad=True)
        >>> loss(logits, torch.tensor([1])).item() / torch.tensor(2.0).log().item()  # ln 2 + ln 4
        3.0
    """

    def __init__(self, network: nn.Module, loss: LossFunction, weight: float = 0.001) -> None:
        if weight < 0:
            raise ValueError(f"AttentionEntropyLoss: weight must be 0 or more, got {weight}")
        self.network, self.loss, self.weight = network, loss, weight

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of a batch; a scalar."""
        loss = self.loss(logits, label)
        if not (self.weight and logits.requires_grad):
            return loss
        attention = getattr(self.network, "attention_weights", None)
        if attention is None or len(attention) != len(logits):
            actual = "none" if attention is None else f"that of {len(attention)}"
            raise ValueError(
                f"AttentionEntropyLoss: wanted the attention of {len(logits)} bags, {type(self.network).__name__} "
                f"keeps {actual} (AttentionMIL with pooling gated or attention keeps it; otherwise set weight to 0)"
            )
        log = attention.clamp_min(torch.finfo(attention.dtype).tiny).log()  # finite slope at 0, as on padding
        return loss - self.weight * (attention * log).sum(2).mean()
