from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import nn

from monai_pipelines import load_chain
from monai_pipelines.engines import Model


def trained_with(
    network: nn.Module, prepare: Any, classes: Sequence[str], threshold: Any = None, multilabel: bool = False
) -> Any:
    """As `monai_pipelines.runs.Trained`, without a checkpoint."""
    device = torch.device("cpu")
    model = Model(network, load_chain("image2d"), classes, device, SimpleInferer(), prepare, multilabel)
    return SimpleNamespace(model=model, decisions=SimpleNamespace(threshold=threshold))
