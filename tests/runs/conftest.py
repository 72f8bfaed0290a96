from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer

from monai_pipelines import load_chain
from monai_pipelines.data import Cohort
from monai_pipelines.declared import declared_path
from monai_pipelines.model import Model
from monai_pipelines.runs import record_run

BUNDLE = declared_path("bundles") / "lung_ct_classification"


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """`start_run` replaces it."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def bundle() -> Path:
    return BUNDLE


@pytest.fixture
def as_bundle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """as_bundle(*arguments): this program is ``python -m monai.bundle run`` with these arguments."""

    def start(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["site/monai/bundle/__main__.py", "run", *arguments])
        monkeypatch.setattr(sys, "orig_argv", ["/venv/bin/python", "-m", "monai.bundle", "run", *arguments])

    return start


@pytest.fixture
def cohort() -> Cohort:
    items = [{"name": f"Jane Doe {k}", "label": k % 2, "patient": f"Jane Doe {k}"} for k in range(4)]
    return Cohort(items[:2], items[2:3], items[3:], ("healthy", "disease"), seed=3, fractions=(0.6, 0.2, 0.2))


@pytest.fixture
def record(cohort: Cohort) -> Callable[..., dict[str, Any]]:
    """record(output_dir, chain=..., augmentation=...): what `record_run` returns."""

    def run(output_dir: Path, chain: Any = None, augmentation: Any = None) -> dict[str, Any]:
        chain = load_chain("lung_ct") if chain is None else chain
        model = Model(torch.nn.Linear(3, 2), chain, cohort.classes, torch.device("cpu"), SimpleInferer(), None)
        return record_run(output_dir, BUNDLE, model, cohort, augmentation, Path("a folder"))

    return run
