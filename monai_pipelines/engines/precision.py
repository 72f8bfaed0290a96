"""Measure whether a training step on a CPU is faster in bf16, which depends on the processor and the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import product

from torch import Tensor
from torch.nn.utils import get_total_norm

from monai_pipelines.networks.precision import Precision

logger = logging.getLogger(__name__)

ROUNDS = 2
WORTHWHILE = 0.9  # largest share of float32's time at which bf16 is used
SAME_SIZE = 4  # largest factor between the gradient norms


def measured_precision(step: Callable[[Precision], Sequence[Tensor | None]]) -> Precision:
    """Choose bf16 if a step takes at most 0.9 of float32's time and its gradients are plausible.

    Gradients are plausible if they are finite and their norm is within a factor of 4 of float32's: rounding to bf16
    alone changes the direction of a deep network's gradients considerably. Time is CPU time summed over threads, which
    other processes hardly affect.

    Args:
        step: computes a training step in the given precision, on the same weights and data, and returns its gradients.
    """
    seconds: dict[Precision, float] = {}
    norms: dict[Precision, float] = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for _, precision in product(range(ROUNDS), precisions):
        start = time.process_time()
        gradients = step(precision)
        elapsed = time.process_time() - start
        seconds[precision] = min(elapsed, seconds.get(precision, elapsed))
        norms[precision] = float(get_total_norm([one for one in gradients if one is not None]))
    if not norms["fp32"] / SAME_SIZE <= norms["bf16"] <= SAME_SIZE * norms["fp32"]:
        logger.warning("precision: fp32, since bf16's gradients are wrong here: norm %(bf16)g, not %(fp32)g", norms)
        return "fp32"
    share = seconds["bf16"] / seconds["fp32"]
    chosen: Precision = "bf16" if share <= WORTHWHILE else "fp32"
    logger.info("precision: %s, since a step in bf16 takes %.2f of the time that it takes in fp32", chosen, share)
    return chosen
