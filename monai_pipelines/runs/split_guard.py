"""Nobody is tested on whom the training has seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monai_pipelines.data.split import seen_hashes

logger = logging.getLogger(__name__)


def check_split(split: Mapping[str, Any] | None, cohort: Any) -> None:
    """Check that no test image, and no patient of one, was seen in training.

    Args:
        split: `monai_pipelines.data.Cohort.split_card` of the training; None (unknown) is a warning.
        cohort: of the evaluation, with ``test`` and ``split_card``.

    Raises:
        ValueError: test images, or images of the same patients, were trained on or chose the epoch.
    """
    if split is None:
        logger.warning("the checkpoint does not say what it was trained on: make sure that it has seen no test patient")
        return
    if seen := seen_hashes(cohort.test).intersection(split["seen"]):
        now = cohort.split_card
        names = ("seed", "split_fractions")
        differences = [f"{name} {split[name]} there, {now[name]} here" for name in names if split[name] != now[name]]
        raise ValueError(
            f"{len(seen)} names or patients of the test data have been seen in training; evaluate with the data, seed, "
            f"split_fractions and patient_pattern of the training ({'; '.join(differences) or 'the data differ'})"
        )
