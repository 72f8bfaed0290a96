"""Base of the losses: the three kinds of heads, and class weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_pipelines import processes
from monai_pipelines.probabilities import class_logits

Weight = Tensor | Sequence[float] | None


class ClassificationLoss(nn.Module, ABC):
    """Base of the losses; the shapes determine the kind of head.

    - one logit: logits (N, 1), labels (N,) of 0 and 1; treated as two classes with logits ``[0, z]``.
    - multi-class: logits (N, C), labels (N,) of 0..C - 1.
    - multi-label: logits (N, C), labels (N, C) of 0 and 1.

    Half-precision logits are taken as float32.

    Args:
        weight: (C,), each above 0: of the samples of each class (two for one logit, as from `class_weights`), or of the
            positives of each class (multi-label, as from `pos_weights`). None: all equal.

    Raises:
        ValueError: another weight, or tensors of other shapes.
        TypeError: floating-point labels (N,).
    """

    weight: Tensor | None

    def __init__(self, weight: Weight = None) -> None:
        super().__init__()
        values = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        if values is not None and not (values.ndim == 1 and bool(((values > 0) & values.isfinite()).all())):
            raise ValueError(f"{self._name}: weight must be (C,), each above 0 and finite, got {values.tolist()}")
        self.register_buffer("weight", values)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch; a scalar."""
        if logits.ndim != 2 or labels.shape not in (logits.shape, logits.shape[:1]):
            raise ValueError(
                f"{self._name}: wanted logits (N, C) with labels (N,) or (N, C), "
                f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        multilabel = labels.ndim == 2
        num_classes = logits.shape[1] if multilabel else max(2, logits.shape[1])
        if self.weight is not None and len(self.weight) != num_classes:
            raise ValueError(f"{self._name}: wanted {num_classes} weights, one for each class, got {len(self.weight)}")
        if not multilabel and labels.is_floating_point():
            raise TypeError(
                f"{self._name}: wanted integer labels (N,), got {labels.dtype} (class indices: use labels.long())"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        if multilabel:
            return self._multi_label(logits, labels.to(logits.dtype), weight)
        apply = self._one_logit if logits.shape[1] == 1 else self._multi_class
        return apply(logits, labels.long(), weight)

    @abstractmethod
    def _multi_class(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Loss of (N, C), C > 1, for int64 (N,)."""

    @abstractmethod
    def _multi_label(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Loss of (N, C) for (N, C) of the same dtype."""

    def _one_logit(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Loss of (N, 1) for int64 (N,)."""
        return self._multi_class(class_logits(logits), labels, weight)

    @property
    def _name(self) -> str:
        return type(self).__name__


def weighted_mean(loss: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of the losses (N,) of the samples, weighted by their classes."""
    if weight is None:
        return loss.mean()
    sample_weight = weight[labels]
    return over_processes((sample_weight * loss).sum() / sample_weight.sum(), labels, weight)


def over_processes(mean: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """Scale a weighted mean of one process's batch so that the mean over the processes is that of all their samples.

    Without a gradient, as in validation, it is unchanged.
    """
    if weight is None or not mean.requires_grad or processes.num_processes() == 1:
        return mean
    total = weight[labels].sum()
    return mean * (total / processes.mean(total))


def focusing(prob: Tensor, gamma: float) -> Tensor:
    """``prob ** gamma``, with a finite slope at 0 for every gamma."""
    return prob.clamp_min(torch.finfo(prob.dtype).tiny) ** gamma
