"""Whether a training step on a CPU is faster in bf16: measured, since it depends on processor and network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from monai_pipelines.networks.precision import Precision

logger = logging.getLogger(__name__)

ROUNDS = 2
WORTHWHILE = 0.9  # share of the time from which bf16 is used
SAME_SIZE = 4  # factor between the norms of both gradients


def measured_precision(step: Callable[[Precision], Sequence[Tensor | None]]) -> Precision:
    """bf16 if a step takes at most 0.9 of the time in it, and its gradients are finite and of the size of float32's.

    Time is that of the processor, of all threads, which other processes hardly change. bf16's rounding alone changes
    the direction of the gradients of a deep network much, so that only their norms are compared, by a factor of 4.

    Args:
        step: makes a training step in the given precision on equal weights and data, and returns the gradients.
    """
    seconds: dict[Precision, float] = {}
    norms: dict[Precision, float] = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for _, precision in product(range(ROUNDS), precisions):
        start = time.process_time()
        gradients = step(precision)
        elapsed = time.process_time() - start
        seconds[precision] = min(elapsed, seconds.get(precision, elapsed))
        norms[precision] = float(torch.stack([one.float().norm() for one in gradients if one is not None]).norm())
    if not norms["fp32"] / SAME_SIZE <= norms["bf16"] <= SAME_SIZE * norms["fp32"]:
        logger.warning("precision: fp32, since bf16's gradients are wrong here: norm %(bf16)g, not %(fp32)g", norms)
        return "fp32"
    share = seconds["bf16"] / seconds["fp32"]
    chosen: Precision = "bf16" if share <= WORTHWHILE else "fp32"
    logger.info("precision: %s, since a step in bf16 takes %.2f of the time that it takes in fp32", chosen, share)
    return chosen
